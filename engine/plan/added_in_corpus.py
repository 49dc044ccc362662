"""Added texts of the teacher that a subset student spells (Qwen3's `</think>` for a student of Qwen2.5's merges), looked for in
the corpus: documents whose scored text holds one are exact in no subset, and only a beam scores them.

run file + the first documents + vocabularies -> product -> such a text that they hold, for those students that lack one
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.alignment.expansion import apart
from engine.chat.lead import with_lead
from engine.chat.segmenting import ChatSettings, segment_conversation
from engine.corpus.document import Document
from engine.corpus.scan import CorpusScan
from engine.corpus.units import sample
from engine.plan.vocabularies import Vocabularies
from schemas.errors import BadDocument
from schemas.runfile import RunConfig

LOOKED_AT = 64
"""So many documents at the beginning of the corpus are looked at: data with thoughts has them nearly everywhere."""


def added_in_corpus(run: RunConfig, scan: CorpusScan, known: Vocabularies, products: Iterable[str]) -> dict[str, str]:
    """products: subset students. Raises CorpusError as `sample`."""
    lacking = {product: apart(known.teacher, known.students[product]) for product in products}
    if not any(lacking.values()):
        return {}
    found: dict[str, str] = {}
    for document in sample(run.corpus, scan, LOOKED_AT):
        tokens = _scored_tokens(run, known, document)
        for product, texts in lacking.items():
            if held := sorted(texts[token] for token in tokens & texts.keys()):
                found.setdefault(product, held[0])
    return found


def _scored_tokens(run: RunConfig, known: Vocabularies, document: Document) -> set[int]:
    """The teacher's tokens in what is scored of a document; none of one that goes to quarantine anyway."""
    try:
        return {token for text in _scored_texts(run, known, document) for token in known.teacher.encode(text)[0]}
    except BadDocument:
        return set()


def _scored_texts(run: RunConfig, known: Vocabularies, document: Document) -> Sequence[str]:
    if document.problem is not None:
        return ()
    if not known.chat:
        return (document.text,)
    settings = ChatSettings.of(run)
    if settings.plain:
        document = with_lead(known.chat, document, run.corpus.roles)
    return segment_conversation(known.chat, document, settings).texts
