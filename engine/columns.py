"""From a record's columns to a text and a name: which columns the run file asks for, and what is wrong with them.

raw record (a JSON object, an Arrow row) -> Columns -> Record(row, place, doc_id, text) or Record(..., problem)
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from schemas.errors import CorpusError
from schemas.runfile import CorpusConfig

SHOWN_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a record cannot be used: `reason` is a word of schemas.manifest.REASONS, `detail` is for people (ASCII)."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file. `doc_id` is None where no column names it; `text` is "" and `n_bytes` 0 with a problem."""

    row: int  # from 0, within the file
    place: str
    doc_id: str | None
    text: str
    n_bytes: int  # of `text` in UTF-8
    problem: Problem | None

    @classmethod
    def bad(cls, row: int, place: str, problem: Problem) -> Record:
        """A record without text."""
        return cls(row, place, None, "", 0, problem)

    @classmethod
    def good(cls, row: int, place: str, doc_id: str | None, text: str, n_bytes: int) -> Record:
        """A record with a text, unless it is white space only."""
        if not text.strip():
            return cls.bad(row, place, Problem("empty_text", f"{len(text)} characters, all white space"))
        return cls(row, place, doc_id, text, n_bytes, None)


class NotText:
    """Stands for an Arrow value that is neither text nor a whole number: only its type is of interest."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def decode(raw: bytes) -> str | Problem:
    """`raw` as UTF-8, strictly."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem("invalid_utf8", f"byte 0x{raw[error.start]:02x} at offset {error.start}: {error.reason}")


@dataclass(frozen=True, slots=True)
class Columns:
    """What the run file takes from a record: `pieces` are (literal text, column or None), joined; `id` names it."""

    pieces: tuple[tuple[str, str | None], ...]
    numbers: bool  # whether whole numbers count as text: in a template, not in a text column
    id: str | None

    @classmethod
    def of(cls, config: CorpusConfig) -> Columns:
        """From [corpus] text or template, and id."""
        if config.template is None:
            return cls((("", config.text),), False, config.id)
        pieces = tuple((words, name) for words, name, _, _ in string.Formatter().parse(config.template))
        return cls(pieces, True, config.id)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns needed, without repetition."""
        used = [name for _, name in self.pieces if name is not None] + ([] if self.id is None else [self.id])
        return tuple(dict.fromkeys(used))

    def check(self, present: list[str], where: str) -> None:
        """CorpusError when a table (`where`) lacks a column, so that every record would, or has two of the name."""
        wrong = [name for name in self.names if present.count(name) != 1]
        if wrong:
            raise CorpusError(
                f"{where}: got the columns {_listed(present)}; wanted {_listed(wrong)} once, as the run file says. "
                f"Correct [corpus] text, template or id."
            )

    def of_object(self, row: int, place: str, item: object) -> Record:
        """A Record from a parsed JSON value; a problem when it is no object or its columns are not usable."""
        if not isinstance(item, dict):
            return Record.bad(row, place, Problem("malformed_json", f"the record is {_kind(item)}, wanted an object"))
        return self._of_mapping(row, place, item)

    def of_arrow(self, row: int, batch: pa.RecordBatch) -> Iterator[Record]:
        """Records from Arrow rows; `row` is the number of the first one in its file."""
        values = {name: _values(batch.column(name)) for name in self.names}
        for offset in range(batch.num_rows):
            item = {name: column[offset] for name, column in values.items()}
            yield self._of_mapping(row + offset, f"row {row + offset}", item)

    def _of_mapping(self, row: int, place: str, item: Mapping[str, object]) -> Record:
        text, n_bytes = [], 0
        for words, name in self.pieces:
            value = "" if name is None else _text(item, name, numbers=self.numbers)
            if isinstance(value, Problem):
                return Record.bad(row, place, value)
            text += [words, value]
        joined = "".join(text)
        n_bytes = len(joined.encode("utf-8"))
        doc_id = None if self.id is None else _text(item, self.id, numbers=True)
        if isinstance(doc_id, Problem):
            return Record.bad(row, place, doc_id)
        if doc_id == "":
            return Record.bad(row, place, Problem("not_text", f"column {json.dumps(self.id)} is empty, wanted a name"))
        return Record.good(row, place, doc_id, joined, n_bytes)


def _text(item: Mapping[str, object], name: str, *, numbers: bool) -> str | Problem:
    """The text in column `name`; whole numbers too where `numbers` is true (templates and ids)."""
    if name not in item:
        return Problem("missing_column", f"no column {json.dumps(name)}; got {_listed(list(item))}")
    value = item[name]
    if isinstance(value, bytes):
        value = decode(value)
        if isinstance(value, Problem):
            return Problem(value.reason, f"column {json.dumps(name)}: {value.detail}")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            return Problem("invalid_utf8", f"column {json.dumps(name)}: lone surrogate U+{code:04X} at {error.start}")
        return value
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return Problem("not_text", f"column {json.dumps(name)} is {_kind(value)}, wanted text")


def _values(column: pa.Array) -> list[object]:
    """Python values of an Arrow column; texts as bytes, because Parquet does not promise that they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_string(kind):
        return column.cast(pa.binary()).to_pylist()
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.large_binary()).to_pylist()
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    if binary or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return column.to_pylist()
    stand_in = NotText(str(kind))
    return [stand_in if valid else None for valid in column.is_valid().to_pylist()]


def _kind(value: object) -> str:
    if isinstance(value, NotText):
        return f"of type {value.kind}"
    return {
        type(None): "null", bool: "true or false", int: "a number", float: "a number",
        str: "a text", list: "a list", dict: "an object",
    }[type(value)]  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    """Names in quotes, ASCII, the first few of them."""
    shown = ", ".join(json.dumps(name) for name in names[:SHOWN_COLUMNS])
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return shown + more if names else "none"
