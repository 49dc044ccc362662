"""The two readings of the same probes: ways of a given text, and ways of a pending part, are one where no text is added."""

from __future__ import annotations

import pytest

from engine.bpe.continuations import Way, Ways, units_of_tokens
from engine.bpe.pending import PendingCuts, cut_text
from tests.support.tiers import usual
from tests.support.vocabularies import EFFORT, needs_shared, splitter, texts, vocabulary

SPACES = (
    "if x:\n    y  z\n\n\n   w \t\t q",
    "   it's  12 345 \r\n  ''ll",
    "\n \n\n  a",
    "  \u3000 x    y",
)  # look-ahead decides


@needs_shared
@pytest.mark.parametrize("name", usual(["gpt2", "llama-3", "qwen2.5-subset-8000"]))
def test_ways_of_pending_parts(name: str) -> None:
    vocab, cuts = vocabulary(name), splitter(name)
    assert not cuts.added or name.startswith("qwen")
    pending = PendingCuts(vocab, cuts)
    ways = Ways(cuts, tuple(sorted({cuts.disown(u) for u in units_of_tokens(vocab, cuts)})))
    several = compared = 0
    for text in (*SPACES, *texts()[:: max(1, 60 // EFFORT)]):
        data = text[:200].encode()
        cut = cut_text(cuts, data)
        places = [int(p) for p in cut.byte_of[1:]]
        for place, (start, unit, _) in zip(places, cut.pendings(places), strict=True):
            if start == unit or any(a in text for a in cuts.added):
                continue
            ours = pending.ways(cut, place, start, unit)
            theirs = ways.all_of(cut.units[start:unit])
            whole = {Way(tuple(c - start for c in w.cuts), True, False) for w in ours if w.may_end}
            grown = {Way(tuple(c - start for c in w.cuts), False, False) for w in ours if w.may_go_on}
            assert whole | grown == theirs, (text, place)
            several, compared = several + (len(ours) > 1), compared + 1
    assert compared > 300 and several > 5
