"""Objects of JSON files: lines, objects over several lines, and lists. Bytes go in; numbered objects come out."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import IO, Any

from engine.corpus.columns import Columns, Record
from engine.corpus.values import Problem, decode
from schemas.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Mark:
    """A place within a file of lines where reading may begin: the number of the record there, its byte, its line from 1."""

    row: int
    offset: int
    line: int


START = Mark(0, 0, 1)


@dataclass(slots=True)
class Marks:
    """Where each record of a file of lines begins; empty where a record is no line."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))

    def at(self, row: int) -> Mark | None:
        """The beginning of a record; None where it is not known."""
        return Mark(row, self.offsets[row], self.lines[row]) if row < len(self.offsets) else None


def json_lines(stream: IO[bytes], marks: Marks | None = None, begin: Mark = START) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes) of the lines that are not blank. A byte order mark at the very start is dropped.

    Where the first line is a lone brace and the second one is no object, objects are written over several lines: each ends at a
    brace that stands as far in as its first one. marks: filled where each record is a line. begin: where the stream stands.
    """
    lines = _lines(stream, begin)
    first = list(islice(lines, 2)) if begin == START else []
    if len(first) < 2 or first[0][1].strip() != b"{" or first[1][1].strip()[:1] not in (b'"', b"}"):
        for number, line, offset in chain(first, lines):
            if marks is not None:
                marks.offsets.append(offset)
                marks.lines.append(number)
            yield number, line
        return
    begun, margin, parts = 0, b"", list[bytes]()
    for number, line, _ in chain(first, lines):
        if parts and line.rstrip() == margin + b"{":  # the one before has no end
            yield begun, b"".join(parts)
            parts = []
        if not parts:
            begun, margin = number, line[: len(line) - len(line.lstrip())]
        parts.append(line)
        if line.rstrip().rstrip(b",") == margin + b"}":
            yield begun, b"".join(parts).rstrip().removesuffix(b",")
            parts = []
    if parts:
        yield begun, b"".join(parts)


def _lines(stream: IO[bytes], begin: Mark) -> Iterator[tuple[int, bytes, int]]:
    offset = begin.offset
    for number, line in enumerate(stream, start=begin.line):
        at, offset = offset, offset + len(line)
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line, at


def json_record(row: int, line: int, raw: bytes, columns: Columns) -> Record:
    place = f"line {line}"
    text = decode(raw)
    if isinstance(text, Problem):
        return Record.bad(row, place, text)
    try:
        item = json.loads(text)
    except json.JSONDecodeError as error:
        return Record.bad(row, place, Problem("malformed_json", f"{error.msg} at character {error.pos + 1}"))
    except ValueError as error:  # a number of more digits than Python converts
        return Record.bad(row, place, Problem("malformed_json", str(error)))
    except RecursionError:
        return Record.bad(row, place, Problem("malformed_json", "nested too deeply"))
    return columns.of_object(row, place, item)


def json_list(raw: bytes, where: str) -> list[Any]:
    """The list in a .json file: the whole file, or the one list in its object. where: its name. Raises CorpusError."""
    try:
        # Bytes that are not UTF-8 become lone surrogates, so that only the record that holds them is refused.
        value = json.loads(raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff") if raw.strip() else "[]")
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and (several := _json_objects(raw)):
            return several
        raise CorpusError(
            f"{where}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). Repair it; if "
            f"each line is an object of its own, rename the file to .jsonl."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not readable as JSON ({error}). Convert the file to .jsonl.") from error
    if isinstance(value, list):
        return value
    lists = [key for key, item in value.items() if isinstance(item, list)] if isinstance(value, dict) else []
    if len(lists) != 1:
        got = f"an object with {len(lists)} lists" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise CorpusError(
            f"{where}: got {got}; wanted a list of objects, or an object with one list of objects. "
            f"Convert the file to .jsonl, one object per line."
        )
    return value[lists[0]]


def _json_objects(raw: bytes) -> list[Any]:
    """Objects one after another, however they are broken into lines; empty where they are not all objects."""
    text, decoder, at, found = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff"), json.JSONDecoder(), 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return []
        found.append(value)
    return found if all(isinstance(value, dict) for value in found) else []
