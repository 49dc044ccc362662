"""A product of a finished output -> readings, a file of it after the other; memory holds one row group.

A document is one reading, a conversation that is read anew (flag 128) one for each of its parts. The begin token is put before
a text whose tokens lack it, as `engine.reader.student_feed` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.dataset.layout import load_manifest, load_plan
from engine.dataset.store import Out, Store, open_store
from engine.exchange.reading import Reading
from engine.figures.rows import Rows, read_rows
from schemas.errors import OutputError, RunFileError
from schemas.manifest import Plan, ProductFacts, ShardRecord
from schemas.products import student_product
from schemas.target import FLAG_ANEW, FLAG_CONTEXT


@dataclass(slots=True)
class Tally:
    """What has gone out, and what the form had no place for."""

    readings: int = 0
    scored: int = 0
    first_rows: int = 0  # distributions of first tokens, with no input before them
    cut: int = 0  # readings longer than a form of fixed length takes
    cut_positions: int = 0  # scored positions of theirs that are left out
    rows: int = 0  # of every sequence, in a form of fixed length

    def count(self, reading: Reading, *, by_input: bool) -> None:
        """by_input: the form counts its rows by inputs, so that the first token has none."""
        self.readings += 1
        lost = by_input and reading.first_row_is_lost
        self.first_rows += lost
        self.scored += int(reading.scored_T.sum()) - lost


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A product of a finished run, to be written in another form."""

    store: Store
    plan: Plan
    product: str
    shards: tuple[ShardRecord, ...]  # those with documents

    @property
    def facts(self) -> ProductFacts:
        return self.plan.products[self.product]

    def files(self) -> Iterator[Iterator[list[Reading]]]:
        """Of each file its row groups, each as readings. Raises OutputError for a file that is missing, damaged or foreign."""
        return (self._groups(shard) for shard in self.shards)

    def longest(self) -> int:
        """Tokens of the longest reading. Goes through all files once."""
        return max(len(reading) for file in self.files() for readings in file for reading in readings)

    def _groups(self, shard: ShardRecord) -> Iterator[list[Reading]]:
        for rows in read_rows(self.store, self.plan, self.product, [shard]):
            yield [reading for d in range(len(rows.doc_ids)) for reading in readings_of(rows, d, self.facts.bos_id)]


def open_outgoing(out: Out, product: str | None) -> Outgoing:
    """The product of a finished run. product: "teacher", "student/small" or "small"; None: the only student, else the
    only product.

    Raises OutputError: no output, damaged, unfinished, without documents, a product without a top-k; RunFileError: no such
    product.
    """
    store = open_store(out)
    plan, manifest = load_plan(store), load_manifest(store)
    if manifest.fingerprint != plan.fingerprint:
        raise OutputError(
            f"{store}: its manifest is of run {manifest.fingerprint[:12]}, its plan of {plan.fingerprint[:12]}: copied from "
            "elsewhere; `targetsmith verify` tells which is right"
        )
    name = _chosen(store, plan, product)
    if (codec := plan.products[name].codec) != "topk":
        raise OutputError(
            f"{store}: {name} is stored as {codec!r}, and other programs take a top-k; name another product by --product, or "
            'score with [targets] codec = "topk"'
        )
    shards = tuple(shard for shard in manifest.shards if shard.files[name] is not None)
    if not shards:
        raise OutputError(
            f"{store}: no document to write, all {manifest.quarantined:,} are in quarantine; `targetsmith stats` says why"
        )
    return Outgoing(store, plan, name, shards)


def _chosen(store: Store, plan: Plan, wanted: str | None) -> str:
    known = sorted(plan.products)
    if wanted is None:
        students = [name for name in known if name == student_product(name.rpartition("/")[2])]
        if len(candidates := students or known) == 1:
            return candidates[0]
        raise RunFileError(f"{store}: this run has {', '.join(known)}; say which by --product")
    for name in (wanted, student_product(wanted)):
        if name in known:
            return name
    raise RunFileError(f"{store}: no product {wanted!r}; this run has {', '.join(known)}: name one by --product")


def readings_of(rows: Rows, document: int, bos_id: int | None) -> list[Reading]:
    """A document of a row group as readings; `ids_NK` is there."""
    assert rows.ids_NK is not None and rows.logps_NK is not None and rows.tail_logp_N is not None
    here = rows.positions(document)
    anew = np.flatnonzero(rows.flags_N[here] & FLAG_ANEW)
    starts = sorted({0, *anew.tolist()})
    found = []
    for start, stop in zip(starts, [*starts[1:], here.stop - here.start], strict=True):
        part = slice(here.start + start, here.start + stop)
        reading = Reading(
            rows.doc_ids[document] if len(starts) == 1 else f"{rows.doc_ids[document]}@{start}",
            rows.token_ids_N[part],
            (rows.flags_N[part] & FLAG_CONTEXT) == 0,
            rows.scored_N[part],
            rows.ids_NK[part],
            rows.logps_NK[part],
            rows.gold_logp_N[part],
            rows.tail_logp_N[part],
        )
        found.append(_with_begin(reading, bos_id))
    return found


def _with_begin(reading: Reading, bos_id: int | None) -> Reading:
    """Behind the begin token, unless its template has written one there, or the vocabulary has none."""
    if bos_id is None or (reading.token_ids_T[0] == bos_id and not reading.asked_T[0]):
        return reading

    def put(values: np.ndarray, first: object) -> np.ndarray:
        return np.concatenate([np.full_like(values[:1], first), values])

    assert reading.tail_logp_T is not None
    return Reading(
        reading.name,
        put(reading.token_ids_T, bos_id),
        put(reading.asked_T, False),
        put(reading.scored_T, False),
        put(reading.ids_TK, -1),
        put(reading.logps_TK, -np.inf),
        put(reading.gold_logp_T, -np.inf),
        put(reading.tail_logp_T, 0.0),
    )
