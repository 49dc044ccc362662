"""Brute force: the definitions of docs/design.md written out slowly, with the tokenizers library as the only judge.

Nothing here uses merges, pre-tokenizer patterns or pair rules of the engine: contexts are found by encoding texts, leaves
are closed by encoding texts, and the truth is found by enumerating whole texts.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.bpe.vocabulary import SPACE_MARK, Vocabulary, load_vocabulary
from tests.support.toys import SPELL, TableTeacher, bytes_in_use, completions, strings, two_byte_characters

Tokens = tuple[int, ...]


def encode_closed(vocabulary: Vocabulary, text: bytes) -> list[int]:
    """Tokens of a text that ends here. Bytes that are no whole character: the first of them and all that follow are one
    unknown character (byte-level: U+FFFD to the pre-tokenizer, its own bytes to BPE; SentencePiece: byte tokens)."""
    try:
        whole = len(text)
        head = text.decode()
    except UnicodeDecodeError as error:
        whole = error.start
        head = text[:whole].decode()
    tokenizer, rest = vocabulary.tokenizer, text[whole:]
    if not rest:
        return tokenizer.encode(head, add_special_tokens=False).ids
    if vocabulary.kind == "sentencepiece":
        ids = tokenizer.encode(head, add_special_tokens=False).ids
        if not head and vocabulary.prefix_bytes:
            ids = [t.id for t in tokenizer.model.tokenize(SPACE_MARK)]
        known = vocabulary.byte_tokens  # a byte whose character has a token may have none of its own
        return ids + [known[b] if b in known else vocabulary.id_of_bytes[bytes([b])] for b in rest]
    assert tokenizer.pre_tokenizer is not None
    pieces = [p for p, _ in tokenizer.pre_tokenizer.pre_tokenize_str(head + "\ufffd")]
    unknown = "".join(SPELL[b] for b in "\ufffd".encode())
    assert pieces[-1].endswith(unknown)
    pieces[-1] = pieces[-1].removesuffix(unknown) + "".join(SPELL[b] for b in rest)
    return [t.id for piece in pieces for t in tokenizer.model.tokenize(piece)]


def with_all_bytes(vocabulary: Vocabulary, folder: Path) -> Vocabulary:
    """The same tokenizer with all 256 bytes as tokens (new ids at the end), so that it can read any text."""
    spec = json.loads(vocabulary.tokenizer.to_str())
    known = spec["model"]["vocab"]
    for added in spec["added_tokens"]:
        known.setdefault(added["content"], added["id"])
    if vocabulary.kind == "bytelevel":
        for char in SPELL.values():
            known.setdefault(char, len(known))
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return load_vocabulary(str(folder))


def contexts_of(
    vocabulary: Vocabulary, text: str, chars: Sequence[str], longest: int = 2
) -> tuple[dict[int, set[Tokens]], dict[int, set[Tokens]]]:
    """byte of prefix + text -> all canonical contexts that end there: token prefixes of the encodings of every text that
    begins with these bytes and goes on with the true text or with up to `longest` characters of the alphabet. Second, the
    contexts behind which an added text lies across the byte."""
    prefix = vocabulary.prefix_bytes
    data, probes = prefix + text.encode(), [p.encode() for p in strings(chars, longest)]
    two_bytes = two_byte_characters(bytes_in_use(chars), bytes_in_use(chars))
    found: dict[int, set[Tokens]] = {p: set() for p in range(len(data) + 1)}
    before: dict[int, set[Tokens]] = {p: set() for p in found}
    for place in found:
        heads = completions(data[: max(place, len(prefix))], two_bytes)
        for full in {data, *(head + probe for head in heads for probe in probes)}:
            ids = vocabulary.tokenizer.encode(full[len(prefix) :].decode(), add_special_tokens=False).ids
            end, n = 0, 0
            while end < place and n < len(ids):
                end += len(vocabulary.token_bytes[ids[n]] or b"")
                n += 1
            if end == place:
                found[place].add(tuple(ids[:n]))
            elif end > place and ids[n - 1] in vocabulary.added_text.values():
                before[place].add(tuple(ids[: n - 1]))
    return found, before


@dataclass
class Leaf:
    """One context and one teacher token past a boundary: absolute mass, what the student's encoding says, if anything."""

    context: Tokens
    token: int
    mass: float
    first: int | None


@dataclass
class Target:
    """One boundary by brute force, absolute masses: per student token [Vs], excluded, and what unevaluated contexts hold."""

    mass: np.ndarray
    excluded: float = 0.0
    missed: float = 0.0
    leaves: list[Leaf] = field(default_factory=list)


def evaluated(
    teacher: Vocabulary, text: str, chars: Sequence[str], given: Tokens, wanted: Sequence[int]
) -> tuple[set[Tokens], set[Tokens]]:
    """(contexts that the engine evaluates, all canonical contexts) after the given token: those at wanted bytes, those before
    an added text that lies across one, the trunk, and all their ancestors."""
    ids = tuple(teacher.tokenizer.encode(text, add_special_tokens=False).ids)
    found, before = contexts_of(teacher, text, chars)
    everything = {c for cs in found.values() for c in cs if len(c) >= len(given) and c[: len(given)] == given}
    start = sum(len(teacher.token_bytes[t] or b"") for t in given)
    asked = [place for place in wanted if place >= start]
    ends = [ids, *(c for place in asked for c in (*found[place], *before[place]) if c in everything)]
    chosen = {c[:n] for c in ends for n in range(len(given), len(c) + 1)}
    assert chosen <= everything, "a prefix of a canonical context is not canonical"
    return chosen, everything


def targets(
    teacher: Vocabulary,
    student: Vocabulary,
    table: TableTeacher,
    text: str,
    bos: Tokens,
    *,
    every_byte: bool = False,
) -> list[Target | None]:
    """All n + 1 boundaries at depth 0, no leaf split; None where nothing is asked of the teacher (before its given token)."""
    prefix = teacher.prefix_bytes
    s_ids, s_ends = student.encode(text)
    given = () if bos else tuple(teacher.tokenizer.encode(text, add_special_tokens=False).ids[:1])
    start = len(table.bytes_of(given))
    places = [len(prefix), *(len(prefix) + e for e in s_ends)]
    data = prefix + text.encode()
    wanted = list(range(len(data) + 1)) if every_byte else places
    chosen, everything = evaluated(teacher, text, table.chars, given, wanted)
    out: list[Target | None] = []
    for k, place in enumerate(places):
        if place < start:
            out.append(None)
            continue
        target = Target(np.zeros(student.size))
        for context in sorted(everything):
            if len(table.bytes_of(context)) > place:
                continue
            for leaf in _leaves(context, data[:place], k, len(prefix), len(given), student, s_ids, table):
                if context not in chosen:
                    if leaf.token in table.followers(
                        context
                    ):  # a bound on canonical contexts, not on what a raw model adds
                        target.missed += leaf.mass
                    continue
                target.leaves.append(leaf)
                if leaf.first is None:
                    target.excluded += leaf.mass
                else:
                    target.mass[leaf.first] += leaf.mass
        out.append(target)
    return out


def _leaves(
    context: Tokens,
    before: bytes,
    k: int,
    prefix: int,
    given: int,
    student: Vocabulary,
    s_ids: list[int],
    table: TableTeacher,
) -> Iterator[Leaf]:
    """Leaves of one context at boundary k. The closed answer: encode x[:e] + r as if the text ended there."""
    here = table.bytes_of(context)
    weight = sum(table.logp(context[:i])[context[i]] for i in range(given, len(context)))
    probability = np.exp(weight + table.logp(context))
    for token in np.flatnonzero(probability):
        piece, mass = table.vocabulary.token_bytes[token], float(probability[token])
        full = here + (piece or b"")
        if piece is not None and len(full) > len(before) and full.startswith(before):
            answer = encode_closed(student, full[prefix:])
        elif piece is None and len(here) > len(before):  # the text ends past the boundary
            answer = encode_closed(student, here[prefix:])
        elif piece is None and (here == before or (k == 0 and not context)):  # here; no token at all is the empty text
            role = table.vocabulary.specials[int(token)]
            counts = role == "eos" and is_text(before[prefix:]) and encode_closed(student, before[prefix:]) == s_ids[:k]
            yield Leaf(context, int(token), mass, student.eos_id if counts else None)
            continue
        else:
            continue
        same = answer[:k] == s_ids[:k] and len(answer) > k
        yield Leaf(context, int(token), mass, answer[k] if same else None)


def is_text(data: bytes) -> bool:
    """A text does not end inside a character."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def truth(
    student: Vocabulary, table: TableTeacher, text: str, k: int, *, budget: int, slack: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds [Vs] on q_k of a masked teacher with BOS by enumerating whole texts, heaviest prefixes first.

    Stops when the texts not seen hold at most `slack` of the mass at this boundary, or after `budget` contexts: then None.
    """
    s_ids, s_ends = student.encode(text)
    want = table.vocabulary.prefix_bytes + text.encode()[: ([0, *s_ends])[k]]
    mass, pending = np.zeros(student.size), 1.0
    heap: list[tuple[float, Tokens]] = [(-1.0, ())]
    end = table.vocabulary.eos_id
    assert student.eos_id is not None
    while heap:
        if pending <= slack * mass.sum():
            total = mass.sum() + pending
            return mass / total, (mass + pending) / total
        if budget == 0:
            return None
        budget -= 1
        weight, context = heapq.heappop(heap)
        pending += weight
        here = table.bytes_of(context)
        for token, p in enumerate(np.exp(table.logp(context)).tolist()):
            if p == 0:
                continue
            if token == end:
                own = here[len(table.vocabulary.prefix_bytes) :].decode()
                answer = student.tokenizer.encode(own, add_special_tokens=False).ids
                if answer[:k] == s_ids[:k] and len(answer) >= k:
                    mass[answer[k] if len(answer) > k else student.eos_id] += -weight * p
                continue
            grown = here + (table.vocabulary.token_bytes[token] or b"")
            if grown.startswith(want) or want.startswith(grown):
                heapq.heappush(heap, (weight * p, (*context, token)))
                pending -= weight * p
    total = mass.sum()
    return (mass / total, mass / total) if total > 0 else None
