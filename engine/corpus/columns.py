"""From a record's columns to a text or a conversation, and a name; or to the problem why it cannot be used.

raw record (a JSON object, an Arrow row) -> Columns -> Record(row, place, doc_id, text) or Record(..., problem)
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from engine.corpus.document import Message
from schemas.errors import CorpusError
from schemas.runfile import CorpusConfig

SHOWN_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a record cannot be used: `reason` is a word of schemas.reasons.REASONS, `detail` is for people (ASCII)."""

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
    messages: tuple[Message, ...] = ()  # of a conversation; `text` is then their contents put together

    @classmethod
    def bad(cls, row: int, place: str, problem: Problem) -> Record:
        """A record without text."""
        return cls(row, place, None, "", 0, problem)

    @classmethod
    def good(
        cls, row: int, place: str, doc_id: str | None, text: str, n_bytes: int, messages: tuple[Message, ...] = ()
    ) -> Record:
        """A record with a text, unless it is white space only."""
        if not text.strip():
            return cls.bad(row, place, Problem("empty_text", f"{len(text)} characters, all white space"))
        return cls(row, place, doc_id, text, n_bytes, None, messages)


class NotText:
    """Stands for an Arrow value that is neither text nor a whole number: only its type is of interest."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name


def decode(raw: bytes) -> str | Problem:
    """`raw` as UTF-8, strictly."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem("invalid_utf8", f"byte 0x{raw[error.start]:02x} at offset {error.start}: {error.reason}")


@dataclass(frozen=True, slots=True)
class Columns:
    """What the run file takes from a record: `pieces` are (literal text, column or None), joined; `id` names it.
    messages: the column of a conversation, instead of pieces."""

    pieces: tuple[tuple[str, str | None], ...]
    numbers: bool  # whether whole numbers count as text: in a template, not in a text column
    id: str | None
    messages: str | None = None

    @classmethod
    def of(cls, config: CorpusConfig) -> Columns:
        """From [corpus] text, template or messages, and id."""
        if config.messages is not None:
            return cls((), False, config.id, config.messages)
        if config.template is None:
            return cls((("", config.text),), False, config.id)
        pieces = tuple((words, name) for words, name, _, _ in string.Formatter().parse(config.template))
        return cls(pieces, True, config.id)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns needed, without repetition."""
        used = [name for _, name in self.pieces if name is not None]
        used += [name for name in (self.messages, self.id) if name is not None]
        return tuple(dict.fromkeys(used))

    def check(self, present: list[str], where: str) -> None:
        """CorpusError when a table (`where`) lacks a column, so that every record would, or has two of the name."""
        wrong = [name for name in self.names if present.count(name) != 1]
        if wrong:
            raise CorpusError(
                f"{where}: got the columns {_listed(present)}; wanted {_listed(wrong)} once, as the run file says. "
                f"Correct [corpus] text, template, messages or id."
            )

    def of_object(self, row: int, place: str, item: object) -> Record:
        """A Record from a parsed JSON value; a problem when it is no object or its columns are not usable."""
        if not isinstance(item, dict):
            return Record.bad(
                row, place, Problem("malformed_json", f"the record is {_described(item)}, wanted an object")
            )
        return self._of_mapping(row, place, item)

    def of_arrow(self, row: int, batch: pa.RecordBatch) -> Iterator[Record]:
        """Records from Arrow rows; `row` is the number of the first one in its file."""
        values = {name: (_nested if name == self.messages else _values)(batch.column(name)) for name in self.names}
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
        messages: tuple[Message, ...] = ()
        if self.messages is not None:
            found = _messages(item, self.messages)
            if isinstance(found, Problem):
                return Record.bad(row, place, found)
            messages, text = found, [message.content for message in found]
        joined = "".join(text)
        n_bytes = len(joined.encode("utf-8"))
        doc_id = None if self.id is None else _text(item, self.id, numbers=True)
        if isinstance(doc_id, Problem):
            return Record.bad(row, place, doc_id)
        if doc_id == "":
            return Record.bad(row, place, Problem("not_text", f"column {json.dumps(self.id)} is empty, wanted a name"))
        return Record.good(row, place, doc_id, joined, n_bytes, messages)


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
    return Problem("not_text", f"column {json.dumps(name)} is {_described(value)}, wanted text")


def _messages(item: Mapping[str, object], name: str) -> tuple[Message, ...] | Problem:
    """The conversation in column `name`. Keys beside role and content are refused where they hold anything: a template might
    write them (tool calls, reasoning), and what it writes of them could not be told from its own text."""
    if name not in item:
        return Problem("missing_column", f"no column {json.dumps(name)}; got {_listed(list(item))}")
    found, where = item[name], f"column {json.dumps(name)}"
    if not isinstance(found, list) or not found:
        what = "an empty list" if found == [] else _described(found)
        return Problem("not_messages", f"{where} is {what}, wanted a list of objects with role and content")
    out = []
    for number, message in enumerate(found, start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            return Problem("not_messages", f"{place} is {_described(message)}, wanted an object with role and content")
        more = [key for key, value in message.items() if key not in Message._fields and value not in (None, "", [], {})]
        if more:
            return Problem("not_messages", f"{place} has {_listed(more)}, wanted role and content only")
        parts = [_text(message, key, numbers=False) for key in Message._fields]
        for key, part in zip(Message._fields, parts, strict=True):
            if isinstance(part, Problem):
                if part.reason == "invalid_utf8":
                    return Problem(part.reason, f"{place}: {part.detail}")
                got = "missing" if key not in message else _described(message[key])
                return Problem("not_messages", f"{place}: {key} is {got}, wanted a text")
        role, content = (part for part in parts if isinstance(part, str))
        out.append(Message(role, content))
    return tuple(out)


def _nested(column: pa.Array) -> list[object]:
    """Python values of an Arrow column of lists of objects; texts in it as bytes, as in `_values`."""
    type_ = _with_bytes(column.type)
    values = column.cast(type_).to_pylist()
    return [_named(value, type_) for value in values] if "map<" in str(type_) else values


def _named(value: object, type_: pa.DataType) -> object:
    """A nested value with a stand-in for each map, which Arrow gives as a list of pairs."""
    if value is None or not pa.types.is_nested(type_):
        return value
    if pa.types.is_map(type_):
        return NotText("map") if value else {}
    if isinstance(value, list):
        return [_named(item, type_.value_type) for item in value]
    if not isinstance(value, dict):
        return value
    return {field.name: _named(value[field.name], field.type) for field in type_}


def _with_bytes(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.large_binary()
    if pa.types.is_dictionary(type_):
        return _with_bytes(type_.value_type)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.large_list(_with_bytes(type_.value_type))
    if pa.types.is_map(type_):
        return pa.map_(_with_bytes(type_.key_type), _with_bytes(type_.item_type))
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(field.name, _with_bytes(field.type)) for field in type_])
    return type_


def _values(column: pa.Array) -> list[object]:
    """Python values of an Arrow column; texts as bytes, because Parquet does not promise that they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    type_ = column.type
    if pa.types.is_string(type_):
        return column.cast(pa.binary()).to_pylist()
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return column.cast(pa.large_binary()).to_pylist()
    binary = pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)
    if binary or pa.types.is_integer(type_) or pa.types.is_null(type_):
        return column.to_pylist()
    stand_in = NotText("map" if pa.types.is_map(type_) else str(type_))
    return [stand_in if valid else None for valid in column.is_valid().to_pylist()]


def _described(value: object) -> str:
    """What a JSON or Arrow value is, in words."""
    if isinstance(value, NotText):
        return f"of type {value.type_name}"
    names = {
        type(None): "null", bool: "true or false", int: "a number", float: "a number",
        str: "a text", bytes: "a text", list: "a list", dict: "an object",
    }  # fmt: skip
    return names.get(type(value), f"of type {type(value).__name__}")


def _listed(names: Sequence[str]) -> str:
    """Names in quotes, ASCII, the first few of them."""
    shown = ", ".join(json.dumps(name) for name in names[:SHOWN_COLUMNS])
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return shown + more if names else "none"
