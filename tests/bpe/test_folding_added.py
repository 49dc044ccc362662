"""White space of several kinds where added texts hold white space (runs of spaces, as in GPT-NeoX), against whole strings.

TARGETSMITH_EFFORT=n: n times as many texts. Boundaries: tests/compiled/test_folded_blanks.py.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import engine.contexts.canonical as canonical
from engine.bpe.folding import Folded, Runs, unfold
from engine.bpe.pending import PendingCuts, cut_text
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter, build_segmenter
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext
from schemas.errors import BadDocument
from tests.bpe.test_folding import whole
from tests.support.blanks import CASES, NEOX, mixed, tokenizer_of
from tests.support.vocabularies import EFFORT


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_cuts_are_those_of_whole_strings(case: tuple[str, str], tmp_path: Path) -> None:
    """Where what is pending begins, and all ways to cut it."""
    vocab, rng, shorter = tokenizer_of(case, tmp_path), random.Random("".join(case)), 0
    short, full = build_splitter(vocab), whole(build_splitter(vocab))
    ours, twin = PendingCuts(vocab, short), PendingCuts(vocab, full)
    for _ in range(10 * EFFORT):
        data = mixed(rng, 30).encode()
        cut, slow = cut_text(short, data), cut_text(full, data)
        places = sorted({*rng.choices(range(len(data) + 1), k=12), len(data)})
        for place, part, other in zip(places, cut.parts(places), slow.parts(places), strict=True):
            assert part[:3] == other[:3]
            mine = ours.ways(cut, place, part.start, part.unit, part.left)
            assert sorted(mine) == sorted(twin.ways(slow, place, other.start, other.unit)), (data, place)
            shorter += len(part.left) < len(other.left)
    assert shorter > 0


def test_places_around_what_is_still_coming(tmp_path: Path) -> None:
    """Behind a stretch that was cut short in two places stands the beginning of an added text, which is there as it is."""
    splitter = build_splitter(tokenizer_of(("long ones", "llama3"), tmp_path))
    text = "\t \t" * 12 + "\n" + "\t \t" * 12 + "\n" * 11
    cut = cut_text(splitter, text.encode())
    (part,) = cut.parts([len(text)])
    runs, kept = Runs(splitter, np.array([ord(u) for u in cut.units])), splitter.kept_run
    assert part.start == 0 and len(part.left) == 2 * kept + 12
    for unit in (*range(kept // 2), 36, 37, 38, *range(72, len(text) + 1)):
        place = Folded(splitter, part.left, 0, len(text), runs).place(unit)
        assert place is not None and unfold(splitter, part.left, (place,), 0, len(text), runs) == (unit,)


@pytest.mark.parametrize("case", [*CASES[:-1], pytest.param(NEOX, marks=pytest.mark.thorough)], ids=" ".join)
def test_states_of_contexts(case: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees, and which tokens keep their contexts canonical, by both ways to know what a context's tokens agree with."""
    vocab, rng, seen = tokenizer_of(case, tmp_path), random.Random("".join(case)), 0
    table = build_segmenter(vocab).merges
    short, full = (Segmenter(vocab, table, make(build_splitter(vocab))) for make in (lambda s: s, whole))
    ours, twin, grown, slow = CanonicalNext(short), CanonicalNext(full), ContextBuilder(short), ContextBuilder(full)
    for _ in range(2 * EFFORT):
        text = mixed(rng, 12)
        try:
            ids = list(vocab.encode(text)[0])
        except BadDocument:  # changed
            continue
        data = vocab.prefix_bytes + text.encode()
        wanted = sorted(rng.sample(range(len(data) + 1), min(len(data), 10)))
        trees = [make.build(data, ids, wanted, ()) for make in (grown, slow)]
        for field in ("token", "parent", "end", "at_node", "at_start", "fringe_node", "fringe_token"):
            np.testing.assert_array_equal(getattr(trees[0], field), getattr(trees[1], field), err_msg=field)
        for long_bytes in (0, 1 << 30):
            monkeypatch.setattr(canonical, "LONG_BYTES", long_bytes)
            mine = ours.states(trees[0], data)
            monkeypatch.setattr(canonical, "LONG_BYTES", 1 << 30)
            pairs = list(dict.fromkeys(zip(mine, twin.states(trees[1], data), strict=True)))
            assert all((state is None) == (other is None) for state, other in pairs)
            for state, other in rng.sample(pairs, min(len(pairs), 3 if case == NEOX else 30)):  # walks over all ids
                if state is not None and other is not None:
                    np.testing.assert_array_equal(ours.illegal(state), twin.illegal(other))
                    seen += 1
    assert seen > 5
