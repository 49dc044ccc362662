"""The teacher model: loaded and checked; token trees in, hidden states and fp32 logits of every node out.

A decoder scores a whole tree in one pass: one token per node, position id = depth, attention to ancestors only
(docs/design.md, section 3). Trees without branches take the plain causal path. A wrong mask gives plausible numbers and
no error, so `load_teacher` scores small trees and the same contexts one by one (engine/teacher/self_check.py), and falls back to
kept states (engine/teacher/kept_states.py), then to `paths` (each branch as its own sequence) when they differ, with the reason
in `why`. The results are the same.

Letters: B sequences, n nodes of one window, D hidden size, C rows of one chunk, V ids of the lm_head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from engine.teacher.decoder import Decoder
from engine.teacher.gauge import Gauge, LogProbs, Noise, noisy_gauge
from engine.teacher.incremental import CachedTrees, IncrementalTrees, RescoredTrees
from engine.teacher.kept_states import Leading, StateTrees
from engine.teacher.loading import load_model, number_format
from engine.teacher.long_trees import long_states, needs_blocks
from engine.teacher.packing import Window
from engine.teacher.quantised import packed
from engine.teacher.self_check import CheckResult, first_line, probe
from engine.teacher.state_check import find_way
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig

_DEFAULT_CONTEXT = 2048
NOT_THE_MODEL = (torch.OutOfMemoryError, MemoryError, getattr(torch, "AcceleratorError", MemoryError))


@dataclass(frozen=True, eq=False)
class Teacher:
    """A loaded causal LM. `attention` is "tree", "states" (engine/teacher/kept_states.py) or "paths"; `max_length` in tokens;
    `end_ids` are its ends of text.

    why: the reason that it is not "tree", empty for that. reuse: whether `open_trees` keeps keys and values, or states, between
    its rounds. gap: by which contexts of the start-up check differ from contexts alone, in nats; where there is noise, as total
    variation. noise: of its kernels, as measured then; None for a plain teacher in float32 (engine/teacher/gauge.py).
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
    noise: Noise | None
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
        for name, t in found.items():
            if not (t.is_floating_point() and type(t) in (torch.Tensor, torch.nn.Parameter, DTensor)):
                raise TeacherError(
                    f"[targets] hidden = true: the {name} of this teacher is quantised and stays packed, so that it cannot be "
                    "stored beside the states. Take a model whose lm_head and embedding are not quantised"
                )
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
    model = load_model(config, path, device, adapter, split)
    if split == "layers":
        device = model.get_output_embeddings().weight.device  # where rows come out
    return _checked(model, device, config, tokenizer_end, Path(path).name)


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
    to_logits = _logits_function(model)
    vocab_rows = head.out_features if packed(model) else head.weight.shape[0]  # a packed matrix has another shape
    numbers, kernel = number_format(model), model.config._attn_implementation
    decoder = Decoder(model, device, config.batch_tokens, kernel=kernel, numbers=numbers)

    def log_probs(hidden: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(to_logits(hidden), -1)

    vocab = min(vocab_rows, 1000)
    with torch.inference_mode():
        gauge = _gauge(decoder, log_probs, vocab, max_length, config, name)
        _check_logits(decoder, gauge, vocab, min(12, max_length), name)
        if config.attention == "paths":
            found = CheckResult(None, False, 'the run file says attention = "paths"')
        else:
            found = find_way(decoder, gauge, vocab, max_length, trees=config.attention != "states")
    way = "tree" if found.decoder is not None else "paths" if found.leading is None else "states"
    if config.attention not in ("auto", way):
        other = (
            f'"states" works here (within {found.gap:.1g} {gauge.unit})'
            if found.leading
            else f'"states" fails ({found.gap:.3g} {gauge.unit})'
        )
        raise TeacherError(
            f'[teacher] {name}: attention = "{config.attention}" is not possible: {found.why}. Want what each context alone '
            f'gives, within {gauge.limit:.3g} {gauge.unit}; {other}; use "auto".'
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
        gauge.noise,
        found.decoder or decoder,
        found.leading,
        found.most,
        to_logits,
    )


def _gauge(
    decoder: Decoder, log_probs: LogProbs, vocab: int, max_length: int, config: TeacherConfig, name: str
) -> Gauge:
    """How ways are compared. Raises TeacherError where the noise is above what the run file allows."""
    method, numbers = packed(decoder.model), decoder.numbers
    if not method and numbers == torch.float32:
        return Gauge(log_probs)
    try:
        gauge = noisy_gauge(decoder, log_probs, vocab, max_length)
    except (TeacherError, *NOT_THE_MODEL):
        raise
    except Exception as error:  # code of every architecture there is: it may raise anything
        raise _not_scored(error, name, "a batch of plain sequences of token ids") from error
    noise = gauge.noise
    assert noise is not None
    if noise.mean > config.max_noise:
        what = f"weights quantised by {method}" if method else f"numbers in {str(numbers).removeprefix('torch.')}"
        raise TeacherError(
            f"[teacher] {name}: its distributions hang on what else is in a batch: the same contexts differ by {noise.mean:.3g} "
            f"in total variation on average (at most {noise.most:.3g}), want <= {config.max_noise:g} ([teacher] max_noise). This "
            f"comes of {what}. {_quieter(method)}, or set max_noise = {_above(noise.mean)} if such targets are good enough."
        )
    return gauge


def _quieter(method: str) -> str:
    if not method:
        return 'Take dtype = "float32"'
    if method == "bitsandbytes":
        return (
            "Take the model unquantised or as NF4, or write llm_int8_threshold = 0.0 into the quantization_config of its "
            "config.json: columns of large activations are else chosen by all that is in a batch"
        )
    return "Take the model unquantised, or with only its weights quantised"


def _above(noise: float) -> float:
    """A round number above it."""
    step = 10.0 ** math.floor(math.log10(noise))
    return round((math.floor(noise / step) + 1) * step, 9)


def _not_scored(error: Exception, name: str, what: str) -> TeacherError:
    return TeacherError(
        f"[teacher] {name}: {what} cannot be scored: {first_line(error)}. Want a causal language model that needs nothing but "
        "token ids; check its config.json, or take another teacher."
    )


def _check_logits(decoder: Decoder, gauge: Gauge, vocab: int, size: int, name: str) -> None:
    """The last hidden state, through the head as this file knows it, gives the model's own log-probabilities, and those of a
    token do not depend on what follows it. Raises TeacherError: they do not, or the model cannot be run so at all."""
    chain = probe(vocab, size, 0)
    token = chain.token[:size]
    trunk = Window(token, chain.parent[:size], chain.depth[:size])
    short = max(1, size // 2)
    given = torch.tensor([token], device=decoder.device)
    try:
        theirs = torch.log_softmax(decoder.model(input_ids=given).logits[0].float(), -1)
        ours = gauge.log_probs(decoder.chains([trunk])[0])
        alone = gauge.log_probs(decoder.chains([Window(token[:short], chain.parent[:short], chain.depth[:short])])[0])
        gap, later = gauge.apart(ours, theirs), gauge.apart(ours[:short], alone)
    except TeacherError as error:
        raise TeacherError(f"[teacher] {name}: {error}") from error
    except NOT_THE_MODEL:
        raise
    except Exception as error:  # code of every architecture there is: it may raise anything
        raise _not_scored(error, name, f"a plain sequence of {size} token ids") from error
    if not gap <= gauge.limit:
        raise TeacherError(
            f"[teacher] {name}: log-probabilities made from the last hidden state differ from the model's own by {gap:.3g} "
            f"{gauge.unit} (want <= {gauge.limit:.3g}). This architecture changes its logits in a way that is not known; report "
            "it with its config.json."
        )
    if not later <= gauge.limit:
        raise TeacherError(
            f"[teacher] {name}: the distributions of a text's first {short} tokens change by {later:.3g} {gauge.unit} "
            f"when {size - short} more follow (want <= {gauge.limit:.3g}). As its config.json has it, it is no causal language "
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
