"""Whether a model may be led over kept states and how, found by trying; and which way is taken in the end.

Small trees are read over kept states at a small distance, in one go and in rounds, and a deeper one at the distance of real
runs; each is compared with paths. How trees under a mask are tried: engine/teacher/self_check.py.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch

from engine.teacher.cache_rows import rows_of
from engine.teacher.decoder import Decoder
from engine.teacher.gauge import Gauge, agreed
from engine.teacher.kept_states import STATE_BYTES, Leading, StateTrees
from engine.teacher.packing import Window
from engine.teacher.self_check import (
    REFUSALS,
    SHOWN,
    CheckResult,
    choosing,
    cut_down,
    find_masks,
    in_rounds,
    maskings,
    probe,
    small_trees,
)

_SPACING = 5  # tokens between kept states in the small probe
_DEEP_TRUNK = 160  # tokens of the deeper one
LEADINGS = [
    Leading(*ways)
    for ways in (
        (True, True, True),
        (True, True, False),
        (False, True, True),
        (False, True, False),
        (True, False, True),
        (True, False, False),
    )
]
"""Ways over kept states, those of the fewest passes and tokens first."""


def find_way(decoder: Decoder, gauge: Gauge, vocab: int, max_length: int, *, trees: bool = True) -> CheckResult:
    """Try trees (unless they are not wanted), then kept states. gauge: how far two ways may differ."""
    if gauge.noise is not None and _blind(decoder, gauge, vocab, max_length):
        return CheckResult(
            None, False, f"noise of up to {gauge.noise.most:.3g} in total variation would hide a wrong way"
        )
    found = CheckResult(None, False, 'the run file says attention = "states"')
    if trees:
        found = find_masks(decoder, gauge, vocab, max_length)
    if found.decoder is not None and found.most is None:
        return found
    with choosing(decoder, SHOWN):
        leading, gap = find_leading(decoder, gauge, vocab, max_length)
    if found.decoder is not None:
        return replace(found, leading=leading, reuse=leading is not None)
    return replace(found, leading=leading, reuse=leading is not None, gap=gap)


def _blind(decoder: Decoder, gauge: Gauge, vocab: int, max_length: int) -> bool:
    """Whether contexts pass for right that have tokens of other branches in them: then no trial proves anything."""
    small = small_trees(vocab, max_length)
    wrong = [w.token[:max_length] for w in small]
    chains = decoder.chains([Window(t, list(range(-1, len(t) - 1)), list(range(len(t)))) for t in wrong])
    right = [states[:max_length] for states in decoder.paths(small)]
    return gauge.gap(chains, right) <= gauge.limit


def find_leading(decoder: Decoder, gauge: Gauge, vocab: int, max_length: int) -> tuple[Leading | None, float]:
    """The first way over kept states that gives what contexts alone give, in one go and in rounds, and the gap.

    They are tried in their order, until the small trees of one are right to a tenth of the limit, then the first that does not
    differ much more than the best so far is taken: in half precision the limit is wide, and a state that is carried over wrongly
    may hide in it.
    """
    small, gaps = small_trees(vocab, max_length), dict[Leading, float]()
    deep = [probe(vocab, min(_DEEP_TRUNK, max_length), 5)]
    wide = replace(decoder, masking=maskings(decoder.model.config.get_text_config(), max_length)[0])
    with cut_down(wide, max_length) as shown:
        whole = shown.paths(small)
    deep_whole = decoder.paths(deep)

    def proved(leading: Leading) -> tuple[Leading | None, float]:
        tried = replace(leading, spacing=_SPACING)
        try:
            with cut_down(wide, max_length) as shown:
                rounds = [in_rounds(partial(StateTrees, shown, tried), small, extra) for extra in (0, 2)]
                worst = max(gauge.gap(ours, whole) for ours in rounds)
            sized = _sized(decoder, leading)
            worst = max(worst, gauge.gap(StateTrees(decoder, sized, deep).hidden, deep_whole), gaps[leading])
        except REFUSALS:
            return None, math.inf
        return (sized if worst <= gauge.limit else None), worst

    refused = set[Leading]()
    for leading in LEADINGS:
        gaps[leading] = math.inf
        with suppress(*REFUSALS), cut_down(wide, max_length) as shown:
            trees = StateTrees(shown, replace(leading, spacing=_SPACING), small)
            gaps[leading] = gauge.gap(trees.hidden, whole)
        if gaps[leading] > gauge.limit / 10 and leading != LEADINGS[-1]:
            continue
        bound = min(gauge.limit, max(gauge.limit / 10, 4 * min(gaps.values())))
        for earlier, gap in gaps.items():
            if gap <= bound and earlier not in refused:
                found = proved(earlier)
                if found[0] is not None:
                    return found
                refused.add(earlier)
    return None, min(gaps.values())


def _sized(decoder: Decoder, leading: Leading) -> Leading:
    """With what states take on this device, and the room for them."""
    room = STATE_BYTES
    if decoder.device.type == "cuda":
        room = max(room, torch.cuda.get_device_properties(decoder.device).total_memory // 8)
    start = torch.zeros((1, 1), dtype=torch.long, device=decoder.device)
    short, long = (
        sum(row.bytes for row in rows_of(decoder.onward(start.expand(1, length), None, start)[1], length))
        for length in (8, 16)
    )
    token = max(0, (long - short) // 8)
    return agreed(replace(leading, state_bytes=max(0, short - 8 * token), token_bytes=token, room_bytes=room))
