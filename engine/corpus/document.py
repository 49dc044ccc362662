"""What is read from a corpus: a document (a text or a conversation), a unit of documents, and the record of a refused document.

A document is what one record of a corpus file became; a unit is the run of documents that is scored and published at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

CALLS = ("tool_calls", "function_call")
"""Keys of a message under which an assistant calls tools."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold an assistant's thoughts."""


class Message(NamedTuple):
    """One message of a conversation. more: what else the chat template is given (name, tool_calls, reasoning_content ...), a JSON
    object; "" for nothing. learned: False where the data set says that it is not to be learned from."""

    role: str
    content: str
    more: str = ""
    learned: bool = True

    def for_template(self) -> dict[str, Any]:
        """The message as a chat template gets it; transformers itself gives thoughts all the names that templates know."""
        more: dict[str, Any] = json.loads(self.more) if self.more else {}
        return {**more, "role": self.role, "content": self.content}

    def has(self, keys: Sequence[str]) -> bool:
        """Whether the template is given something under one of these keys."""
        return bool(self.more) and any(key in json.loads(self.more) for key in keys)

    @property
    def called(self) -> list[str]:
        """The names of the tools that the message calls."""
        if not self.has(CALLS):
            return []
        more = json.loads(self.more)
        calls = more.get("tool_calls") or [more.get("function_call")]
        inner = [call.get("function", call) for call in calls if isinstance(call, dict)]
        return [call["name"] for call in inner if isinstance(call, dict) and isinstance(call.get("name"), str)]

    @property
    def parts_of_name(self) -> tuple[str, ...]:
        """What tells the message from others, for hashes; of one with role and content alone, these."""
        return (
            self.role,
            self.content,
            *([self.more] if self.more else ()),
            *(() if self.learned else ("not learned",)),
        )


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
    tools: str = ""  # of a conversation: what its assistant may call, a JSON list; "" for none
    part: str = ""  # of a mixture: the name of its [[corpus]] table

    @property
    def is_written_by_template(self) -> bool:
        """Whether what is scored may hold more than the contents: calls and thoughts, as a chat template writes them."""
        return any(message.has((*CALLS, *REASONING)) for message in self.messages)


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
