"""Truth first, beam: a student whose normaliser writes other bytes than the teacher (NFC). Combining marks join with what stands
before them, so that heads close nothing there; every certified interval must hold the truth all the same.
"""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import numpy as np

from schemas.errors import BadDocument
from tests.support.beams import FiniteTeacher, Truth, score
from tests.support.pairs import STUDENT, nfc_pair
from tests.support.toys import random_text
from tests.support.vocabularies import EFFORT


def test_intervals_hold_the_truth_where_texts_are_normalised(tmp_path: Path):
    rng, compared, marks = random.Random(3), 0, 0
    for number in range(8 * EFFORT):
        pair = nfc_pair(rng, tmp_path)
        assert pair.teacher.bos_id is not None
        text = unicodedata.normalize("NFC", random_text(rng, pair.chars, 6))
        try:
            doc = pair.prepare(text, (pair.teacher.bos_id,), every_byte=True)
            ids = pair.teacher.encode(text)[0]
            table = FiniteTeacher(pair.teacher, pair.chars, number, masked=False, data=doc.data, ids=ids, off=2)
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
