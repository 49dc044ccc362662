"""Whether a teacher fits where it is to run, as arithmetic: what it takes beside what there is, and what would fit.

TeacherSize + what a run does at once + room -> Needs, and a TeacherError or a hint where they are too large. No library is asked.

Two sums are made. *In full*: forward passes of `batch_tokens` and all that a group of documents keeps. *At least*: what is
left when memory runs out, since groups are then halved and passes made smaller (engine/scoring/memory.py). Only the second one
refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from engine.plan.teacher_size import BYTES_OF, TeacherSize
from schemas.errors import TeacherError

GIB = 1 << 30
LEAST_TOKENS = 256
"""Tokens of the smallest pass that is counted on: a short document alone."""
_NODES = 2  # contexts of a group, in forward passes (engine/scoring/scorer.py)
_PROCESS_BYTES = {"cpu": GIB, "cuda": GIB // 2}
"""Python, libraries and tables of tokenizers in host memory; on a GPU its driver's context and workspaces (not measured)."""


@dataclass(frozen=True, slots=True)
class AtOnce:
    """What a run does at once. tokens: of a forward pass; rows: of the lm_head; mask_bytes: of a mask, at most; rounds: whether
    keys and values of a group are kept (searches, and pruning by eps). states_bytes: of the states that a recurrent teacher
    keeps, and of those of one pass (engine/teacher/kept_states.py)."""

    tokens: int
    rows: int
    mask_bytes: int
    rounds: bool
    states_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What one part of a teacher may take. what: in words; parts: devices that share the weights of one teacher;
    teachers: whole teachers that have to find place in `free_bytes`; device: "cpu" or "cuda"."""

    what: str
    free_bytes: int
    device: str
    parts: int = 1
    teachers: int = 1


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes on each device of a teacher; the weights are its share of them."""

    weights: int
    lm_head_rows: int
    activations: int
    hidden_states: int
    keys_and_values: int
    kept_states: int
    process: int

    @property
    def total(self) -> int:
        return sum(count for _, count in self.lines())

    def lines(self) -> list[tuple[str, int]]:
        """(what, bytes), for a person to add up."""
        return [
            ("weights", self.weights),
            ("rows of the lm_head", self.lm_head_rows),
            ("activations", self.activations),
            ("hidden states", self.hidden_states),
            ("keys and values", self.keys_and_values),
            ("kept states", self.kept_states),
            ("the process itself", self.process),
        ]


def needs_of(size: TeacherSize, work: AtOnce, device: str, parts: int = 1) -> Needs:
    """What one device takes of a teacher that `parts` devices share. Layers are never shared evenly: one more is counted."""
    share = (
        size.weights_bytes
        if parts == 1
        else ceil(size.weights_bytes / parts + size.weights_bytes / max(size.layers, 1))
    )
    nodes = _NODES * work.tokens
    return Needs(
        weights=min(share, size.weights_bytes),
        lm_head_rows=work.rows
        * size.vocabulary
        * (size.number_bytes + 8),  # logits as they come, in float32, and one copy
        activations=work.tokens * size.pass_bytes_per_token + work.mask_bytes,
        hidden_states=(nodes + work.tokens) * size.state_bytes,
        # over kept states, keys and values are a part of them
        keys_and_values=ceil(nodes * size.cache_bytes_per_token / parts)
        if work.rounds and not work.states_bytes
        else 0,
        kept_states=work.states_bytes,
        process=_PROCESS_BYTES[device],
    )


def least(work: AtOnce) -> AtOnce:
    """What is left of it when memory runs out."""
    return replace(work, tokens=min(work.tokens, LEAST_TOKENS), mask_bytes=0, rounds=False, states_bytes=0)


def check_fits(size: TeacherSize, work: AtOnce, room: Room, name: str) -> str:
    """Raises TeacherError for a teacher that cannot fit, with the arithmetic and with what would fit. Returns a hint for a
    person where it fits, but not with passes as large as the run file wants them; else "". name: of the model in the run file."""
    needs = needs_of(size, least(work), room.device, room.parts)
    if needs.total * room.teachers > room.free_bytes:
        each = "" if room.parts == 1 else f" (a share of {room.parts}, and a layer)"
        sums = ", ".join(f"{what}{each * (what == 'weights')} {_gib(count)}" for what, count in needs.lines() if count)
        times = f" each, {_gib(needs.total * room.teachers)} for {room.teachers} teachers" if room.teachers > 1 else ""
        raise TeacherError(
            f"[teacher] model = {name!r} ({size.parameters:,} parameters, {size.dtype}) does not fit: it takes at least "
            f"{_gib(needs.total)}{times} ({sums}), and there are {_gib(room.free_bytes)} ({room.what}). "
            f"What would fit: {'; or '.join(_ways(size, work, room))}"
        )
    full = needs_of(size, work, room.device, room.parts).total * room.teachers
    if full <= room.free_bytes:
        return ""
    tokens = _tokens_that_fit(size, work, room)
    return (
        f"memory is short: with batch_tokens = {work.tokens} up to {_gib(full)} are wanted of "
        f"{_gib(room.free_bytes)} ({room.what}). "
        f"Passes are made smaller when it runs out; batch_tokens = {tokens} saves the tries"
    )


def _tokens_that_fit(size: TeacherSize, work: AtOnce, room: Room) -> int:
    tokens = work.tokens
    while tokens > LEAST_TOKENS:
        tokens //= 2
        needs = needs_of(size, replace(work, tokens=tokens), room.device, room.parts)
        if needs.total * room.teachers <= room.free_bytes:
            break
    return tokens


def _ways(size: TeacherSize, work: AtOnce, room: Room) -> list[str]:
    """What a person could do, the nearest first."""

    def total(size: TeacherSize, parts: int) -> int:
        return needs_of(size, least(work), room.device, parts).total

    found, one = [], total(size, room.parts)
    if room.teachers > 1 and one <= room.free_bytes:
        fit = room.free_bytes // one
        found.append(f"[ray] actors = {fit} on this machine ({fit} x {_gib(one)})")
    if size.number_bytes == 4 and not size.packed:
        half = replace(size, dtype="bfloat16", weights_bytes=size.weights_bytes // 2)
        if total(half, room.parts) * room.teachers <= room.free_bytes:
            found.append(f'dtype = "bfloat16" ({_gib(total(half, room.parts) * room.teachers)})')
    if room.device == "cuda":
        enough = next((n for n in (2, 4, 8, 16) if n > room.parts and total(size, n) <= room.free_bytes), None)
        if enough is not None:
            found.append(f"[ray] num_gpus = {enough} of this kind ({_gib(total(size, enough))} on each)")
    where = "a GPU" if room.device == "cuda" else "a machine"
    if room.parts > 1:
        where = f"{room.parts} GPUs, each"
    found.append(f"{where} with {_gib(one)} free")
    beside = one - needs_of(size, least(work), room.device, room.parts).weights
    numbers = (room.free_bytes // room.teachers - beside) * room.parts // BYTES_OF.get(size.dtype, 4)
    if numbers > 0 and not size.packed:
        found.append(f"a model of at most {numbers / 1e9:,.1f} billion parameters in {size.dtype}")
    return found


def _gib(count: int) -> str:
    return f"{count / GIB:,.2f} GiB"
