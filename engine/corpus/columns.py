"""From a record's columns to a text or a conversation, and a name; or to the problem why it cannot be used.

raw record (a JSON object, an Arrow row) -> Columns -> Record(row, place, doc_id, text) or Record(..., problem)
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.corpus.document import Message
from engine.corpus.messages import MessageForm, messages_of, tools_of
from engine.corpus.pretokenized import TokenColumns
from engine.corpus.values import MapValue, NotText, Problem, advice, decode, described, listed, without_nulls
from schemas.errors import CorpusError
from schemas.runfile import CorpusConfig

TOOLS = "tools"
"""The column of a conversation's tools where the run file names none."""


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
    tools: str = ""  # of a conversation, see Document

    @classmethod
    def bad(cls, row: int, place: str, problem: Problem) -> Record:
        """A record without text."""
        return cls(row, place, None, "", 0, problem)

    @classmethod
    def good(
        cls,
        row: int,
        place: str,
        doc_id: str | None,
        text: str,
        n_bytes: int,
        messages: tuple[Message, ...] = (),
        tools: str = "",
    ) -> Record:
        """A record with a text, unless it is white space only."""
        if not text.strip():
            return cls.bad(row, place, Problem("empty_text", f"{len(text)} characters, all white space"))
        return cls(row, place, doc_id, text, n_bytes, None, messages, tools)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the run file takes from a record: `pieces` are (literal text, column or None), joined; `id` names it.
    messages: the column of a conversation, instead of pieces; tools: that of its tools; form: how its messages are written.
    optional: columns that need not be there. prompt: pieces of what stands before the text and is not scored; tokens: columns of
    tokens instead of a text."""

    pieces: tuple[tuple[str, str | None], ...]
    numbers: bool  # whether whole numbers count as text: in a template, not in a text column
    id: str | None
    messages: str | None = None
    tools: str | None = None
    form: MessageForm | None = None
    optional: tuple[str, ...] = ()
    prompt: tuple[tuple[str, str | None], ...] = ()
    tokens: TokenColumns | None = None
    join: str | None = None  # what is put between the texts of a list

    @classmethod
    def of(cls, config: CorpusConfig) -> Columns:
        """From what [corpus] names: text, template, messages, prompt and completion, or input_ids; and id."""
        if config.messages is not None:
            optional = (TOOLS,) if config.tools is None else ()
            return cls((), False, config.id, config.messages, config.tools or TOOLS, MessageForm.of(config), optional)
        if config.input_ids is not None:
            assert config.ids_source is not None  # set with the run file
            return cls((), False, config.id, tokens=TokenColumns(config.input_ids, config.labels, *config.ids_source))
        if config.completion is not None:
            prompt = (("", config.prompt),) if config.prompt_template is None else _pieces(config.prompt_template)
            numbers = config.prompt_template is not None
            return cls((("", config.completion),), numbers, config.id, prompt=prompt, join=config.join)
        if config.template is None:
            return cls((("", config.text),), False, config.id, join=config.join)
        return cls(_pieces(config.template), True, config.id, join=config.join)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns needed, without repetition."""
        used = [name for _, name in (*self.prompt, *self.pieces)]
        used += [self.messages, self.tools, *((self.tokens.ids, self.tokens.labels) if self.tokens else ()), self.id]
        return tuple(dict.fromkeys(name for name in used if name is not None and name not in self.optional))

    def there(self, present: Sequence[str]) -> list[str]:
        """The columns to be read of a table that has those `present`."""
        return [*(_column_of(name, present) for name in self.names), *(n for n in self.optional if n in present)]

    def check(self, present: list[str], where: str) -> None:
        """CorpusError when a table (`where`) lacks a column, so that every record would, or has two of the name."""
        wrong = [name for name in self.names if present.count(_column_of(name, present)) != 1]
        if wrong:
            raise CorpusError(
                f"{where}: got the columns {listed(present)}; wanted {listed(wrong)} once, as the run file says."
                f"{advice(present)} Correct [corpus] text, template, messages, id, or what else names a column."
            )

    def of_object(self, row: int, place: str, item: object) -> Record:
        """A Record from a parsed JSON value; a problem when it is no object or its columns are not usable."""
        if not isinstance(item, dict):
            return Record.bad(
                row, place, Problem("malformed_json", f"the record is {described(item)}, wanted an object")
            )
        return self._of_mapping(row, place, item)

    def of_arrow(self, row: int, batch: pa.RecordBatch) -> Iterator[Record]:
        """Records from Arrow rows; `row` is the number of the first one in its file."""
        nested = (self.messages, self.tools, *((self.tokens.ids, self.tokens.labels) if self.tokens else ()))
        present = batch.schema.names
        values = {name: _nested(batch.column(name)) for name in nested if name is not None and name in present}
        for name in dict.fromkeys(self.names).keys() - values.keys():
            column = _inner(batch, name)
            is_list = self.join is not None and not pa.types.is_map(column.type) and pa.types.is_nested(column.type)
            values[name] = (_nested if is_list else _values)(column)
        for offset in range(batch.num_rows):
            item = {name: column[offset] for name, column in values.items()}
            yield self._of_mapping(row + offset, f"row {row + offset}", item)

    def _of_mapping(self, row: int, place: str, item: Mapping[str, object]) -> Record:
        found = self._said(item)
        if isinstance(found, Problem):
            return Record.bad(row, place, found)
        messages: tuple[Message, ...] = () if isinstance(found, str) else found
        tools = "" if self.tools is None else tools_of(item.get(self.tools), f"column {json.dumps(self.tools)}")
        if isinstance(tools, Problem):
            return Record.bad(row, place, tools)
        joined = found if isinstance(found, str) else "".join(message.content for message in found)
        n_bytes = len(joined.encode("utf-8"))
        doc_id = None if self.id is None else _text(item, self.id, numbers=True)
        if isinstance(doc_id, Problem):
            return Record.bad(row, place, doc_id)
        if doc_id == "":
            return Record.bad(row, place, Problem("not_text", f"column {json.dumps(self.id)} is empty, wanted a name"))
        return Record.good(row, place, doc_id, joined, n_bytes, messages, tools)

    def _said(self, item: Mapping[str, object]) -> str | tuple[Message, ...] | Problem:
        """The text of a record, or its messages. A prompt and its completion are those of a user and an assistant."""
        if self.tokens is not None:
            return self.tokens.read(item)
        if self.messages is not None:
            return self._conversation(item)
        text = self._joined(item, self.pieces)
        if not self.prompt or isinstance(text, Problem):
            return text
        prompt = self._joined(item, self.prompt)
        return prompt if isinstance(prompt, Problem) else (Message("user", prompt), Message("assistant", text))

    def _joined(self, item: Mapping[str, object], pieces: Sequence[tuple[str, str | None]]) -> str | Problem:
        text = []
        for words, name in pieces:
            value = "" if name is None else _text(item, name, numbers=self.numbers, join=self.join)
            if isinstance(value, Problem):
                return value
            text += [words, value]
        return "".join(text)

    def _conversation(self, item: Mapping[str, object]) -> tuple[Message, ...] | Problem:
        assert self.messages is not None and self.form is not None
        if self.messages not in item:
            return _missing(self.messages, list(item))
        return messages_of(item[self.messages], f"column {json.dumps(self.messages)}", self.form)


def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((words, name) for words, name, _, _ in string.Formatter().parse(template))


def _column_of(name: str, present: Sequence[str]) -> str:
    """The column that a name means: `doc.text` is the field `text` of the column `doc`, where no column is called so."""
    return name if name in present else name.partition(".")[0]


def _inner(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column, or a field in one. Null where a field is missing."""
    root = _column_of(name, batch.schema.names)
    column = batch.column(root)
    for field in name[len(root) :].split(".")[1:]:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(field) < 0:
            return pa.nulls(batch.num_rows)
        column = pc.struct_field(column, field)  # pyright: ignore[reportAttributeAccessIssue] - made when pyarrow is imported
    return column


def _found(item: Mapping[str, object], name: str) -> object:
    """The value of a column, or of a field in one. Raises KeyError."""
    if name in item:
        return item[name]
    value: object = item
    for field in name.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(field)
        value = value[field]
    return value


def _missing(name: str, present: list[str]) -> Problem:
    more = advice(present)
    return Problem("missing_column", f"no column {json.dumps(name)}; got {listed(present)}{'.' if more else ''}{more}")


def _text(item: Mapping[str, object], name: str, *, numbers: bool, join: str | None = None) -> str | Problem:
    """The text in column `name`; whole numbers too where `numbers` is true (templates and ids). join: what is put between the
    texts of a list."""
    try:
        value = _found(item, name)
    except KeyError:
        return Problem(
            "missing_column", f"no column {json.dumps(name)}; got {listed(list(item))}.{advice(list(item))}".rstrip(".")
        )
    if isinstance(value, list) and join is not None:
        parts = [_text({name: part}, name, numbers=numbers) for part in value]
        return next((part for part in parts if isinstance(part, Problem)), join.join(str(part) for part in parts))
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
    return Problem("not_text", f"column {json.dumps(name)} is {described(value)}, wanted text")


def _nested(column: pa.Array) -> list[object]:
    """Python values of an Arrow column of lists of objects; texts in it as bytes, as in `_values`. Fields that are null are left
    out: Arrow gives every object the fields of all."""
    type_ = _with_bytes(column.type)
    values = column.cast(type_).to_pylist()
    named = [_named(value, type_) for value in values] if "map<" in str(type_) else values
    return [without_nulls(value) for value in named]


def _named(value: Any, type_: pa.DataType) -> object:
    """A nested value with its maps, which Arrow gives as lists of pairs, as what they are."""
    if value is None or not pa.types.is_nested(type_):
        return value
    if pa.types.is_map(type_):
        pairs = ((key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key), item) for key, item in value)
        return MapValue((key, _named(item, type_.item_type)) for key, item in pairs)
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
