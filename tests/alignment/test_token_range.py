"""A range with text put before it equals the range built from scratch; partial characters; NFC."""

from __future__ import annotations

import numpy as np
import pytest

from engine.alignment.rules import TeacherTokens
from engine.alignment.token_range import FollowedRange, TokenRange
from engine.bpe.nfc import may_compose
from engine.bpe.segmenter import build_segmenter
from tests.support.tiers import usual
from tests.support.vocabularies import needs_shared, vocabulary

FOLLOWED = [b" ", b"1", b"12", b" w", b"'", b"don", b" nghi", b" vi", b"\n", b"\n\n", b"a b", "é".encode(), b"  "]
LEFT = ["", " hel", "1", "'", "  ", "don"]


@needs_shared
@pytest.mark.parametrize("student", usual(["gpt2", "llama-2", "llama-3", "mistral-v0.3", "smollm2"]))
def test_followed_range_equals_the_range_built_from_scratch(student: str) -> None:
    """Cuts, certainty and first tokens, for every y and left side: the fast construction against the obvious one."""
    teacher, chosen = TeacherTokens(vocabulary("qwen2.5-subset-8000")), vocabulary(student)
    segmenter = build_segmenter(chosen)
    pick = np.random.default_rng(0).choice(len(teacher.ids), 1500, replace=False)
    pieces, ids = [teacher.pieces[i] for i in pick], teacher.ids[pick]
    base = TokenRange(segmenter, ids, pieces)
    for y in FOLLOWED:
        slow, fast = TokenRange(segmenter, ids, [y + p for p in pieces]), FollowedRange(base, y)
        for text in LEFT:
            left = segmenter.splitter.reduce(segmenter.splitter.canonical(segmenter.splitter.classes(text.encode())))
            want, got = slow.cuts(left), fast.cuts(left)
            for a, b in zip(want[:3], got[:3], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{y!r} after {text!r}")
            assert [want[4][v] for v in want[3]] == [got[4][v] for v in got[3]]
            for kind, stop in {(int(k), int(s)) for k, s in zip(want[0], want[1], strict=True)}:
                where = np.flatnonzero((want[0] == kind) & (want[1] == stop))
                np.testing.assert_array_equal(
                    slow.first_tokens(kind, stop, where),
                    fast.first_tokens(kind, stop, where),
                    err_msg=f"{y!r} {kind} {stop}",
                )


def test_what_normalisation_may_touch() -> None:
    """Combining marks, characters that NFC replaces, Hangul parts: not certain. Plain text and closed characters: certain."""
    touched = ["\u0301", "e\u0301", "\u212b", "\u1161", "\u09be", "\u0f71"]
    assert all(may_compose(t.encode()) for t in touched)
    assert not any(may_compose(t.encode()) for t in ["plain", "ß", "日本", "ж", "\U0001f600"])
