"""The beam on pairs made by hand, where the student cuts inside teacher tokens or the teacher inside the student's; two
students in one run; documents longer than the teacher's window."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from engine.alignment.passage import Passage
from tests.support.beams import FiniteTeacher, Truth, score
from tests.support.pairs import STUDENT, Pair, cases, random_pair, stored
from tests.support.toys import SPELL, TableTeacher, toy
from tests.support.vocabularies import EFFORT

OTHER = "student/other"


def spelt(*pairs: str) -> list[tuple[str, str]]:
    """Byte-level merges, each written as two texts with a bar between."""
    sides = [[("".join(SPELL[b] for b in side.encode())) for side in pair.split("|")] for pair in pairs]
    return [(a, b) for a, b in sides]


def character(char: str) -> list[tuple[str, str]]:
    """The merges that make one character of three bytes a token."""
    a, b, c = (SPELL[byte] for byte in char.encode())
    return [(a, b), (a + b, c)]


WORDS = [*character("漢"), *character("字"), *spelt("漢|字", "字|a")]
DIGITS = ("llama3", spelt("1|2", "12|1", "2|1", "a|1", " |1"))
SINGLE = ("digits", spelt("a|a"))
RUNS = ("llama3", spelt(" | ", "  |  ", "\n|  ", " |a", "a|\n"))
SPACES = ("gpt2", spelt(" | ", "  | ", " |a", "\n|\n"))
KINDS = {  # characters, teacher, student, texts
    "digits of the student are single": ("12a ", DIGITS, SINGLE, ("121a", "a12", "1212", "12 1")),
    "digits of the teacher are single": ("12a ", SINGLE, DIGITS, ("121a", "a12", "1212", "12 1")),
    "indentation, runs in the teacher": (" a\n", RUNS, SPACES, ("\n  a", "    a", "a\n a", " a   a")),
    "indentation, runs in the student": (" a\n", SPACES, RUNS, ("\n  a", "    a", "a\n a", " a   a")),
    "bytes of words": ("漢字a", ("gpt2", WORDS), ("none", []), ("漢字", "字a漢", "a漢")),
    "characters of words": ("漢字a", ("none", WORDS), ("gpt2", WORDS[:4]), ("漢字", "字a漢", "a漢")),
    "words of characters": ("漢字a", ("gpt2", WORDS[:4]), ("gpt2", WORDS), ("漢字", "字a漢", "a漢")),
    "words of byte tokens": ("漢字a", ("bare", []), ("gpt2", WORDS), ("漢字", "字a漢")),
}

# rows inside teacher tokens, and with excluded mass, that a test must have met
SEEN = {"digits of the student are single": (20, 5), "bytes of words": (40, 5), "characters of words": (6, 0)}


def made_pair(kind: str, folder: Path, *, masked: bool = False) -> tuple[Pair, tuple[str, ...]]:
    chars, teacher, student, texts = KINDS[kind]
    sides = [
        toy(random.Random(1), folder / str(i), style, tuple(chars), whole=False, merges=merges)
        for i, (style, merges) in enumerate((teacher, student))
    ]
    return Pair(sides[0], sides[1], tuple(chars), masked=masked), texts


def finite(pair: Pair, doc: Passage, text: str, seed: int, **more: bool) -> FiniteTeacher:
    ids = pair.teacher.encode(text)[0]
    return FiniteTeacher(pair.teacher, pair.chars, seed, masked=False, data=doc.data, ids=ids, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_conditioned_on_the_boundary(kind: str, tmp_path: Path):
    """Mass without a student boundary is in neither numerator nor denominator; what is left is the truth. At budget 0 the
    interval holds it all the same."""
    pair, texts = made_pair(kind, tmp_path)
    assert pair.teacher.bos_id is not None
    excluded_rows = inside = rows_seen = 0
    for seed in range(6 * EFFORT):
        for text in texts:
            doc = pair.prepare(text, (pair.teacher.bos_id,), every_byte=True)
            table = finite(pair, doc, text, seed, specials=False)
            truth = Truth(pair, doc, table, text)
            found = [truth.boundary(k) for k in range(len(doc.views[STUDENT].ids))]
            fast = score(pair, [doc], table, budget=0).rows[STUDENT]
            rows = score(pair, [doc], table).rows[STUDENT]
            ends = {e + len(doc.data) - len(text.encode()) for e in pair.teacher.encode(text)[1]}
            boundaries = doc.views[STUDENT].boundaries
            assert boundaries is not None
            for k, (mass, excluded) in enumerate(found):
                total = float(mass.sum())
                assert bool(rows.scored[k]) == (total > 0), (text, seed, k)
                if total == 0:
                    continue
                q = stored(rows, k, pair.student.size)
                np.testing.assert_allclose(q, mass / total, rtol=0, atol=1e-9, err_msg=f"{kind} {text!r} {seed} {k}")
                assert rows.excluded_mass[k] == pytest.approx(excluded / (total + excluded), abs=1e-9)
                if fast.scored[k]:
                    gap = abs(stored(fast, k, pair.student.size) - mass / total)
                    assert gap.sum() / 2 <= fast.err[k] + 1e-9, (kind, text, seed, k)
                rows_seen += 1
                excluded_rows += excluded > 1e-3 * total
                inside += 0 < boundaries[k].place < len(doc.data) and boundaries[k].place not in ends
    print(f"{kind}: {rows_seen} rows, {excluded_rows} with excluded mass, {inside} inside teacher tokens")
    least_inside, least_excluded = SEEN.get(kind, (0, 3))
    assert rows_seen >= 30 and inside >= least_inside and excluded_rows >= least_excluded


def test_single_digits_are_added_up_by_hand(tmp_path: Path):
    """Row k of a student of single characters: all that the teacher writes next, by its first character, through every
    context along the text. Nothing is excluded but specials."""
    pair, _ = made_pair("digits of the student are single", tmp_path)
    assert pair.teacher.bos_id is not None
    student = pair.student
    pieces = pair.teacher.token_bytes
    for seed in range(10):
        table = TableTeacher(pair.teacher, pair.chars, seed, masked=False)
        doc = pair.prepare("121 2", (pair.teacher.bos_id,), every_byte=True)
        rows = score(pair, [doc], table).rows[STUDENT]
        contexts = Truth(pair, doc, table, "121 2").contexts
        for k in range(6):
            mass = np.zeros(student.size)
            for context in contexts:
                weight = np.exp(sum(table.logp(context[:i])[t] for i, t in enumerate(context)))
                for token, p in enumerate(np.exp(table.logp(context)) * weight):
                    here = table.bytes_of(context) + (pieces[token] or b"")
                    if len(table.bytes_of(context)) <= k < len(here) and here.startswith(doc.data[:k]):
                        mass[student.id_of_bytes[here[k : k + 1]]] += p
                    elif pieces[token] is None and len(here) == k and token == pair.teacher.eos_id:
                        assert student.eos_id is not None
                        mass[student.eos_id] += p
            q = stored(rows, k, student.size)
            aa = student.id_of_bytes[b"aa"]  # the one student token of two characters: its mass with that of its first
            a = student.id_of_bytes[b"a"]
            q[a], q[aa] = q[a] + q[aa], 0
            np.testing.assert_allclose(q, mass / mass.sum(), rtol=0, atol=max(1e-9, float(rows.err[k])))
            others = [t for t in range(student.size) if t not in (a, aa)]
            np.testing.assert_allclose(q[others], (mass / mass.sum())[others], rtol=0, atol=1e-9)


def test_two_students_share_and_do_not_disturb(tmp_path: Path):
    """In one run each student's rows are those it has alone, and nodes that both want are evaluated once."""
    rng, alone, together = random.Random(5), 0, 0
    for _ in range(6 * EFFORT):
        first = random_pair(rng, tmp_path)
        style = rng.choice(("gpt2", "llama3", "none", "prepend"))
        student = toy(rng, tmp_path / f"{rng.randrange(1 << 40)}", style, first.chars, whole=False, merges=8)
        second = Pair(first.teacher, student, first.chars)
        assert first.teacher.bos_id is not None
        for _ in range(3):
            text = "".join(rng.choices(first.chars, k=5))
            bos = (first.teacher.bos_id,)
            doc, more = first.prepare(text, bos, every_byte=True), second.prepare(text, bos, every_byte=True)
            table = finite(first, doc, text, rng.randrange(1 << 30), specials=True)
            one, two = score(first, [doc], table), score(second, [more], table)
            both = Passage(doc.tree, doc.data, {**doc.views, OTHER: more.views[STUDENT]}, doc.illegal)
            made = score(first, [both], table, others={OTHER: second})
            for product, single in ((STUDENT, one), (OTHER, two)):
                ours, theirs = made.rows[product], single.rows[STUDENT]
                np.testing.assert_array_equal(ours.scored, theirs.scored)
                size = (first if product == STUDENT else second).student.size
                for k in np.flatnonzero(ours.scored).tolist():
                    np.testing.assert_allclose(
                        stored(ours, k, size), stored(theirs, k, size), rtol=0, atol=1e-11, err_msg=f"{text!r} {k}"
                    )
                np.testing.assert_allclose(ours.err, theirs.err, rtol=0, atol=1e-11)
            assert len(set(made.asked)) == len(made.asked), "no context is evaluated twice"
            assert max(one.spent[0], two.spent[0]) <= made.spent[0] <= one.spent[0] + two.spent[0]
            alone += int(one.spent[0] + two.spent[0])
            together += int(made.spent[0])
    print(f"evaluations of splits: {alone} alone, {together} together")
    assert together < 0.8 * alone


def test_leaves_of_long_documents_are_split_in_their_windows(tmp_path: Path):
    """A teacher that sees two tokens back gives the same rows through windows of 24 tokens as in one pass, wherever the
    windows leave room below a leaf; the table model refuses wrong positions."""
    rng, split_late, same, rows_seen = random.Random(9), 0, 0, 0
    for case in cases(rng, tmp_path, 10, random_pair, masked=0.0, texts=2, longest=70):
        if len(case.doc.tree.trunk) < 40:
            continue
        whole = score(case.pair, [case.doc], case.table, budget=1, tolerance=0.02)
        late = len(case.doc.data) * 2 // 3
        boundaries = case.doc.views[STUDENT].boundaries or []
        wanted = [k for k, b in enumerate(boundaries) if b.place > late and b.extra is not None]
        cut = score(case.pair, [case.doc], case.table, budget=1, tolerance=0.02, max_length=24)
        split_late += len([k for k in wanted if boundaries[k].extra is not None])
        a, b = whole.rows[STUDENT], cut.rows[STUDENT]
        np.testing.assert_array_equal(a.scored, b.scored)
        rows_seen += int(a.scored.sum())
        same += int((abs(a.err - b.err) < 1e-9)[a.scored].sum())
    assert split_late > 20 and same > 0.8 * rows_seen


def test_a_broken_row_behind_a_split_leaf_costs_its_document_only(tmp_path: Path):
    pair = dataclasses.replace(random_pair(random.Random(4), tmp_path), masked=False)
    assert pair.teacher.bos_id is not None
    table = TableTeacher(pair.teacher, pair.chars, 1, masked=False)
    texts = [t for t in ("".join(random.Random(i).choices(pair.chars, k=10)) for i in range(3))]
    docs = [pair.prepare(t, (pair.teacher.bos_id,)) for t in texts]
    good = score(pair, docs, table, budget=2)
    contexts = {c: i for i, d in enumerate(docs) for c in Truth(pair, d, table, texts[i]).contexts}
    behind = [tuple(t for t in c if t not in pair.teacher.specials) for c in good.asked]
    broken = next(c for c in reversed(behind) if c not in contexts)
    bad = score(pair, docs, table, budget=2, broken=frozenset({broken}))
    assert [d.bad for d in docs].count(None) >= 1 and any(d.bad for d in docs)
    for i, doc in enumerate(docs):
        if doc.bad is None:
            span = slice(good.rows[STUDENT].start[i], good.rows[STUDENT].start[i + 1])
            np.testing.assert_allclose(
                bad.rows[STUDENT].logps[span], good.rows[STUDENT].logps[span], rtol=0, atol=1e-12
            )
