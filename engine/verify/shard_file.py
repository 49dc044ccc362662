"""One Parquet file against its seal, its unit and its product: bytes, footer, schema, pages, documents, rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.dataset.invariants import BrokenInvariant, misfit, place_of
from engine.dataset.parquet import MAX_GROUP_ROWS, Shard, flat, footer_of, lengths_of, open_shard
from engine.verify.findings import Finding, short
from engine.verify.rows import broken_in, sum_slack, sums_of
from schemas.counts import counted
from schemas.manifest import Plan, PlanUnit, ProductFacts, ShardFile
from schemas.target import SCHEMA_VERSION

_FOR_PEOPLE = ("columns", "stats", "tokenizer")
"""Keys of the footer that may differ between two attempts at one run (another path of the same tokenizer)."""


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """What a file must be.

    record              its seal's: name, documents, positions, bytes, sha256
    quarantined         doc_rows of the unit that are in quarantine; None: not known
    n_quarantined       how many those are, as sealed
    stats               of the seal; None: there is no seal to be read
    text_stored         None: the plan does not say
    calibration_sha256  of the calibration file that open mass was placed by; None: there is none, or that is not known
    """

    plan: Plan
    unit: PlanUnit
    product: str
    record: ShardFile
    quarantined: frozenset[int] | None
    n_quarantined: int
    stats: Mapping[str, float] | None
    text_stored: bool | None
    calibration_sha256: str | None = None

    @property
    def facts(self) -> ProductFacts:
        return self.plan.products[self.product]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def documents(self) -> list[int] | None:
        """doc_rows in order."""
        if self.quarantined is None:
            return None
        rows = range(self.unit.doc_row, self.unit.doc_row + self.unit.n_rows)
        return [row for row in rows if row not in self.quarantined]


@dataclass(slots=True)
class FileContents:
    """What was read of a file, to be compared with the unit's other products. groups: documents of each row group."""

    groups: list[int] = field(default_factory=list)
    doc_rows: list[int] = field(default_factory=list)
    doc_ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tokens: list[npt.NDArray[np.int32]] = field(default_factory=list)  # token_ids and byte_end of each row group
    sums: dict[str, float] = field(default_factory=dict)
    complete: bool = False


class FileCheck:
    """Checks the bytes of one file. After `run`, `findings` and `contents` say what came of it."""

    def __init__(self, expected: ExpectedFile) -> None:
        self.expected = expected
        self.contents = FileContents()
        self._found: dict[tuple[Any, ...], Finding] = {}

    @property
    def findings(self) -> list[Finding]:
        return list(self._found.values())

    def run(self, data: bytes) -> None:
        """Whatever the bytes are, no error leaves."""
        record = self.expected.record
        if len(data) != record.bytes:
            self._add("file size", f"{len(data):,} bytes", f"{record.bytes:,} bytes, as sealed")
        if (digest := hashlib.sha256(data).hexdigest()) != record.sha256:
            self._add("sha256", f"sha256 {digest[:12]}…", f"{short(record.sha256, 13)} of the seal")
        try:
            self._open(data)
        except Exception as error:  # Arrow has many kinds of errors for a broken file
            cause = error.__cause__ or error  # without place and advice: the finding has its own
            self._add("open", f"not readable: {type(cause).__name__}: {short(cause)}", "a Parquet file")

    def _open(self, data: bytes) -> None:
        facts = self.expected.facts
        with open_shard(data, self.expected.name) as shard:
            file = shard.file
            if not self._is_ours(shard.footer):
                return
            self._check_footer(shard.footer, file.metadata)
            schema = file.schema_arrow
            if not schema.equals(facts.schema_of_rows, check_metadata=False):
                for found, wanted, name in _differences(schema, facts.schema_of_rows):
                    self._add(("schema", name), found, wanted, column=name)
                return
            whole = True
            for group in range(file.num_row_groups):
                try:
                    self._check_group(shard, group)
                except Exception as error:
                    whole = False
                    found = f"row group {group} not readable: {type(error).__name__}: {short(error)}"
                    self._add("read", found, "pages with the checksums that were written")
            self.contents.complete = whole
        if whole:
            self._check_documents()
            self._check_sums()

    # ---- footer

    def _is_ours(self, footer: Mapping[str, str]) -> bool:
        """Of a file of another run, product or unit nothing else is told."""
        expected = self.expected
        wanted = {
            "fingerprint": expected.plan.fingerprint,
            "product": expected.product,
            "unit": str(expected.unit.index),
        }
        found = {key: footer.get(f"targetsmith.{key}") for key in wanted}
        if found == wanted:
            return True
        told = [
            ", ".join(
                f"{key} {short(value, 60 if key == 'product' else 13)}"
                for key, value in one.items()
                if found[key] != wanted[key]
            )
            for one in (found, wanted)
        ]
        self._add(("footer", "file"), f"a file of {told[0]}", f"of {told[1]}")
        return False

    def _check_footer(self, footer: Mapping[str, str], metadata: Any) -> None:
        expected, record = self.expected, self.expected.record
        wanted = footer_of(
            expected.plan,
            expected.unit.index,
            expected.product,
            record.rows,
            record.positions,
            expected.n_quarantined,
            {},
            expected.calibration_sha256,
        )
        for name, value in wanted.items():
            found = footer.get(name)
            if name.removeprefix("targetsmith.") not in _FOR_PEOPLE and found != value:
                told = "no such key" if found is None else repr(short(found))
                self._add(("footer", name), f"{name} = {told} in the footer", repr(short(value)))
        for key, names in (("columns", self.expected.facts.schema_of_rows.names), ("stats", None)):
            try:
                content = json.loads(footer.get(f"targetsmith.{key}", ""))
                good = isinstance(content, dict) and (names is None or sorted(content) == sorted(names))
            except ValueError:
                good = False
            if not good:
                self._add(("footer", key), f"targetsmith.{key} of the footer is not as described", "a JSON object")
        if metadata.num_rows != record.rows:
            self._add("rows", f"{metadata.num_rows} rows", f"{record.rows}, as sealed")
        used = {metadata.row_group(g).column(c).compression for g in range(metadata.num_row_groups) for c in (0, 3)}
        if used - {"ZSTD"}:
            self._add("compression", f"compression {', '.join(sorted(used))}", "ZSTD")

    # ---- rows

    def _check_group(self, shard: Shard, group: int) -> None:
        expected, facts = self.expected, self.expected.facts
        table = shard.file.read_row_group(group)
        if nulls := [name for name in table.schema.names if nulls_of(table, name)]:
            self._add("nulls", f"nulls in row group {group}", "none in any column", column=nulls[0])
            raise ValueError("with nulls its values cannot be checked")
        if wrong := misfit(table, facts):
            self._add("misfit", f"in row group {group}, {wrong}", "lists as docs/format.md, section 3, has them")
            raise ValueError("its lists do not fit each other")
        rows, ids = table.column("doc_row").to_pylist(), table.column("doc_id").to_pylist()
        if facts.sources and expected.plan.has_corpus:
            source, named = expected.plan.source_of(expected.unit), table.column("source").to_pylist()
            for row in [row for row, name in enumerate(named) if name != source][:1]:
                wanted = f"{source!r}, the table that the unit is of"
                self._add("source", repr(named[row]), wanted, document=ids[row], column="source")
        if table.num_rows > MAX_GROUP_ROWS:
            self._add(
                "group", f"{counted(table.num_rows, 'document')} in row group {group}", f"at most {MAX_GROUP_ROWS}"
            )
        for column, values in (("doc_id", ids), ("doc_row", rows)):
            found = shard.statistics(group, column)
            if not values or (found is None and any(_is_long(value) for value in (min(values), max(values)))):
                continue
            if found != (min(values), max(values)):
                wanted = f"{short(repr(min(values)))} to {short(repr(max(values)))}, as the rows have"
                told = f"statistics {short(str(found))} of row group {group}"
                self._add(("statistics", column), told, wanted, column=column)
        lengths = lengths_of(table)
        for broken in broken_in(expected.product, table, facts, expected.text_stored):
            self._take(broken, table, lengths)
        contents = self.contents
        contents.groups.append(table.num_rows)
        contents.doc_rows += rows
        contents.doc_ids += ids
        contents.texts += table.column("text").to_pylist()
        contents.tokens += [flat(table, "token_ids"), flat(table, "byte_end")]
        for name, value in sums_of(table, facts).items():
            contents.sums[name] = contents.sums.get(name, 0) + value

    def _take(self, broken: BrokenInvariant, table: pa.Table, lengths: np.ndarray) -> None:
        row, position = place_of(lengths, broken.position)
        key = (broken.column, broken.wanted)
        before = self._found.get(key)
        if before is not None:  # the first place stands, the others are counted
            count = before.count + broken.count
            self._found[key] = Finding(
                before.file, before.found, before.wanted, before.document, before.position, before.column, count
            )
            return
        document = table.column("doc_id")[row].as_py()
        self._add(
            key,
            short(broken.found, 300),
            broken.wanted,
            document=document,
            position=position,
            column=broken.column,
            count=broken.count,
        )

    def _check_documents(self) -> None:
        contents, wanted = self.contents, self.expected.documents
        if sum(contents.groups) and len(set(contents.doc_ids)) < len(contents.doc_ids):
            seen: set[str] = set()
            twice = next(name for name in contents.doc_ids if name in seen or seen.add(name))
            self._add("twice", "a doc_id twice in the unit", "each once", document=twice, column="doc_id")
        if wanted is None or contents.doc_rows == wanted:
            return
        unit, found = self.expected.unit, contents.doc_rows
        lost, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        told = [f"lost {lost[:10]}"] if lost else []
        told += [f"not expected here {extra[:10]}"] if extra else []
        told += ["some twice"] if len(set(found)) < len(found) else []
        last = unit.doc_row + unit.n_rows - 1
        self._add(
            "documents",
            f"documents {', '.join(told) or 'out of order'}",
            f"doc_row {unit.doc_row} to {last} in order, each once or in quarantine",
            column="doc_row",
        )

    def _check_sums(self) -> None:
        expected, sums = self.expected, self.contents.sums
        if sums.get("positions") != expected.record.positions:
            self._add(
                "positions", f"{sums.get('positions', 0):,} positions", f"{expected.record.positions:,}, as sealed"
            )
        stats = expected.stats
        # An attempt that scored more documents than the claim leaves counts what it scored (docs/format.md, section 6).
        if stats is None or stats.get("quarantined") != expected.n_quarantined:
            return
        for name, found in sums.items():
            key = f"{expected.product}.{name}"
            sealed = stats.get(key)
            if sealed is None:
                self._add(("stats", key), f"no {key} in the stats of the seal", f"{found:g}, as the rows have")
            elif not abs(sealed - found) <= sum_slack(name, found, sums["scored"], expected.facts):
                self._add(("stats", key), f"{key} = {sealed:g} in the seal", f"about {found:g}, as the rows have")

    def _add(self, key: Any, found: str, wanted: str, **place: Any) -> None:
        self._found.setdefault(
            key if isinstance(key, tuple) else (key,), Finding(self.expected.name, found, wanted, **place)
        )


def compare(names: Sequence[str], contents: Sequence[FileContents]) -> Iterator[Finding]:
    """The products of a unit have the same documents in the same row groups. Files that could not be read are left out."""
    whole = [(name, content) for name, content in zip(names, contents, strict=True) if content.complete]
    for name, content in whole[1:]:
        first, reference = whole[0]
        for what, column in (("groups", None), ("doc_rows", "doc_row"), ("doc_ids", "doc_id"), ("texts", "text")):
            mine, theirs = getattr(content, what), getattr(reference, what)
            if mine != theirs:
                pairs = enumerate(zip(mine, theirs, strict=False))
                at = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
                told = [repr(short(values[at], 60)) if at < len(values) else "nothing" for values in (mine, theirs)]
                unit = "documents of row group" if what == "groups" else f"{column} of document"
                document = content.doc_ids[at] if what == "texts" and at < len(content.doc_ids) else None
                yield Finding(name, f"{unit} {at}: {told[0]}", f"{told[1]}, as in {first}", document, column=column)
                break


def same_tokens(name: str, content: FileContents, other: str, reference: FileContents) -> Iterator[Finding]:
    """Hidden states stand at the tokens of the product `teacher`."""
    pairs = zip(content.tokens, reference.tokens, strict=False)
    if content.groups == reference.groups and not all(np.array_equal(a, b) for a, b in pairs):
        yield Finding(name, "other token_ids or byte_end", f"those of {other}", column="token_ids")


def _differences(found: pa.Schema, wanted: pa.Schema) -> Iterator[tuple[str, str, str]]:
    """(found, wanted, column) of every column that differs."""
    for column in wanted:
        at = found.get_field_index(column.name)
        if at < 0 or not found.field(at).equals(column):
            here = "no such column (or several)" if at < 0 else _typed(found.field(at))
            yield here, _typed(column), column.name
    for name in found.names:
        if name not in wanted.names:
            yield "a column that is not of this product", f"none in schema version {SCHEMA_VERSION}", name
    if sorted(found.names) == sorted(wanted.names) and found.names != wanted.names:
        yield f"the order {', '.join(found.names)}", ", ".join(wanted.names), wanted.names[0]


def _typed(column: pa.Field) -> str:
    return f"{column.type}{'' if column.nullable else ' not null'}"


def nulls_of(table: pa.Table, name: str) -> int:
    """In the column, and in its lists."""
    column = table.column(name)
    inner = sum(chunk.flatten().null_count for chunk in column.chunks) if pa.types.is_list(column.type) else 0
    return column.null_count + inner


def _is_long(value: Any) -> bool:
    """Arrow writes no statistics of texts longer than this."""
    return isinstance(value, str) and len(value.encode("utf-8", "surrogatepass")) > 4096
