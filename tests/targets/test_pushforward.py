"""Truth first: the real pipeline on random toy tokenizers against brute force (tests/support/oracle.py).

TARGETSMITH_EFFORT=n multiplies the number of random cases by n.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import engine.targets.pushforward
import engine.teacher.group
from engine.targets.positions import TopK
from schemas.errors import BadDocument
from schemas.target import FLAG_EXACT
from tests.support.beams import score
from tests.support.oracle import encode_closed, evaluated, targets, truth, with_all_bytes
from tests.support.pairs import STUDENT, Pair, added_pair, cases, path_of, random_pair
from tests.support.toys import (
    BYTE_LEVEL,
    SENTENCEPIECE,
    TableTeacher,
    added_texts,
    completions,
    random_text,
    strings,
    toy,
)
from tests.support.vocabularies import EFFORT


def probabilities(rows: TopK, at: int, size: int) -> np.ndarray:
    """The stored row as a vector; everything is in the top-k here."""
    q = np.zeros(size)
    here = rows.ids[at] >= 0
    q[rows.ids[at][here]] = np.exp(rows.logps[at][here])
    assert np.exp(rows.tail_logp[at]) < 1e-12
    return q


@pytest.mark.parametrize(
    ("make_pair", "seed"), [(random_pair, s) for s in range(2 * EFFORT)] + [(added_pair, s) for s in range(2 * EFFORT)]
)
def test_rows_are_what_brute_force_says(make_pair: Callable[..., Pair], seed: int, tmp_path: Path) -> None:
    """q, gold, tail, excluded share and the pruned bound of 100 cases per seed, against encoding every leaf for real."""
    scored = alien = 0
    for case in cases(random.Random(seed), tmp_path, 100, make_pair):
        pair, rows = case.pair, case.pair.emit([case.doc], case.table)[STUDENT]
        ids, ends = pair.student.encode(case.text)
        shift = len(pair.teacher.prefix_bytes)
        given = () if case.bos else tuple(pair.teacher.encode(case.text)[0][:1])
        every = range(shift, shift + len(case.text.encode()) + 1)
        wanted = every if case.every_byte else [shift, *(e + shift for e in ends)]
        tree = case.doc.tree
        nodes = {path_of(tree, node, pair.teacher) for node in range(tree.given, len(tree.token))}
        chosen = evaluated(pair.teacher, case.text, pair.chars, given, list(wanted))[0]
        assert chosen <= nodes, case
        if (
            chosen != nodes
        ):  # canonical only before characters that the alphabet lacks (its one letter always merges, say)
            reader = with_all_bytes(pair.teacher, tmp_path / f"any-{alien}")
            chars = (*pair.chars, *(c for c in "z9.'\n" if c not in pair.chars))
            assert nodes <= evaluated(reader, case.text, chars, given, list(wanted))[0], case
            alien += 1
            continue
        brute = targets(pair.teacher, pair.student, case.table, case.text, case.bos, every_byte=case.every_byte)
        for k, target in enumerate(brute):
            total = 0.0 if target is None else target.mass.sum()
            assert bool(rows.scored[k]) == (total > 0), (str(case), k)
            if target is None or total == 0:
                continue
            q = probabilities(rows, k, pair.student.size)
            assert abs(q.sum() + np.exp(rows.tail_logp[k]) - 1) < 1e-12
            np.testing.assert_allclose(q, target.mass / total, rtol=0, atol=1e-9, err_msg=f"{case} k {k}")
            gold = ids[k] if k < len(ids) else pair.student.eos_id
            assert np.exp(rows.gold_logp[k]) == pytest.approx(q[gold], abs=1e-12)
            live, pruned = total + target.excluded, float(rows.pruned_mass[k])
            assert rows.excluded_mass[k] == pytest.approx(target.excluded / live * (1 - pruned), abs=1e-9), (
                str(case),
                k,
            )
            if pruned < 1 - 1e-9:
                assert pruned / (1 - pruned) * live >= target.missed - 1e-12, (str(case), k)
            if case.every_byte:
                assert pruned == 0 == target.missed
            scored += 1
    assert scored > 400 and alien <= 20


def test_the_pruned_bound_holds_where_it_is_not_trivial(tmp_path: Path):
    """Students with long tokens leave many teacher contexts unevaluated; their leaves never hold more than the bound."""
    rng, seen = random.Random(7), 0
    for number in range(50 * EFFORT):
        chars = ("a", "b", " ") if number % 2 else ("a", " ", "\u00e9")
        sides = [
            toy(
                rng, tmp_path / f"{number}-{i}", rng.choice(("none", "none", "gpt2")), chars, whole=False, merges=merges
            )
            for i, merges in enumerate((24, 24))
        ]
        pair = Pair(sides[0], sides[1], chars)
        table = TableTeacher(pair.teacher, chars, number, masked=True)
        text = table.sample(rng, 10)
        if not text:
            continue
        assert pair.teacher.bos_id is not None
        bos = (pair.teacher.bos_id,)
        rows = pair.emit([pair.prepare(text, bos)], table)[STUDENT]
        full = pair.emit([pair.prepare(text, bos, every_byte=True)], table)[STUDENT]
        for k, target in enumerate(targets(pair.teacher, pair.student, table, text, bos)):
            assert full.pruned_mass[k] == 0
            if target is not None and rows.scored[k]:
                pruned, live = float(rows.pruned_mass[k]), target.mass.sum() + target.excluded
                assert pruned / (1 - pruned) * live >= target.missed - 1e-12, (text, k)
                seen += target.missed > 0
    assert seen >= 3 * EFFORT


@pytest.mark.parametrize("seed", range(EFFORT))
def test_what_is_decided_never_changes(seed: int, tmp_path: Path):
    """A decided leaf has the same first token (or no boundary) however the text goes on, by up to three characters."""
    checked = open_ = 0
    for case in cases(random.Random(1000 + seed), tmp_path, 60, random_pair, masked=0.0, texts=4):
        pair, table = case.pair, case.table
        ids = pair.student.encode(case.text)[0]
        tails = [t.encode() for t in strings(pair.chars, 3 if len(pair.chars) < 4 else 2)]
        boundaries = case.doc.views[STUDENT].boundaries
        assert boundaries is not None
        for k, boundary in enumerate(boundaries):
            claims: dict[bytes, int] = {}
            for node, rule in boundary.leaves:
                here = table.bytes_of(path_of(case.doc.tree, node, pair.teacher))
                tokens, first, is_open, _ = pair.aligner.book.resolved(rule, boundary.last)
                for token, answer, undecided in zip(tokens.tolist(), first.tolist(), is_open.tolist(), strict=True):
                    open_ += undecided
                    if not undecided and token in table.usable:
                        full = here + (pair.teacher.token_bytes[token] or b"")
                        claims[full[len(pair.teacher.prefix_bytes) :]] = answer
            for text, answer in claims.items():
                for whole in completions(text, table.two_bytes):
                    for tail in tails:
                        got = encode_closed(pair.student, whole + tail)
                        begins = got[k] if got[:k] == ids[:k] and len(got) > k else -1
                        assert begins == answer, (str(case), k, text, whole + tail, answer, begins)
                        checked += 1
    assert checked > 5_000 and open_ > 500


@pytest.mark.parametrize("added", [False, True])
def test_the_certificate_holds_the_truth(
    added: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Truth by enumerating whole texts of a masked teacher: inside the certified interval for every student token, at
    depth 0 and when leaves are split. added: both tokenizers have added texts, such that one may begin, end or lie in another."""
    rng, distances, widths, beamed, positions = random.Random(3), [], [], [], 0
    for number in range((60 if added else 30) * EFFORT):
        chars = rng.choice(
            (("a", "b"), ("a", " "), ("a", "b", " "), ("a", " ", "1"), ("a", " ", "\u00e9"), ("'", "s", " "))
        )
        styles = [rng.choice(BYTE_LEVEL + SENTENCEPIECE[:1]) for _ in range(2)]
        sides = [
            toy(
                rng,
                tmp_path / f"{number}-{i}",
                style,
                (*chars, " "),
                whole=rng.random() < 0.3,
                merges=rng.randint(2, 6),
                added=added_texts(rng, chars) if added and style != "prepend" else (),
            )
            for i, style in enumerate(styles)
        ]
        pair = Pair(sides[0], sides[1], tuple(sorted({*chars, " "})))
        table = TableTeacher(pair.teacher, pair.chars, number, masked=True, sharp=5.0)
        text = table.sample(rng, 6)
        if not text:
            continue
        assert pair.teacher.bos_id is not None
        try:
            doc = pair.prepare(text, (pair.teacher.bos_id,))
        except BadDocument:
            continue
        rows, boundaries = pair.emit([doc], table)[STUDENT], doc.views[STUDENT].boundaries
        beam = score(pair, [doc], table, budget=4, tolerance=0.01).rows[STUDENT]
        brute = targets(pair.teacher, pair.student, table, text, (pair.teacher.bos_id,))
        assert boundaries is not None
        for k, target in enumerate(brute):
            bounds = truth(pair.student, table, text, k, budget=300, slack=0.02)
            if bounds is None or target is None or not rows.scored[k]:
                continue
            low, high = bounds
            is_open = {}
            for node, rule in boundaries[k].leaves:
                path = path_of(doc.tree, node, pair.teacher)
                tokens, _, undecided, _ = pair.aligner.book.resolved(rule, boundaries[k].last)
                is_open |= {(path, t): u for t, u in zip(tokens.tolist(), undecided.tolist(), strict=True)}
            live = target.mass.sum() + target.excluded
            pruned = float(rows.pruned_mass[k])
            loose = pruned / (1 - pruned) * live if pruned < 1 else np.inf
            decided = np.zeros(pair.student.size)
            for leaf in target.leaves:
                if is_open.get((leaf.context, leaf.token), False):
                    loose += leaf.mass
                elif leaf.first is not None:
                    decided[leaf.first] += leaf.mass
            whole = decided.sum() + loose
            floor, ceiling = decided / whole, (decided + loose) / whole
            q = probabilities(rows, k, pair.student.size)
            where = f"{text!r} k {k} teacher {pair.teacher.name} student {pair.student.name}"
            assert rows.err[k] == pytest.approx(loose / whole, abs=1e-9), where
            assert (low <= ceiling + 1e-9).all() and (floor <= high + 1e-9).all(), where
            assert (floor <= q + 1e-9).all() and (q <= ceiling + 1e-9).all(), where
            assert (abs(q - (low + high) / 2) <= rows.err[k] + (high - low) / 2 + 1e-9).all(), where
            distances.append(abs(q - low / low.sum()).sum() / 2)
            if beam.scored[k]:
                split = probabilities(beam, k, pair.student.size)
                assert (abs(split - (low + high) / 2) <= beam.err[k] + (high - low) / 2 + 1e-9).all(), where
                assert beam.err[k] <= rows.err[k] + 1e-9, where
                beamed.append(abs(split - low / low.sum()).sum() / 2)
            widths.append(float(rows.err[k]))
            positions += 1
    mean, after = float(np.mean(distances)), float(np.mean(beamed))
    record_property("mean total variation to the truth", mean)
    print(
        f"{positions} positions: mean total variation {mean:.4f}, split {after:.4f}, mean width {np.mean(widths):.4f}"
    )
    assert positions >= 30 * EFFORT
    assert np.min(widths) < 0.05 and mean < 0.12  # neither vacuous intervals nor a wild estimate
    assert after < 0.05 and after < mean / 2


def test_the_same_tokenizer_gives_the_teachers_own_distribution(tmp_path: Path):
    rng = random.Random(11)
    for case in cases(rng, tmp_path, 60, random_pair):
        ids = tuple(case.pair.teacher.encode(case.text)[0])
        rows = case.pair.emit([case.doc], case.table)["teacher"]
        for k in range(len(ids) + 1):
            if not case.bos and k == 0:
                assert not rows.scored[k]
                continue
            q = probabilities(rows, k, case.pair.teacher.size)
            np.testing.assert_allclose(q, np.exp(case.table.logp(ids[:k])), rtol=0, atol=1e-12)
            assert rows.flags[k] == FLAG_EXACT and rows.err[k] == 0


def group(rng: random.Random, folder: Path, count: int) -> tuple[Pair, TableTeacher, list[str], tuple[int, ...]]:
    pair = random_pair(rng, folder)
    assert pair.teacher.bos_id is not None
    table = TableTeacher(pair.teacher, pair.chars, rng.randrange(1 << 30), masked=False)
    bos = (pair.teacher.bos_id,)
    texts = []
    while len(texts) < count:
        text = random_text(rng, pair.chars, 12)
        try:
            pair.prepare(text, bos)
        except BadDocument:
            continue
        texts.append(text)
    return pair, table, texts, bos


def same(a: TopK, b: TopK, size: int) -> None:
    np.testing.assert_array_equal(a.scored, b.scored)
    np.testing.assert_array_equal(a.flags, b.flags)
    for name in ("err", "open_mass", "excluded_mass", "pruned_mass"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.exp(a.gold_logp), np.exp(b.gold_logp), rtol=0, atol=1e-12)
    for at in np.flatnonzero(a.scored).tolist():
        np.testing.assert_allclose(probabilities(a, at, size), probabilities(b, at, size), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3 * EFFORT))
@pytest.mark.parametrize("change", ["chunks", "dense", "alone"])
def test_the_way_of_computing_changes_nothing(seed: int, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Chunk size, the split between sparse matrices and scatters, and the grouping of documents are not in the result."""
    pair, table, texts, bos = group(random.Random(200 + seed), tmp_path, 5)
    size = max(pair.teacher.size, pair.student.size)
    together = pair.emit([pair.prepare(t, bos) for t in texts], table)
    if change == "chunks":
        for cells in (1, 3 * size):
            monkeypatch.setattr(engine.teacher.group, "CELLS_AT_ONCE", cells)
            again = pair.emit([pair.prepare(t, bos) for t in texts], table)
            for product in together:
                same(together[product], again[product], size)
    elif change == "dense":
        for limit in (0, 3):
            monkeypatch.setattr(engine.targets.pushforward, "_DENSE", limit)
            same(together[STUDENT], pair.emit([pair.prepare(t, bos) for t in texts], table)[STUDENT], size)
    else:
        rows = together[STUDENT]
        for i, text in enumerate(texts):
            span = slice(rows.start[i], rows.start[i + 1])
            part = TopK([rows.gold[span]], rows.ids.shape[1])
            for name in (n for n, v in vars(rows).items() if isinstance(v, np.ndarray)):
                setattr(part, name, getattr(rows, name)[span])
            same(part, pair.emit([pair.prepare(text, bos)], table)[STUDENT], size)


def test_a_broken_row_costs_its_document_only(tmp_path: Path):
    pair, table, texts, bos = group(random.Random(42), tmp_path, 4)
    good = pair.emit([pair.prepare(t, bos) for t in texts], table)
    for broken in range(len(texts)):
        docs = [pair.prepare(t, bos) for t in texts]
        node = docs[broken].tree.trunk[-1]
        rows = pair.emit(docs, table, broken={(broken, node)})
        reason, detail = docs[broken].bad or ("", "")
        assert reason == "nonfinite_logprob"
        assert f"after byte {docs[broken].tree.end[node]} " in detail
        for i in (i for i in range(len(texts)) if i != broken):
            assert docs[i].bad is None
            for product, table_rows in rows.items():
                span = slice(table_rows.start[i], table_rows.start[i + 1])
                np.testing.assert_array_equal(table_rows.ids[span], good[product].ids[span])
                np.testing.assert_array_equal(table_rows.logps[span], good[product].logps[span])
