"""Truth first, exact regimes: subset students and bytes on random toy tokenizers against brute force.

The twin enumerates contexts by encoding texts with the tokenizers library, expands every leaf token by token with the
student's own BPE, and adds up. TARGETSMITH_EFFORT=n multiplies the number of random cases by n.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import engine.teacher.group
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import BadDocument
from schemas.products import BYTES_END
from schemas.target import FLAG_EXACT
from tests.support.oracle import contexts_of, truth, with_all_bytes
from tests.support.pairs import (
    BYTES,
    STUDENT,
    Case,
    Pair,
    added_bytes,
    cases,
    lacking_pair,
    path_of,
    stored,
    subset_pair,
)
from tests.support.toys import TableTeacher, random_text
from tests.support.vocabularies import EFFORT


def spell(case: Case, token: int, product: str) -> tuple[int, ...]:
    """One teacher token in units, by the tokenizers library alone."""
    teacher, student = case.pair.teacher, case.pair.student
    piece = teacher.token_bytes[token] or b""
    text = {i: text for text, i in teacher.added_text.items()}.get(token)
    if product == STUDENT and text is not None:
        return (student.added_text[text],) if text in student.added_text else ()
    if product == BYTES:
        return tuple(piece)
    if token in teacher.fallback_ids:
        return (student.byte_tokens[piece[0]],)
    # a token that merges make is made of merges in the student, too; a whole word may be one there
    whole = teacher.bpe(piece, whole=False) != [token]
    return tuple(student.bpe(piece, whole=whole))


def is_apart(case: Case, token: int) -> bool:
    """Whether a token is an added text of the teacher that the student lacks: no text, for a subset student."""
    text = {i: text for text, i in case.pair.teacher.added_text.items()}.get(token)
    return case.pair.subset and text is not None and text not in case.pair.student.added_text


def all_contexts(teacher: Vocabulary, case: Case, chars: tuple[str, ...] | None = None) -> set[tuple[int, ...]]:
    """Contexts at every byte of the case's text, by encoding texts that go on with these characters."""
    found = contexts_of(teacher, case.text, chars or case.pair.chars)[0]
    return {c for contexts in found.values() for c in contexts}


def brute(case: Case, product: str) -> list[tuple[np.ndarray, float] | None]:
    """Per row: (mass per unit, mass on other specials), None before the given token."""
    teacher, table = case.pair.teacher, case.table
    size = BYTES_END + 1 if product == BYTES else case.pair.student.size
    end = BYTES_END if product == BYTES else case.pair.student.eos_id
    prefix = teacher.prefix_bytes
    if product == BYTES:
        units, skip = tuple(prefix + case.text.encode()), len(prefix)
    else:
        units, skip = tuple(case.pair.student.encode(case.text)[0]), 0
    found = all_contexts(teacher, case)
    given = () if case.bos else tuple(teacher.encode(case.text)[0][:1])
    first = sum(len(spell(case, t, product)) for t in given)
    rows = [(np.zeros(size), [0.0]) for _ in range(len(units) + 1)]
    for context in found:
        if context[: len(given)] != given:
            continue
        if product == STUDENT and any(is_apart(case, t) for t in context):
            continue  # no text for this student
        behind = tuple(u for t in context for u in spell(case, t, product))
        j = len(behind)
        if behind != units[:j]:
            continue
        weight = sum(table.logp(context[:i])[context[i]] for i in range(len(given), len(context)))
        for token, p in enumerate(np.exp(weight + table.logp(context)).tolist()):
            if p == 0:
                continue
            if teacher.token_bytes[token] is None or (product == STUDENT and is_apart(case, token)):
                mass, other = rows[j]
                if teacher.specials.get(token) == "eos":
                    mass[end] += p
                else:
                    other[0] += p
                continue
            after = spell(case, token, product)
            for k in range(j, j + len(after)):
                if k > len(units) or after[: k - j] != units[j:k]:
                    break
                rows[k][0][after[k - j]] += p
    return [None if k < first else (mass, other[0]) for k, (mass, other) in enumerate(rows)][skip:]


@pytest.mark.parametrize(
    ("make_pair", "seed"),
    [(subset_pair, s) for s in range(2 * EFFORT)]
    + [(added_bytes, s) for s in range(1 * EFFORT)]
    + [(lacking_pair, s) for s in range(1 * EFFORT)],
)
def test_subset_and_byte_rows_are_what_brute_force_says(
    make_pair: Callable[[random.Random, Path], Pair], seed: int, tmp_path: Path
) -> None:
    """q, gold, excluded share of 110 documents a seed, for both products."""
    scored = documents = alien = 0
    for case in cases(random.Random(seed), tmp_path, 110, make_pair):
        teacher, tree = case.pair.teacher, case.doc.tree
        nodes = {path_of(tree, node, teacher) for node in range(tree.given, len(tree.token))}
        if not nodes <= all_contexts(teacher, case):  # canonical only before characters that the alphabet lacks
            reader = with_all_bytes(teacher, tmp_path / f"any-{alien}")
            chars = (*case.pair.chars, *(c for c in "z9.'\n\u0085" if c not in case.pair.chars))
            assert nodes <= all_contexts(reader, case, chars), str(case)
            alien += 1
            continue
        everything = case.pair.emit([case.doc], case.table)
        documents += 1
        for product in (STUDENT, BYTES) if case.pair.subset else (BYTES,):
            rows, gold = everything[product], case.doc.views[product].ids
            for k, target in enumerate(brute(case, product)):
                total = 0.0 if target is None else target[0].sum()
                assert bool(rows.scored[k]) == (total > 0), (str(case), product, k)
                if target is None or total == 0:
                    continue
                q = stored(rows, k, len(target[0]))
                np.testing.assert_allclose(q, target[0] / total, rtol=0, atol=1e-9, err_msg=f"{case} {product} {k}")
                assert q.sum() + np.exp(rows.tail_logp[k]) == pytest.approx(1, abs=1e-12)
                assert np.exp(rows.gold_logp[k]) == pytest.approx(q[gold[k]], abs=1e-12)
                assert rows.excluded_mass[k] == pytest.approx(target[1] / (total + target[1]), abs=1e-9)
                assert rows.err[k] == rows.open_mass[k] == rows.pruned_mass[k] == 0
                assert rows.flags[k] & FLAG_EXACT
                scored += 1
    assert documents >= 100 and scored > 500 and alien <= 10


def test_the_truth_of_whole_texts(tmp_path: Path):
    """Against the definition itself, over whole texts of a teacher that writes canonical text only."""
    rng, checked = random.Random(5), 0
    for number in range(25 * EFFORT):
        pair = subset_pair(rng, tmp_path)
        table = TableTeacher(pair.teacher, pair.chars, number, masked=True, sharp=5.0)
        text = table.sample(rng, 6)
        assert pair.teacher.bos_id is not None
        if not text:
            continue
        try:
            doc = pair.prepare(text, (pair.teacher.bos_id,))
        except BadDocument:
            continue
        rows = pair.emit([doc], table)[STUDENT]
        for k in range(rows.start[1]):
            bounds = truth(pair.student, table, text, k, budget=300, slack=0.02)
            if bounds is None or not rows.scored[k]:
                continue
            q = stored(rows, k, pair.student.size)
            assert (q >= bounds[0] - 1e-9).all() and (q <= bounds[1] + 1e-9).all(), (text, k, pair.teacher.name)
            checked += 1
    assert checked >= 6 * EFFORT


@pytest.mark.parametrize("masked", [False, True])
def test_bytes_multiply_to_the_probability_of_a_text(masked: bool, tmp_path: Path):
    """The gold bytes' probabilities multiply to the probability of the text, and so do the student's tokens: one number,
    however it is cut. Exact for a teacher that writes canonical text only, and for any teacher under `canonical-masked`."""
    rng, compared = random.Random(6), 0
    for _ in range(10 * EFFORT):
        pair = dataclasses.replace(subset_pair(rng, tmp_path), masked=masked)
        table = TableTeacher(pair.teacher, pair.chars, rng.randrange(1 << 30), masked=not masked, order=2)
        assert pair.teacher.bos_id is not None
        for _ in range(6):
            text = random_text(rng, pair.chars, 10) if masked else table.sample(rng, 10)
            if not text or pair.teacher.prefix_bytes:
                continue
            try:
                doc = pair.prepare(text, (pair.teacher.bos_id,))
            except BadDocument:
                continue
            rows = pair.emit([doc], table)
            sums = {}
            for product in ("teacher", STUDENT, BYTES):  # a row is conditioned on no other special being next
                sums[product] = (rows[product].gold_logp + np.log1p(-rows[product].excluded_mass)).sum()
            assert sums[BYTES] == pytest.approx(sums["teacher"], abs=1e-9), (text, pair.teacher.name)
            assert sums[STUDENT] == pytest.approx(sums["teacher"], abs=1e-9), (text, pair.teacher.name)
            compared += 1
    assert compared > 25 * EFFORT


def test_chunks_do_not_change_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Several documents at once, in chunks of one to a few contexts, give the rows of each document alone."""
    found = list(cases(random.Random(8), tmp_path, 24, subset_pair, texts=6))
    for begin in range(0, 24, 6):
        group = [c for c in found[begin : begin + 6] if c.pair is found[begin].pair]
        alone = [c.pair.emit([c.doc], c.table) for c in group]
        for cells in (1, 3 * group[0].pair.teacher.size):
            monkeypatch.setattr(engine.teacher.group, "CELLS_AT_ONCE", cells)
            together = group[0].pair.emit([c.doc for c in group], group[0].table)
            for product in (STUDENT, BYTES):
                rows = together[product]
                for i, single in enumerate(alone):
                    span = slice(rows.start[i], rows.start[i + 1])
                    np.testing.assert_array_equal(rows.ids[span], single[product].ids)
                    np.testing.assert_allclose(rows.logps[span], single[product].logps, atol=1e-12)
