"""Truth first, beam: a student whose normaliser writes other bytes than the teacher (NFC). Combining marks join with what stands
before them, so that heads close nothing there; every certified interval must hold the truth all the same.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from engine.bpe.vocabulary import load_vocabulary
from schemas.errors import BadDocument
from tests.support.beams import FiniteTeacher, Truth, score
from tests.support.pairs import STUDENT, Pair
from tests.support.toys import toy
from tests.support.vocabularies import EFFORT

CHARS = ("a", "e", "\u0301", "é", " ")


def nfc_pair(rng: random.Random, folder: Path) -> Pair:
    """A teacher without normaliser, a student with NFC."""
    teacher = toy(rng, folder / "teacher", "gpt2", CHARS, whole=False, merges=6)
    toy(rng, folder / "student", "gpt2", CHARS, whole=False, merges=6)
    file = folder / "student" / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["normalizer"] = {"type": "NFC"}
    file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    return Pair(teacher, load_vocabulary(str(folder / "student")), CHARS)


def test_intervals_hold_the_truth_where_texts_are_normalised(tmp_path: Path):
    rng, compared, marks = random.Random(3), 0, 0
    for number in range(16 * EFFORT):
        pair = nfc_pair(rng, tmp_path / str(number))
        assert pair.teacher.bos_id is not None
        text = "".join(rng.choice(("a", "e", " ", "é")) for _ in range(5))
        try:
            doc = pair.prepare(text, (pair.teacher.bos_id,), every_byte=True)
            ids = pair.teacher.encode(text)[0]
            table = FiniteTeacher(pair.teacher, CHARS, number, masked=False, data=doc.data, ids=ids, off=2)
            truth = Truth(pair, doc, table, text)
            wanted = [truth.boundary(k) for k in range(len(doc.views[STUDENT].ids))]
        except BadDocument:
            continue
        if truth.rules.lost:
            continue
        rows = score(pair, [doc], table, budget=1e6, tolerance=0.0).rows[STUDENT]
        for k, (mass, _) in enumerate(wanted):
            if rows.scored[k] and mass.sum() > 0:
                got = np.zeros(pair.student.size)
                kept = rows.ids[k] >= 0
                got[rows.ids[k][kept]] = np.exp(rows.logps[k][kept])
                assert np.abs(got - mass / mass.sum()).max() <= rows.err[k] + 1e-9, (text, k)
                compared += 1
                marks += rows.err[k] > 0
    assert compared > 40 and marks > 5
