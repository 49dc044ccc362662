"""Truth first, beam: every row against all texts that the teacher can write behind the leaves of definition 6.

Lossless (tolerance 0, unlimited budget, all tokens kept) is the truth; with any budget the certified interval holds it.
TARGETSMITH_EFFORT=n multiplies the number of random cases by n.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.alignment.passage import Passage
from engine.targets.positions import TopK
from schemas.errors import BadDocument
from schemas.target import FLAG_EXACT
from tests.support.beams import FiniteTeacher, Truth, score
from tests.support.oracle import evaluated
from tests.support.pairs import STUDENT, Pair, path_of, random_pair, stored
from tests.support.toys import random_text
from tests.support.vocabularies import EFFORT

# raw teacher, contexts canonical; raw teacher, masked by the engine at every step; teacher that writes canonical text only,
# masked once more by the engine, which must find nothing
MODES = ("context", "masked", "canonical")


@dataclasses.dataclass
class BeamCase:
    pair: Pair
    table: FiniteTeacher
    text: str
    doc: Passage
    truth: Truth
    every_byte: bool

    def __str__(self) -> str:
        v, w = self.pair.teacher, self.pair.student
        return f"{self.text!r} teacher {v.name} student {w.name} masked {self.pair.masked} {self.table.masked}"


def finite_cases(
    rng: random.Random,
    folder: Path,
    count: int,
    mode: str,
    *,
    texts: int = 2,
    make_pair: Callable[[random.Random, Path], Pair] = random_pair,
) -> Iterator[BeamCase]:
    """`count` documents of random pairs, a new pair after every `texts` of them, each with a teacher of its own."""
    done = 0
    while done < count:
        pair = dataclasses.replace(make_pair(rng, folder), masked=mode != "context")
        for _ in range(texts):
            text = random_text(rng, pair.chars, 6)
            assert pair.teacher.bos_id is not None
            bos = () if mode == "context" and rng.random() < 0.2 else (pair.teacher.bos_id,)
            every_byte = rng.random() < 0.6
            try:
                doc = pair.prepare(text, bos, every_byte=every_byte)
            except BadDocument:
                continue
            table = FiniteTeacher(
                pair.teacher,
                pair.chars,
                rng.randrange(1 << 30),
                masked=mode == "canonical",
                data=doc.data,
                ids=pair.teacher.encode(text)[0],
                off=rng.choice((1, 1, 2)),
                canonical=mode != "context",
                specials=rng.random() < 0.5,
                order=rng.choice((1, 2)),
            )
            done += 1
            yield BeamCase(pair, table, text, doc, Truth(pair, doc, table, text), every_byte)


def targets_of(case: BeamCase) -> list[tuple[np.ndarray, float]] | None:
    """(mass, excluded) of every boundary, or None where the document proves nothing."""
    found = [case.truth.boundary(k) for k in range(len(case.doc.views[STUDENT].ids))]
    return None if case.truth.rules.lost else found


def pruned_share(rows: TopK, k: int, mass: float, excluded: float) -> float:
    """The width that contexts which were not evaluated leave at a row without open mass."""
    share = float(rows.pruned_mass[k])
    bound = share / (1 - share) * (mass + excluded)
    return bound / (mass + bound)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(1 * EFFORT))
def test_lossless_rows_are_the_truth(seed: int, mode: str, tmp_path: Path):
    """All student tokens of every row to 1e-9, the excluded share, and a width that only pruned contexts leave."""
    rows_seen = split = proved = lost = conditioned = 0
    for case in finite_cases(random.Random(f"{seed} {mode}"), tmp_path, 20, mode):
        found = targets_of(case)
        if found is None:
            lost += 1
            continue
        proved += 1
        made = score(case.pair, [case.doc], case.table)
        rows = made.rows[STUDENT]
        assert case.doc.bad is None
        split += int(made.spent[0])
        for k, (mass, excluded) in enumerate(found):
            where, total = f"{case} k {k}", float(mass.sum())
            assert bool(rows.scored[k]) == (total > 0), where
            if total == 0:
                continue
            q = stored(rows, k, case.pair.student.size)
            np.testing.assert_allclose(q, mass / total, rtol=0, atol=1e-9, err_msg=where)
            pruned = float(rows.pruned_mass[k])
            assert rows.excluded_mass[k] == pytest.approx(excluded / (total + excluded) * (1 - pruned), abs=1e-9), where
            assert rows.err[k] == pytest.approx(pruned_share(rows, k, total, excluded), abs=1e-9), where
            assert rows.open_mass[k] < 1e-9 and (pruned == 0 or not case.every_byte)
            assert rows.flags[k] & FLAG_EXACT or rows.err[k] > 0
            rows_seen += 1
            conditioned += excluded > 1e-3 * total
    print(f"{proved} documents, {lost} prove nothing, {rows_seen} rows, {conditioned} conditioned, {split} evaluations")
    assert proved >= 13 and rows_seen > 60 and conditioned > 8 and split > 40


def test_the_trees_are_those_of_brute_force(tmp_path: Path):
    """The truth takes its contexts from the engine's tree; here the same documents' trees against encoding texts."""
    rng, same = random.Random(77), 0
    for case in finite_cases(rng, tmp_path, 20 * EFFORT, "context"):
        shift = len(case.pair.teacher.prefix_bytes)
        ends = case.pair.student.encode(case.text)[1]
        every = range(shift, len(case.doc.data) + 1)
        given = path_of(case.doc.tree, case.doc.tree.given, case.pair.teacher)
        wanted = list(every) if case.every_byte else [shift, *(e + shift for e in ends)]
        chosen = evaluated(case.pair.teacher, case.text, case.pair.chars, given, wanted)[0]
        assert chosen <= set(case.truth.contexts), (
            case
        )  # more: canonical only before characters that the alphabet lacks
        same += chosen == set(case.truth.contexts)
    assert same >= 18 * EFFORT


@pytest.mark.parametrize("seed", range(1 * EFFORT))
def test_masked_lossless_multiplies_to_the_probability_of_the_text(seed: int, tmp_path: Path):
    """canonical-masked is a distribution over texts. Row k's boundary event B_k is "the student's first k tokens are the
    document's", and q_k(gold) = P(B_{k+1}) / P(B_k); so the rows, the end's included, multiply to P(document), which is the
    product of the teacher's own rows. What is excluded at a row is outside B_k and was outside the numerator before, so it
    needs no correction; other specials would (they end a text in one row and are no token in the next): the teacher has
    none here. Asked only where no context was pruned."""
    compared = excluded = 0
    for case in finite_cases(random.Random(300 + seed), tmp_path, 25, "masked" if seed % 2 else "canonical"):
        if not case.every_byte or case.table.other_specials and not case.table.masked:
            continue
        rows = score(case.pair, [case.doc], case.table).rows
        if targets_of(case) is None or rows[STUDENT].pruned_mass.any():
            continue
        ours, theirs = (float(rows[p].gold_logp.sum()) for p in (STUDENT, "teacher"))
        assert np.exp(ours) == pytest.approx(np.exp(theirs), abs=1e-9), str(case)
        assert ours == pytest.approx(theirs, abs=1e-6) or theirs < -20, str(case)
        compared += np.isfinite(theirs)
        excluded += int((rows[STUDENT].excluded_mass > 1e-3).sum())
    assert compared >= 3 and excluded >= 1
