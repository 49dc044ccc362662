"""How a file is cut into work units: the sizes of its records go in, the records of each unit come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from engine.corpus.columns import Record

if TYPE_CHECKING:
    import hashlib


def split_units(text_bytes: Iterable[int], unit_documents: int, unit_bytes: int) -> Iterator[int]:
    """Records per unit. `text_bytes` are the sizes of the records in order; a unit holds at most `unit_documents` of
    them and at most `unit_bytes` bytes, except that one larger record is a unit by itself."""
    n_rows = filled = 0
    for size in text_bytes:
        if n_rows and (n_rows == unit_documents or filled + size > unit_bytes):
            yield n_rows
            n_rows = filled = 0
        n_rows, filled = n_rows + 1, filled + size
    if n_rows:
        yield n_rows


def observed(
    records: Iterable[Record], digest: hashlib._Hash | None, label: str, problems: dict[str, tuple[int, str]]
) -> Iterator[int]:
    """The sizes of the texts of `records`, bytes; a `digest` takes in their content, `problems` what is wrong in them."""
    for record in records:
        if record.problem is not None:
            first = f"{label}, {record.place}: {record.problem.detail}"
            count, first = problems.get(record.problem.reason, (0, first))
            problems[record.problem.reason] = (count + 1, first)
        if digest is not None:
            reason = record.problem.reason if record.problem else ""
            said = [part for message in record.messages for part in message.parts_of_name]
            tools = [record.tools] if record.tools else []
            for part in (record.doc_id or "", record.text, reason, *said, *tools):
                raw = part.encode("utf-8")
                digest.update(len(raw).to_bytes(8, "big") + raw)
        yield record.n_bytes
