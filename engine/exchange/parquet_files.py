"""Folders of Parquet files with lists of lists: written from readings, one file for each of the output; and read by records.

D readings, N tokens of them all, K entries of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.exchange.reading import Reading
from engine.exchange.source import SourceFile
from schemas.errors import CorpusError

PREFIX = "targetsmith."
NAMES = f"{PREFIX}names"
"""Key of a file's metadata: JSON, [name of the document, digest of its tokens] of each record. A column of names would stop the
loaders of some programs; the footer none. The digest tells whether a record is still that one."""
BATCH_RECORDS = 16
"""Records that are read at a time: other programs' row groups may hold gigabytes."""

Columns = Callable[[list[Reading]], pa.Table]


def write_files(
    folder: Path,
    files: Iterable[Iterable[list[Reading]]],
    count: int,
    columns: Columns,
    metadata: Mapping[str, str],
    length: int | None = None,
) -> None:
    """`train-00000-of-00007.parquet` .. in a folder; of each file its row groups, each as a table. length: most tokens that
    `columns` takes of a reading. Raises OSError."""
    for number, groups in enumerate(files):
        write_file(folder / f"train-{number:05d}-of-{count:05d}.parquet", groups, columns, metadata, length)


def write_file(
    path: Path,
    groups: Iterable[list[Reading]],
    columns: Columns,
    metadata: Mapping[str, str],
    length: int | None = None,
) -> None:
    """One of them. There is at least one group. Raises OSError."""
    writer: pq.ParquetWriter | None = None
    names: list[tuple[str, str]] = []
    for readings in groups:
        table = columns(readings)
        writer = writer or _writer(path, table.schema)
        writer.write_table(table, row_group_size=table.num_rows)
        names += [(reading.name, digest(reading.token_ids_T[:length])) for reading in readings]
    assert writer is not None
    writer.add_key_value_metadata({f"{PREFIX}{key}": value for key, value in metadata.items()})
    writer.add_key_value_metadata({NAMES: json.dumps(names, ensure_ascii=False, separators=(",", ":"))})
    writer.close()


def digest(token_ids_T: np.ndarray) -> str:
    """Of the tokens of a record, 16 hexadecimal digits."""
    return hashlib.blake2b(token_ids_T.astype("<i4").tobytes(), digest_size=8).hexdigest()


def flat_list(values_N: np.ndarray, lengths_D: Sequence[int], kind: pa.DataType) -> pa.Array:
    """One list a reading."""
    offsets = np.concatenate([[0], np.cumsum(lengths_D)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values_N, kind))


def nested_list(values_NK: np.ndarray, lengths_D: Sequence[int], kind: pa.DataType) -> pa.Array:
    """One list a reading, of a list a token."""
    count, width = values_NK.shape
    inner = pa.array(np.arange(count + 1, dtype=np.int64) * width, pa.int32())
    rows = pa.ListArray.from_arrays(inner, pa.array(np.ascontiguousarray(values_NK).ravel(), kind))
    offsets = np.concatenate([[0], np.cumsum(lengths_D)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), rows)


def source_files(paths: Sequence[Path], needed: Sequence[str], form: str) -> tuple[list[SourceFile], dict[str, str]]:
    """(files with the lengths of their records, what an export of ours says in the first). Raises CorpusError: damaged, or a
    column is not there."""
    found, said = [], {}
    for path in paths:
        with opened(path) as file:
            lacking = [name for name in needed if name not in file.schema_arrow.names]
            if lacking:
                raise CorpusError(
                    f"{path}: no columns {', '.join(lacking)}, but {', '.join(file.schema_arrow.names)}; {form} has "
                    f"{', '.join(needed)} (docs/exchange.md): name the files of that form"
                )
            sizes = [
                pc.call_function("list_value_length", [batch.column(0)]).to_numpy(zero_copy_only=False)
                for batch in file.iter_batches(1024, columns=["input_ids"])
            ]
            metadata = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
        said = said or {k.removeprefix(PREFIX): value for k, value in metadata.items() if k.startswith(PREFIX)}
        names = _names(metadata.get(NAMES, "[]"))
        tokens = np.concatenate([np.empty(0, np.int64), *sizes])
        if np.isnan(tokens.astype(np.float64)).any():
            raise CorpusError(f"{path}: a record without input_ids; do without it, or write the file anew")
        found.append(SourceFile(path, path.name, tokens.astype(np.int64), names))
    if not sum(len(file.tokens) for file in found):
        raise CorpusError(f"{paths[0].parent}: files without a record; there is nothing to read")
    return found, said


def _names(said: str) -> dict[str, str]:
    """Digest of the tokens -> name of the document. Left out: what is no such list, and tokens that several documents have."""
    try:
        pairs = [(str(tokens), str(name)) for name, tokens in json.loads(said)]
    except (ValueError, TypeError, RecursionError):
        return {}
    count = Counter(tokens for tokens, _ in pairs)
    return {tokens: name for tokens, name in pairs if count[tokens] == 1}


def records(path: Path, first: int, count: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Records [first, first + count) of a file: column -> the record's value (an Arrow scalar). Raises CorpusError."""
    with opened(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = [g for g, end in enumerate(ends) if end > first and end - sizes[g] < first + count]
        row = int(ends[groups[0]] - sizes[groups[0]]) if groups else 0
        there = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_RECORDS, row_groups=groups, columns=there):
            for index in range(max(0, first - row), min(batch.num_rows, first + count - row)):
                yield {name: batch.column(name)[index] for name in there}
            row += batch.num_rows
            if row >= first + count:
                return


def widest(paths: Sequence[Path], column: str) -> int:
    """Most entries of an inner list of a column. Reads the column once."""
    most = 0
    for path in paths:
        with opened(path) as file:
            for batch in file.iter_batches(BATCH_RECORDS, columns=[column]):
                lengths = pc.call_function("list_value_length", [batch.column(0).flatten()])
                most = max(most, pc.call_function("max", [lengths]).as_py() or 0)
    return most


def ragged(rows: Any, fill: float, kind: Any) -> np.ndarray:
    """A list of lists (an Arrow scalar) as a rectangle, [T, most of an inner list]."""
    inner = rows.values
    values = inner.flatten().to_numpy(zero_copy_only=False)
    lengths = pc.call_function("list_value_length", [inner]).to_numpy(zero_copy_only=False)
    lengths = np.nan_to_num(lengths.astype(np.float64)).astype(np.int64)
    found = np.full((len(lengths), int(lengths.max(initial=0))), fill, kind)
    found[np.arange(found.shape[1]) < lengths[:, None]] = values
    return found


def one_list(value: Any, kind: Any) -> np.ndarray:
    """A list (an Arrow scalar) as an array."""
    return value.values.to_numpy(zero_copy_only=False).astype(kind)


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A file of another program. Any of Arrow's and the system's errors becomes a CorpusError that names it."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError, TypeError) as error:
        raise CorpusError(
            f"{path}: cannot be read as Parquet of this form ({type(error).__name__}: {' '.join(str(error).split())}); copy it "
            "again, or name another file"
        ) from error


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    floats = [name for name in schema.names if "float" in str(schema.field(name).type)]
    nested = [f"{name}.list.element.list.element" for name in floats if str(schema.field(name).type).count("list") == 2]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in schema.names if name not in floats],  # pyright: ignore[reportArgumentType]
        column_encoding=dict.fromkeys(nested, "BYTE_STREAM_SPLIT"),
        write_page_checksum=True,
        write_statistics=False,
    )
