"""Which way a loaded model may be run, found by trying: a wrong attention mask gives plausible numbers and no error.

Small trees are scored as trees, where that is wrong over kept states, and by paths (plain sequences, the model's own causal
attention), and the largest difference decides (engine/teacher/gauge.py). Sliding windows are tried twice: cut down to a few
tokens, where a window that is wrong by one token shows, and where it is affordable at their real size, where a window that the
model keeps elsewhere would show. Kept states: engine/teacher/state_check.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from engine.teacher.attention_masks import Masking
from engine.teacher.decoder import Decoder
from engine.teacher.gauge import Gauge, agreed
from engine.teacher.incremental import CachedTrees, IncrementalTrees
from engine.teacher.kept_states import Leading
from engine.teacher.long_trees import long_states
from engine.teacher.packing import Window

# what libraries raise when a model or a kernel does not take what it is given (errors of the compiler are RuntimeErrors)
REFUSALS = (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError, ImportError)
_TRUNK = 24  # tokens of the small probe
SHOWN = 6  # tokens of a window that is cut down for the small probe
_BY_THE_MASK = {
    "full_attention",
    "sliding_attention",
    "indexed_attention",
}  # kinds of layers that see what the mask shows
_DEEPEST = {"cpu": 512, "cuda": 8192}  # tokens of context that a start-up check may cost
_OTHER_WINDOWS = (
    "window_size",
    "attention_window",
    "local_attention_window",
)  # names of windows that no mask here knows


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What the trials gave. decoder: ready for trees, None where those are wrong, and `why`. most: tokens of a context up to
    which trees are right, None for any. leading: how it is led over kept states, None where that is not needed or wrong too.
    reuse: rounds may keep keys and values, or states. gap: by which the way that is taken differs from contexts alone, as far as
    it was tried, in the unit of the gauge."""

    decoder: Decoder | None
    reuse: bool
    why: str
    leading: Leading | None = None
    gap: float = 0.0
    most: int | None = None


def find_masks(decoder: Decoder, gauge: Gauge, vocab: int, max_length: int) -> CheckResult:
    """Try the masks that the configuration suggests, for trees."""
    text = decoder.model.config.get_text_config()
    strange = set(getattr(text, "layer_types", None) or ()) - _BY_THE_MASK
    if strange:
        return CheckResult(None, False, f"layers of the kind {', '.join(sorted(strange))}")
    size = getattr(text, "max_position_embeddings", None)
    # kernels of GPTQ and AWQ keep their weights as tables, too: of two dimensions, and of numbers
    tables = [b for b in decoder.model.buffers() if b.ndim > 2 or (b.ndim == 2 and b.dtype == torch.bool)]
    if any(b.shape[-1] == b.shape[-2] == size for b in tables):
        return CheckResult(None, False, f"a fixed table of which of {size} places see which")
    why = ""
    for masking in maskings(text, max_length):
        tried = replace(decoder, masking=masking)
        try:
            with choosing(decoder, max_length):
                gap = max(_gaps(tried, gauge, vocab, max_length))
        except REFUSALS as error:
            why = why or f"mask not accepted: {first_line(error)}"
            continue
        if gap <= gauge.limit:
            tried = _faster(tried, gauge, vocab, max_length)
            tried = replace(tried, blocks=_in_blocks(tried, gauge, vocab, max_length))
            most = _most_tokens(tried, max_length)
            return CheckResult(tried, _grows(tried, gauge, vocab, max_length), "", gap=gap, most=most)
        why = why or f"differs by {gap:.3g} {gauge.unit}"
    return CheckResult(None, False, why)


def _most_tokens(decoder: Decoder, max_length: int) -> int | None:
    """Tokens of a context of which a sparse attention leaves out none; None where no context has more. Beyond them trees choose
    among their ancestors too, but one test was off by 2.3 nats (docs/decisions.md)."""
    fewest = min((getattr(part, name) for part, name in choices(decoder)), default=max_length)
    return fewest if fewest < max_length else None


def choices(decoder: Decoder) -> list[tuple[torch.nn.Module, str]]:
    """Parts of the model that choose tokens to attend to, and the name of how many."""
    return [(part, "index_topk") for part in decoder.model.modules() if isinstance(vars(part).get("index_topk"), int)]


@contextmanager
def choosing(decoder: Decoder, count: int) -> Iterator[None]:
    """As long as it is open, sparse attention chooses so many tokens."""
    before = [(part, name, getattr(part, name)) for part, name in choices(decoder)]
    try:
        for part, name, _ in before:
            setattr(part, name, count)
        yield
    finally:
        for part, name, was in before:
            setattr(part, name, was)


def maskings(text: Any, max_length: int) -> list[Masking]:
    """Candidates for a text configuration, the likeliest first."""
    kinds = getattr(text, "layer_types", None) or ()
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if not window or window >= max_length or (kinds and "sliding_attention" not in kinds):
        return [Masking()]
    single, by_layer = Masking(window), Masking(window, by_layer=True)
    return [by_layer, single] if kinds else [single, by_layer]


def probe(vocab: int, trunk: int, seed: int) -> Window:
    """A fixed little tree: a trunk, and branches of several lengths near its end, in its middle and at its root; none
    is deeper than the trunk (or 2)."""
    parent, depth = list(range(-1, trunk - 1)), list(range(trunk))
    for hang, length in ((trunk - 4, 3), (trunk - 4, 1), (trunk // 2, 4), (0, 2), (trunk * 3 // 4, 2), (trunk, 1)):
        above = hang
        for _ in range(length):
            if 0 <= above < len(parent) and depth[above] + 1 < max(trunk, 2):
                parent.append(above)
                depth.append(depth[above] + 1)
                above = len(parent) - 1
    token = torch.randint(0, vocab, (len(parent),), generator=torch.Generator().manual_seed(seed)).tolist()
    return Window(token, parent, depth)


def small_trees(vocab: int, max_length: int) -> list[Window]:
    """Three trees; the two smaller ones share a row."""
    trunk = min(_TRUNK, max_length)
    return [probe(vocab, max(1, trunk // part), seed) for seed, part in enumerate((1, 3, 4))]


def _gaps(decoder: Decoder, gauge: Gauge, vocab: int, max_length: int) -> Iterator[float]:
    """Differences between trees and paths: the small probe, then the deep one where there are windows."""
    small = small_trees(vocab, max_length)
    with cut_down(decoder, max_length) as shown:
        yield gauge.gap(shown.trees(small), shown.paths(small))
    text = decoder.model.config.get_text_config()
    others = [w for name in _OTHER_WINDOWS if isinstance(w := getattr(text, name, None), int) and w < max_length]
    window = decoder.masking.window
    if window is not None and window <= _DEEPEST.get(decoder.device.type, 0):
        others.append(window)
    if others:
        deep = [probe(vocab, min(max(others) + _TRUNK, max_length), 3)]
        yield gauge.gap(decoder.trees(deep), decoder.paths(deep))


@contextmanager
def cut_down(decoder: Decoder, max_length: int) -> Iterator[Decoder]:
    """The decoder with its sliding windows and chunks cut down, in the model's configuration too: the masks of its plain
    sequences are made from there at each pass."""
    text, window = decoder.model.config.get_text_config(), decoder.masking.window
    small = min(SHOWN, max(1, max_length // 2))
    sizes = {} if window is None else {"sliding_window": window}
    if isinstance(chunk := getattr(text, "attention_chunk_size", None), int) and chunk > small:
        sizes["attention_chunk_size"] = chunk
    try:
        for name, size in sizes.items():
            setattr(text, name, min(size, small))
        yield (
            decoder if window is None else replace(decoder, masking=replace(decoder.masking, window=min(window, small)))
        )
    finally:
        for name, size in sizes.items():
            setattr(text, name, size)


def _grows(decoder: Decoder, gauge: Gauge, vocab: int, max_length: int) -> bool:
    """Whether rounds over a cache give what one pass gives; the first round once with branches and once without."""
    small = small_trees(vocab, max_length)
    try:
        with cut_down(decoder, max_length) as shown:
            whole = shown.trees(small)
            for extra in (0, 2):
                if not gauge.gap(in_rounds(partial(CachedTrees, shown), small, extra), whole) <= gauge.limit:
                    return False
    except REFUSALS:
        return False
    return True


def in_rounds(
    open_trees: Callable[[list[Window]], IncrementalTrees], windows: list[Window], extra: int
) -> list[torch.Tensor]:
    """Hidden states of windows whose first part comes in one round and the rest in another."""
    trunks = [min(max(w.depth) // 2 + 1 + extra * 6, len(w.token)) for w in windows]
    rounds = open_trees([_part(w, 0, at) for w, at in zip(windows, trunks, strict=True)])
    first = rounds.hidden
    rest = rounds.add([_part(w, at, len(w.token)) for w, at in zip(windows, trunks, strict=True)])
    return [torch.cat(pair) for pair in zip(first, rest, strict=True)]


def _in_blocks(decoder: Decoder, gauge: Gauge, vocab: int, max_length: int) -> bool:
    """Whether a window read block by block gives what one pass gives: in one block of branches, and in many."""
    small = small_trees(vocab, max_length)
    try:
        with cut_down(decoder, max_length) as shown:
            whole = shown.trees(small)
            found = [[long_states(shown, w, cells) for w in small] for cells in (1 << 20, 256)]
    except REFUSALS:
        return False
    return all(gauge.gap(parts, whole) <= gauge.limit for parts in found)


def _part(window: Window, begin: int, end: int) -> Window:
    return Window(window.token[begin:end], window.parent[begin:end], window.depth[begin:end])


def _faster(decoder: Decoder, gauge: Gauge, vocab: int, max_length: int) -> Decoder:
    """FlexAttention where it is right and faster on this GPU: both are timed on one tree."""
    if decoder.device.type != "cuda" or not getattr(decoder.model, "_supports_flex_attn", False):
        return decoder
    flex = replace(decoder, kernel="flex_attention")
    trunk = min(1024, max_length)
    chain = probe(vocab, trunk, 4)
    branches = range(trunk - 1)  # one node beside every token of the trunk
    tree = Window(
        np.concatenate([chain.token[:trunk], chain.token[: len(branches)]]),
        np.concatenate([chain.parent[:trunk], branches]),
        np.concatenate([chain.depth[:trunk], [n + 1 for n in branches]]),
    )
    try:
        if not max(_gaps(flex, gauge, vocab, max_length)) <= gauge.limit:
            return decoder
        return flex if agreed(_seconds(flex, tree) < _seconds(decoder, tree)) else decoder
    except REFUSALS:
        return decoder


def _seconds(decoder: Decoder, tree: Window) -> float:
    times = []
    for _ in range(4):  # the first one compiles
        torch.cuda.synchronize()
        begin = time.perf_counter()
        decoder.trees([tree])
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def first_line(error: BaseException) -> str:
    """What an error says first; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
