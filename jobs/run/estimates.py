"""How large hidden states will be."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from engine.bpe.vocabulary import Vocabulary
from engine.corpus.document import Document
from schemas.counts import counted
from schemas.errors import BadDocument


def hidden_size_note(sample: Sequence[Document], documents: int, vocabulary: Vocabulary, size: int) -> str:
    """How large the hidden states of a corpus will be, in words, from a sample of its documents. size: numbers per state."""
    counts = []
    for document in sample:
        with suppress(BadDocument):
            counts.append(len(vocabulary.encode(document.text)[0]) if document.text else 0)
    if not counts:
        return (
            f"hidden states: {size} numbers of 2 bytes at each teacher token; no document to estimate their number from"
        )
    tokens = sum(counts) / len(counts) * documents
    return (
        f"hidden states: {size} numbers of 2 bytes at each teacher token, about {tokens:,.0f} tokens (from the first "
        f"{counted(len(counts), 'document')}): about {_in_units(tokens * size * 2)} before compression"
    )


def _in_units(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
