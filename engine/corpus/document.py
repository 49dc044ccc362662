"""What is read from a corpus: a document (a text or a conversation), a unit of documents, and the record of a refused document.

A document is what one record of a corpus file became; a unit is the run of documents that is scored and published at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """One record. With a `problem` (reason, detail) there is no text and the document belongs into quarantine."""

    doc_id: str
    doc_row: int  # from 0, over all files in order
    text: str
    source: str  # label of the file, see CorpusFile
    place: str  # "line 17" (from 1) or "row 17" (from 0) of the source
    problem: tuple[str, str] | None = None
    messages: tuple[Message, ...] = ()  # of a conversation; `text` is then their contents put together


@dataclass(frozen=True, slots=True)
class Unit:
    """`n_rows` records of one file from `first_row` on; `doc_row` is the first one's number over all files."""

    index: int
    file_index: int
    first_row: int
    n_rows: int
    doc_row: int


def refusal(document: Document, reason: str, detail: str) -> dict[str, Any]:
    """The quarantine record of one document, as JSON values: where it is, why it is out, and the hash of its text (never it).

    reason: a word of schemas.reasons.REASONS. detail: for people.
    """
    digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest() if document.text else None
    return {
        "doc_id": document.doc_id,
        "doc_row": document.doc_row,
        "source": document.source,
        "place": document.place,
        "reason": reason,
        "detail": detail,
        "text_sha256": digest,
    }
