"""The teacher model: loaded and checked; token trees in, hidden states and fp32 logits of every node out.

A decoder scores a whole tree in one pass: one token per node, position id = depth, attention to ancestors only
(docs/design.md, section 3). Trees without branches take the plain causal path. A wrong mask gives plausible numbers and
no error, so `load_teacher` scores small trees and the same contexts one by one (engine/teacher/self_check.py), and falls back to
kept states (engine/teacher/kept_states.py), then to `paths` (each branch as its own sequence) when they differ, with the reason
in `why`. The results are the same.

Letters: B sequences, n nodes of one window, D hidden size, C rows of one chunk, V ids of the lm_head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

from engine.teacher.adapter import with_adapter
from engine.teacher.decoder import Decoder
from engine.teacher.incremental import CachedTrees, IncrementalTrees, RescoredTrees
from engine.teacher.kept_states import Leading, StateTrees
from engine.teacher.long_trees import long_states, needs_blocks
from engine.teacher.packing import Window
from engine.teacher.self_check import CheckResult, LogProbs, first_line, probe
from engine.teacher.state_check import find_way
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
_DEFAULT_CONTEXT = 2048
_NOT_THE_MODEL = (torch.OutOfMemoryError, MemoryError, getattr(torch, "AcceleratorError", MemoryError))
_LOADING = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A loaded causal LM. `attention` is "tree", "states" (engine/teacher/kept_states.py) or "paths"; `max_length` in tokens;
    `end_ids` are its ends of text.

    why: the reason that it is not "tree", empty for that. reuse: whether `open_trees` keeps keys and values, or states, between
    its rounds. gap: nats by which contexts of the start-up check differ from contexts alone.
    """

    model: Any
    device: torch.device
    max_length: int
    attention: str
    end_ids: tuple[int, ...]
    vocab_rows: int
    why: str
    reuse: bool
    gap: float
    _decoder: Decoder
    _leading: Leading | None
    _most: int | None
    _logits: Callable[[torch.Tensor], torch.Tensor]

    @torch.inference_mode()
    def logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        """fp32 logits [C, V] of hidden rows (after the final norm). C x V x 4 bytes: the caller chunks."""
        return self._logits(hidden_CD)

    @torch.inference_mode()
    def hidden(self, windows: list[Window]) -> list[torch.Tensor]:
        """Last hidden states [n, D] of every window's nodes: one pass for those with branches, one for the others."""
        out: dict[int, torch.Tensor] = {}
        ways = [self._way(w) for w in windows]
        for way in dict.fromkeys(ways):
            chosen = [i for i, taken in enumerate(ways) if taken == way]
            out |= zip(chosen, way([windows[i] for i in chosen]), strict=True)
        return [out[i] for i in range(len(windows))]

    @torch.inference_mode()
    def open_trees(self, windows: list[Window]) -> IncrementalTrees:
        """Score these nodes; more that hang off them can be added in rounds (engine/teacher/incremental.py)."""
        if not self.reuse:
            return RescoredTrees(self.hidden, windows)
        if self._leading is not None:  # also where trees have a limit, which rounds might cross
            return StateTrees(self._decoder, self._leading, windows)
        return CachedTrees(self._decoder, windows)

    def _way(self, window: Window) -> Callable[[list[Window]], list[torch.Tensor]]:
        if self.attention == "paths":
            return self._decoder.paths
        masked = self.attention == "tree" and (self._most is None or max(window.depth) < self._most)
        if masked and needs_blocks(self._decoder, window):
            return self._in_blocks
        if not window.branched:
            return self._decoder.chains
        if masked:
            return self._decoder.trees
        return self._decoder.paths if self._leading is None else self._over_states

    def _in_blocks(self, windows: list[Window]) -> list[torch.Tensor]:
        return [long_states(self._decoder, window) for window in windows]

    def _over_states(self, windows: list[Window]) -> list[torch.Tensor]:
        assert self._leading is not None
        return StateTrees(self._decoder, self._leading, windows).hidden

    def head_weights(self) -> dict[str, torch.Tensor]:
        """`lm_head` and `embedding` [V, D], and `bias` [V] where the lm_head has one, whole and in the format of the weights."""
        head = self.model.get_output_embeddings()
        found = {"lm_head": head.weight, "embedding": self.model.get_input_embeddings().weight}
        if (bias := getattr(head, "bias", None)) is not None:
            found["bias"] = bias
        return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in found.items()}

    def with_less_memory(self, batch_tokens: int, *, keep: bool) -> Teacher:
        """The same model run with less at a time, after memory ran out. batch_tokens: of one pass over paths; keep: whether
        `open_trees` may keep keys and values."""
        decoder, leading = replace(self._decoder, path_tokens=batch_tokens), self._leading
        if leading is not None and batch_tokens < self._decoder.path_tokens:
            leading = replace(leading, room_bytes=leading.room_bytes * batch_tokens // self._decoder.path_tokens)
        return replace(self, _decoder=decoder, _leading=leading, reuse=self.reuse and keep)


def load_teacher(
    config: TeacherConfig, path: str, *, tokenizer_end: int | None, adapter: str | None = None, split: str = "one"
) -> Teacher:
    """Load with transformers and prove the numbers. adapter: a folder or Hub id, merged into the weights. split: how the weights
    are shared out (engine/plan/teacher_split.py); "tensor" and "experts" are among the ranks of this process's group, which all
    call this at the same time. Raises TeacherError saying what is missing or what differs."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TeacherError(
            '[teacher] device: got "cuda", but torch sees no GPU here; use "auto" or "cpu", or a GPU actor'
        )
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    dtype: Any = "auto" if config.dtype == "auto" else _DTYPES[config.dtype]
    if config.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32  # half precision on a CPU is slower and less exact
    try:
        # transformers chooses the attention: SDPA where the architecture has it, else its own plain one (Gemma-2)
        made: Any = AutoModelForCausalLM.from_pretrained(
            path,
            revision=config.revision,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **_placement(split, device),
        )
    except Exception as error:  # damaged and hostile files make the libraries raise anything
        if type(error).__name__ == "UnpicklingError":
            raise TeacherError(
                f"[teacher] model {path!r}: a .bin file holds more than weights, and such files can hold code, so it was not "
                "loaded. Want model.safetensors; convert the model where you trust it, or take another."
            ) from error
        if not isinstance(error, _LOADING):
            raise
        raise TeacherError(
            f"[teacher] model {path!r} cannot be loaded: {first_line(error)}. Want a folder (or Hub id) with config.json "
            "and weights of a causal language model that transformers knows."
        ) from error
    model, report = made
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills them with random numbers and only warns
        raise TeacherError(
            f"[teacher] model {path!r}: the weights lack {len(missing)} tensor(s), such as {missing[0]}. Want the complete "
            "weights of a causal language model; fetch them again, or check that config.json belongs to them."
        )
    if adapter is not None:
        model = with_adapter(model, adapter, config.adapter_revision)
    if split == "layers":
        device = _on_gpus_only(model, path)
    elif split == "one":
        model = model.to(device)  # an adapter may have been merged elsewhere
    return _checked(model.eval(), device, config, tokenizer_end, Path(path).name)


def _placement(split: str, device: torch.device) -> dict[str, Any]:
    """Where the weights go, for `from_pretrained`: straight to their devices, file by file, so that host memory never holds them
    all."""
    if split == "layers":
        return {"device_map": "balanced"}
    if split == "one":
        return {} if device.type == "cpu" else {"device_map": {"": torch.cuda.current_device()}}
    count = torch.distributed.get_world_size()
    return {"distributed_config": DistributedConfig(tp_size=count, ep_size=count if split == "experts" else 1)}


def _on_gpus_only(model: Any, path: str) -> torch.device:
    """The device of the lm_head, where rows come out. Raises TeacherError for layers that found no place on a GPU: accelerate
    would fetch them from host memory or disk for every pass."""
    placed = getattr(model, "hf_device_map", {})
    outside = [name for name, where in placed.items() if where in ("cpu", "disk")]
    if outside:
        raise TeacherError(
            f"[teacher] model {path!r}: {len(outside)} of {len(placed)} parts, such as {outside[0]}, found no room on the GPUs "
            f"({torch.cuda.device_count()} here). Raise [ray] num_gpus, or take larger GPUs or a smaller dtype"
        )
    return model.get_output_embeddings().weight.device


def _checked(model: Any, device: torch.device, config: TeacherConfig, tokenizer_end: int | None, name: str) -> Teacher:
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    own = own if isinstance(own, int) and own > 0 else _DEFAULT_CONTEXT  # XLNet says -1: any
    max_length = min(config.max_length or own, own)
    name = f"{name} ({type(model).__name__})"
    head = model.get_output_embeddings()
    if getattr(head, "weight", None) is None:
        raise TeacherError(
            f"[teacher] {name}: the model has no output embeddings (lm_head); want a causal language model that has"
        )
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if tokenizer_end is not None:
        listed.append(tokenizer_end)
    end_ids = tuple(dict.fromkeys(listed))
    to_logits, limit = _logits_function(model), _TOLERANCE_NATS[model.dtype]
    vocab_rows = head.weight.shape[0]
    decoder = Decoder(model, device, config.batch_tokens, kernel=model.config._attn_implementation)

    def log_probs(hidden: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(to_logits(hidden), -1)

    vocab = min(vocab_rows, 1000)
    with torch.inference_mode():
        _check_logits(decoder, log_probs, vocab, min(12, max_length), limit, name)
        if config.attention == "paths":
            found = CheckResult(None, False, 'the run file says attention = "paths"')
        else:
            found = find_way(decoder, log_probs, vocab, max_length, limit, trees=config.attention != "states")
    way = "tree" if found.decoder is not None else "paths" if found.leading is None else "states"
    if config.attention not in ("auto", way):
        other = (
            f'"states" works here (within {found.gap:.1g} nats)'
            if found.leading
            else f'"states" fails ({found.gap:.3g} nats)'
        )
        raise TeacherError(
            f'[teacher] {name}: attention = "{config.attention}" is not possible: {found.why}. Want what each context alone '
            f'gives, within {limit} nats; {other}; use "auto".'
        )
    return Teacher(
        model,
        device,
        max_length,
        way,
        end_ids,
        vocab_rows,
        found.why,
        found.reuse,
        found.gap,
        found.decoder or decoder,
        found.leading,
        found.most,
        to_logits,
    )


def _check_logits(decoder: Decoder, log_probs: LogProbs, vocab: int, size: int, limit: float, name: str) -> None:
    """The last hidden state, through the head as this file knows it, gives the model's own log-probabilities, and those of a
    token do not depend on what follows it. Raises TeacherError: they do not, or the model cannot be run so at all."""
    chain = probe(vocab, size, 0)
    token = chain.token[:size]
    trunk = Window(token, chain.parent[:size], chain.depth[:size])
    short = max(1, size // 2)
    given = torch.tensor([token], device=decoder.device)
    try:
        theirs = torch.log_softmax(decoder.model(input_ids=given).logits[0].float(), -1)
        ours = log_probs(decoder.chains([trunk])[0])
        alone = log_probs(decoder.chains([Window(token[:short], chain.parent[:short], chain.depth[:short])])[0])
        gap, later = float((ours - theirs).abs().max()), float((ours[:short] - alone).abs().max())
    except TeacherError as error:
        raise TeacherError(f"[teacher] {name}: {error}") from error
    except _NOT_THE_MODEL:
        raise
    except Exception as error:  # code of every architecture there is: it may raise anything
        raise TeacherError(
            f"[teacher] {name}: a plain sequence of {size} token ids cannot be scored: {first_line(error)}. Want a causal "
            "language model that needs nothing but token ids; check its config.json, or take another teacher."
        ) from error
    if not gap <= limit:
        raise TeacherError(
            f"[teacher] {name}: log-probabilities made from the last hidden state differ from the model's own by {gap:.3g} nats "
            f"(want <= {limit}). This architecture changes its logits in a way that is not known; report it with its config.json."
        )
    if not later <= limit:
        raise TeacherError(
            f"[teacher] {name}: the distributions of a text's first {short} tokens change by {later:.3g} nats when "
            f"{size - short} more follow (want <= {limit}). As its config.json has it, it is no causal language "
            "model (is_decoder?); take another."
        )


def logits_form(model: Any) -> tuple[float, float]:
    """(scale, soft cap) between the lm_head's output and the logits; 1 and 0 where a model has none."""
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, float(cap or 0.0)


def _logits_function(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    head, (scale, cap) = model.get_output_embeddings(), logits_form(model)

    def logits(hidden_CD: torch.Tensor) -> torch.Tensor:
        out = head(hidden_CD).float()
        if scale != 1.0:
            out = out * scale
        return torch.tanh(out / cap) * cap if cap else out

    return logits
