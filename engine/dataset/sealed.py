"""A file of an output as its seal says it is, open for reading; the whole of it is compared by `targetsmith verify` alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.dataset.layout import MAKE, REMAKE
from engine.dataset.parquet import Shard, open_shard
from engine.dataset.store import Store
from schemas.errors import OutputError
from schemas.manifest import Plan, ShardFile


@contextmanager
def open_sealed(store: Store, plan: Plan, record: ShardFile) -> Iterator[Shard]:
    """Raises OutputError for a file that is missing, of another size than was sealed, damaged, or of another run; and, inside the
    `with`, what `open_shard` raises."""
    place, size = store.place(record.name), store.size(record.name)
    if size != record.bytes:
        got, advice = ("missing", MAKE) if size is None else (f"{size:,} bytes", REMAKE)
        raise OutputError(f"{place}: {got}, sealed with {record.bytes:,} bytes; {advice}")
    with store.open(record.name) as data, open_shard(data, place) as shard:
        if shard.footer.get("targetsmith.fingerprint") != plan.fingerprint:
            raise OutputError(f"{place}: a file of another run; {REMAKE}")
        yield shard
