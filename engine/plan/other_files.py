"""What lies in an output beside the shards of its products: how large it is by kind, for whoever asks what a disk is full of.

files of a trial, or plan + vocabularies + some documents -> OtherBytes
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.alignment.rules import RuleBook, TeacherTokens
from engine.alignment.strings import Heads
from engine.bpe.segmenter import build_segmenter
from engine.corpus.document import Document
from engine.dataset.layout import CLAIMS, SEALS
from engine.dataset.sidecars import CALIBRATION, LM_HEAD, calibrated_products, has_calibration
from engine.dataset.token_tables import FOLDER, TokenTable, facts_by_owner
from engine.plan.estimate import OtherBytes
from engine.plan.token_files import token_table
from engine.plan.vocabularies import Vocabularies
from schemas.errors import BadDocument
from schemas.manifest import Plan
from schemas.products import BYTES, HIDDEN

_ONCE = {CALIBRATION: "calibration sample", LM_HEAD: "teacher's lm_head", FOLDER: "vocabularies"}
_REST = "manifest and card"

SEAL_BYTES, SEAL_PRODUCT_BYTES = 200, 700
"""Of the record of a unit, and of each product in it (docs/log.md: 2,300 with three)."""
REST_BYTES = 40_000
"""Of plan, manifest, README.md and croissant.json of some units."""
_ROW_BYTES, _STORED = 32 * 12 + 12, 0.86
"""A row of the calibration sample (engine/beam/calibration.py) without heads, and what of its bytes compression leaves."""


def measured(files: Iterable[tuple[str, int]], units: int) -> OtherBytes:
    """Of a finished output. files: names and bytes; those of products are passed over."""
    once, records = dict.fromkeys([*_ONCE.values(), _REST], 0), 0
    for name, size in files:
        if name.startswith("data/"):
            continue
        if name.startswith((SEALS, CLAIMS)):
            records += size
        else:
            once[next((kind for place, kind in _ONCE.items() if name.startswith(place)), _REST)] += size
    return OtherBytes(once, records / units)


def foretold(plan: Plan, known: Vocabularies, sample: Sequence[Document]) -> OtherBytes:
    """Of a run of which nothing was scored. Vocabularies are exact, all else is by rule of thumb."""
    vocabularies = 0
    for product, facts in facts_by_owner(plan.products).items():
        table = TokenTable.of_bytes() if product == BYTES else token_table(known.by_product[product], facts)
        vocabularies += len(table.to_bytes(facts.tokenizer_hash))
    once = {_ONCE[FOLDER]: vocabularies, _REST: REST_BYTES}
    if has_calibration(plan):
        once[_ONCE[CALIBRATION]] = _calibration(plan, known, sample[: plan.calibration_documents])
    if (hidden := plan.products.get(HIDDEN)) is not None:
        once[_ONCE[LM_HEAD]] = 2 * 2 * hidden.vocab_size * hidden.hidden_size
    return OtherBytes(once, SEAL_BYTES + SEAL_PRODUCT_BYTES * len(plan.products))


def _calibration(plan: Plan, known: Vocabularies, sample: Sequence[Document]) -> int:
    """A row for each token that the teacher has in the sample, with the mass of every head of each student."""
    seen: set[int] = set()
    for document in sample:
        if document.problem is None:
            try:
                seen.update(known.teacher.encode(document.text)[0])
            except BadDocument:
                continue  # it is left out of the sample, too
    tokens = TeacherTokens(known.teacher)
    heads = (
        Heads(known.teacher, RuleBook(tokens, build_segmenter(known.students[product]))).count
        for product in calibrated_products(plan)
    )
    return round(len(seen) * (_ROW_BYTES + 8 * sum(heads)) * _STORED)
