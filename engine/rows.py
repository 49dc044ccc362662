"""One product of one unit: rows -> checked, rounded rows -> the bytes of a Parquet file, reopened and compared.

Shapes: N = positions of the table (sum of T over its documents), K = top_k.
Nothing here touches a disk: engine/publish.py makes the bytes visible, engine/shards.py says when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import IdentityError, OutputError
from schemas.target import (
    BYTE_STREAM_SPLIT_COLUMNS,
    FLAG_CONTEXT,
    FLAG_GIVEN,
    FLAG_NO_MASS,
    MANTISSA_BITS,
    PAD_ID,
    ROW_SCHEMA,
)

MAX_GROUP_ROWS = 64
"""Documents per row group at most: the unit of streaming and of shuffling."""
MAX_GROUP_BYTES = 48 << 20
"""Raw (uncompressed) bytes per row group at most, unless one document alone is larger."""
SIGN_TOLERANCE = 1e-6
"""A log-probability may exceed 0, and a share may exceed 1, by this much: float32 sums. Nothing is clamped."""

_WRITER: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": ["flags.list.element"],
    "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in BYTE_STREAM_SPLIT_COLUMNS},
    "write_statistics": ["doc_id", "doc_row"],
    "write_page_checksum": True,
    "write_page_index": True,
}

_DROPPED = 23 - MANTISSA_BITS
_MASK = np.uint32(0xFFFFFFFF << _DROPPED & 0xFFFFFFFF)
_HALF = np.uint32((1 << (_DROPPED - 1)) - 1)


def round_logps(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """float32 values with MANTISSA_BITS mantissa bits, to nearest, ties to even. Same shape; error <= 2**-11 |x|.

    -inf and 0 stay as they are, order is kept (x <= y gives round(x) <= round(y)), and a second call changes nothing.
    NaN is refused with IdentityError.
    """
    bits = _bits_of(np.asarray(values, dtype=np.float32), "a log-probability")
    odd = (bits >> np.uint32(_DROPPED)) & np.uint32(1)
    return ((bits + _HALF + odd) & _MASK).view(np.float32)


def round_up(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """float32 values in [0, 1] with MANTISSA_BITS mantissa bits, never smaller than the input; same shape.

    For upper bounds (`err`, `pruned_mass`), which stay true that way. Input outside [0, 1] and NaN: IdentityError.
    """
    wanted = np.asarray(values)
    single = wanted.astype(np.float32)
    single = np.where(single < wanted, np.nextafter(single, np.float32(np.inf)), single)  # float64 rounded down
    if single.size and not (single.min() >= 0 and wanted.max() <= 1):
        raise IdentityError(
            f"an upper bound on a probability lies in [{np.min(wanted)}, {np.max(wanted)}], wanted within [0, 1]: "
            "a bug in the scorer; please report it with the run file"
        )
    bits = _bits_of(single + np.float32(0), "an upper bound")  # + 0 turns -0 into 0
    return ((bits + np.uint32((1 << _DROPPED) - 1)) & _MASK).view(np.float32)


def round_rows(table: pa.Table) -> pa.Table:
    """The table with every float column at stored precision: bounds rounded up, all others to nearest. Idempotent."""
    for name in ("topk_logps", "tail_logp", "gold_logp", "open_mass", "excluded_mass", "noncanonical_mass"):
        table = _replace(table, name, round_logps(flat(table, name)))
    for name in ("err", "pruned_mass"):
        table = _replace(table, name, round_up(flat(table, name)))
    return table


def flat(table: pa.Table, name: str) -> np.ndarray:
    """All elements of a list column, [N] (or [N*K] for the top-k columns)."""
    return table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def lengths_of(table: pa.Table, name: str = "token_ids") -> npt.NDArray[np.int64]:
    """Elements per document, [rows] int64."""
    column = table.column(name).combine_chunks()
    return np.diff(column.offsets.to_numpy()).astype(np.int64)


def mass_tolerance(top_k: int) -> float:
    """How far stored mass + tail may lie from 1.

    Rounding moves each log-probability by at most 2**-11 of itself, so the sum of p by at most 2**-11 * H with H the
    entropy of the K + 1 parts, H <= ln(K + 1): 2.0e-3 at K = 64. 2 % for the second order, 1e-6 for the arithmetic.
    """
    return 1.02 * 2.0 ** -(MANTISSA_BITS + 1) * float(np.log(top_k + 1)) + 1e-6


def check_rows(table: pa.Table, *, top_k: int, vocab_size: int, where: str) -> None:
    """The invariants of docs/format.md on rows at stored precision, vectorised.

    Raises ValueError when the table has another schema or list lengths (the caller is wrong), IdentityError with
    document, position and numbers when a probability identity is broken.
    """
    if not table.schema.equals(ROW_SCHEMA, check_metadata=False):
        raise ValueError(f"{where}: got schema\n{table.schema}\nwanted ROW_SCHEMA\n{ROW_SCHEMA}")
    lengths = lengths_of(table)
    for field in ROW_SCHEMA:
        if pa.types.is_list(field.type):
            wanted = lengths * top_k if field.name.startswith("topk_") else lengths
            if not np.array_equal(lengths_of(table, field.name), wanted):
                raise ValueError(
                    f"{where}: {field.name} has other list lengths than token_ids asks for (top_k {top_k})"
                )
    if table.num_rows and not lengths.all():
        raise ValueError(f"{where}: a document without positions; such a document belongs in quarantine")
    problem = next(_problems(table, lengths, top_k, vocab_size), None)
    if problem is not None:
        row = int(np.searchsorted(np.cumsum(lengths), problem.position, side="right"))
        position = problem.position - int(lengths[:row].sum())
        raise IdentityError(
            f"{where}: document {table.column('doc_id')[row].as_py()!r}, position {position}: {problem.text}; "
            "nothing of this unit was published. This is a bug or a broken teacher: please report it with the run file"
        )


def table_to_parquet_bytes(table: pa.Table, metadata: Mapping[str, str], top_k: int) -> bytes:
    """The rows as the bytes of one Parquet file with `metadata` in its footer; reopened and compared before return.

    zstd 3; BYTE_STREAM_SPLIT on the numeric lists (log-probabilities and ids shrink by half against dictionary
    encoding); page checksums, page index; row groups of at most MAX_GROUP_ROWS documents and MAX_GROUP_BYTES raw bytes.
    Equal tables give equal bytes. Raises OutputError when what is read back is not what was written (broken memory).
    """
    sink = pa.BufferOutputStream()
    # Never `with ParquetWriter(...)`: leaving it by an exception writes a valid footer over a part of the rows.
    writer = pq.ParquetWriter(sink, ROW_SCHEMA, **_WRITER)
    for start, count in _row_groups(table, top_k):
        writer.write_table(table.slice(start, count), row_group_size=count)
    writer.add_key_value_metadata(dict(metadata))
    writer.close()
    data = sink.getvalue()
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as reopened:
        back = reopened.read()
        footer = reopened.metadata.metadata or {}
    stored = {key: footer.get(key.encode(), b"").decode() for key in metadata}
    if not back.equals(table) or not back.schema.equals(ROW_SCHEMA) or stored != dict(metadata):
        raise OutputError(
            f"a shard of {table.num_rows} rows read back differently from what was written; nothing was published. "
            "Suspect the memory of this machine: run again, elsewhere if it comes back"
        )
    return data.to_pybytes()


@dataclass(frozen=True, slots=True)
class _Problem:
    position: int  # over the whole table, 0 <= position < N
    text: str


def _problems(table: pa.Table, lengths: np.ndarray, k: int, vocab_size: int) -> Iterator[_Problem]:
    """Broken identities, the first position of each kind."""
    token_N, ids_NK = flat(table, "token_ids"), flat(table, "topk_ids").reshape(-1, k)
    logps_NK, tail_N, gold_N = (
        flat(table, "topk_logps").reshape(-1, k),
        flat(table, "tail_logp"),
        flat(table, "gold_logp"),
    )
    scored_N, byte_N = flat(table, "scored"), flat(table, "byte_end")

    def first(bad: Any, text: str, *numbers: np.ndarray) -> Iterator[_Problem]:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            yield _Problem(at, text.format(*(values[at] for values in numbers)))

    yield from first((token_N < 0) | (token_N >= vocab_size), f"token id {{}}, wanted [0, {vocab_size})", token_N)
    inside = (ids_NK >= 0) & (ids_NK < vocab_size)
    yield from first(
        ~(inside | (ids_NK == PAD_ID)).all(1), f"top-k ids {{}}, wanted [0, {vocab_size}) or {PAD_ID}", ids_NK
    )
    ranked = np.sort(ids_NK, axis=1)
    twice = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != PAD_ID)
    yield from first(twice.any(1), "an id stands twice in the top-k: {}", ids_NK)
    live = logps_NK > -np.inf
    yield from first(
        (live != inside).any(1), "an id without mass, or mass without an id: ids {}, logps {}", ids_NK, logps_NK
    )
    yield from first((logps_NK[:, 1:] > logps_NK[:, :-1]).any(1), "top-k log-probabilities do not fall: {}", logps_NK)
    for name, values in (("top-1", logps_NK[:, 0]), ("tail", tail_N), ("gold", gold_N)):
        yield from first(~(values <= SIGN_TOLERANCE), f"{name} log-probability {{}}, wanted <= 0", values)
    mass_N = np.exp(logps_NK, dtype=np.float32).sum(1, dtype=np.float64) + np.exp(tail_N.astype(np.float64))
    off = ~(np.abs(mass_N - 1) <= mass_tolerance(k))
    yield from first(off, f"stored mass + tail = {{}}, wanted 1 within {mass_tolerance(k):.2e}", mass_N)
    yield from first(
        ~scored_N & (live.any(1) | (gold_N > -np.inf)), "an unscored position has a distribution: {}", logps_NK
    )
    unasked_N = (flat(table, "flags") & (FLAG_GIVEN | FLAG_NO_MASS | FLAG_CONTEXT)) != 0
    yield from first(scored_N & unasked_N, "a given, empty or context position (flag 8, 32 or 64) is marked as scored")
    hit_NK = ids_NK == token_N[:, None]
    hit_N = hit_NK.any(1)
    stored_N = np.where(hit_N, logps_NK[np.arange(len(hit_N)), hit_NK.argmax(1)], gold_N)
    close = np.isclose(stored_N, gold_N, rtol=2.0**-MANTISSA_BITS, atol=SIGN_TOLERANCE)
    yield from first(scored_N & ~close, "gold log-probability {}, but {} stands in the top-k", gold_N, stored_N)
    for name in ("open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
        share = flat(table, name)
        yield from first(~((share >= 0) & (share <= 1 + SIGN_TOLERANCE)), f"{name} {{}}, wanted within [0, 1]", share)
    falls = np.zeros(len(byte_N), bool)
    falls[1:] = np.diff(byte_N) < 0
    falls[np.cumsum(lengths)[:-1]] = False
    yield from first(falls | (byte_N < 0), "byte_end {} lies before its predecessor", byte_N)


def _row_groups(table: pa.Table, top_k: int) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of each row group, in order."""
    positions = lengths_of(table)
    text = pc.call_function("binary_length", [table.column("text")]).to_numpy()
    raw = positions * (8 * top_k + 38) + text  # 38 bytes per position in the other columns
    start, size = 0, 0
    for row, weight in enumerate(raw):
        if row > start and (row - start >= MAX_GROUP_ROWS or size + weight > MAX_GROUP_BYTES):
            yield start, row - start
            start, size = row, 0
        size += int(weight)
    if table.num_rows > start:
        yield start, table.num_rows - start


def _bits_of(values: npt.NDArray[np.float32], what: str) -> npt.NDArray[np.uint32]:
    if np.isnan(values).any():
        raise IdentityError(f"{what} is NaN ({int(np.isnan(values).sum())} of {values.size}): nothing was published")
    return values.view(np.uint32)


def _replace(table: pa.Table, name: str, values: npt.NDArray[np.float32]) -> pa.Table:
    column = table.column(name).combine_chunks()
    offsets = column.offsets.to_numpy()
    field = ROW_SCHEMA.field(name)
    rebuilt = pa.ListArray.from_arrays(pa.array(offsets - offsets[0], pa.int32()), pa.array(values), type=field.type)
    return table.set_column(table.schema.get_field_index(name), field, rebuilt)
