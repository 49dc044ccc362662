"""A row group of one product as arrays, and what is counted of its positions.

D documents, N positions of them all, K = top_k. Offsets are bytes of the document's text, log-probabilities nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.dataset.parquet import Shard, flat, lengths_of
from engine.dataset.sealed import open_sealed
from engine.dataset.store import Store
from schemas.manifest import Plan, ProductFacts, ShardRecord
from schemas.target import FLAG_END

NATS_PER_BIT = float(np.log(2))

_NAMES = ("doc_id", "doc_row", "text")
_LISTS = ("token_ids", "byte_end", "scored", "flags", "gold_logp", "err", "open_mass", "excluded_mass")
_TOPK = ("topk_ids", "topk_logps", "tail_logp")
_EXCLUDE_NO_TEXT = ("own", "same", "subset", "bytes")
"""Regimes whose `excluded_mass` is on tokens that are no text, and nothing else: the text costs that share. In beam and fast it
is also, and mostly, what has no token boundary at the row. Rows are conditioned on the boundary, and the row before gave this
mass to other tokens than the true one: to count it again would make a text 4 to 6 % too dear."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Documents of one row group. `ids_NK`, `logps_NK` and `tail_logp_N` are None unless the codec is topk."""

    doc_ids: list[str]
    doc_rows: list[int]
    texts: list[str]  # "" where the run stores none
    first_D1: npt.NDArray[np.int64]  # document d has the positions first[d] .. first[d + 1]
    token_ids_N: npt.NDArray[np.int32]
    start_N: npt.NDArray[np.int64]  # bytes; the token reaches from here to `end_N`
    end_N: npt.NDArray[np.int64]
    scored_N: npt.NDArray[np.bool_]
    flags_N: npt.NDArray[np.uint8]
    gold_logp_N: npt.NDArray[np.float32]
    width_N: npt.NDArray[np.float32]
    open_mass_N: npt.NDArray[np.float32]
    no_text_mass_N: npt.NDArray[np.float32]  # on tokens that are no text; 0 where a regime does not tell it apart
    ids_NK: npt.NDArray[np.int32] | None
    logps_NK: npt.NDArray[np.float32] | None
    tail_logp_N: npt.NDArray[np.float32] | None

    @property
    def document_N(self) -> npt.NDArray[np.int64]:
        """Which document of the group a position is of."""
        return np.repeat(np.arange(len(self.doc_ids)), np.diff(self.first_D1))

    @property
    def bits_N(self) -> npt.NDArray[np.float64]:
        """What the token costs in the text: -log2 of its probability and of the share that is text, as far as that is known; inf
        where it has none, 0 where unscored."""
        with np.errstate(divide="ignore"):
            share = 1 - np.minimum(self.no_text_mass_N.astype(np.float64), 1.0)  # it may be 1e-6 above 1
            nats = self.gold_logp_N.astype(np.float64) + np.log(share)
        return np.where(self.scored_N, -nats / NATS_PER_BIT, 0.0)

    @property
    def surprise_N(self) -> npt.NDArray[np.float64]:
        """-log2 of the true token's probability in its row; inf where it has none, 0 where unscored."""
        return np.where(self.scored_N, -self.gold_logp_N.astype(np.float64) / NATS_PER_BIT, 0.0)

    @property
    def is_end_N(self) -> npt.NDArray[np.bool_]:
        """Rows of an end token, which has no bytes."""
        return (self.flags_N & FLAG_END) != 0

    def positions(self, document: int) -> slice:
        """Those of a document."""
        return slice(int(self.first_D1[document]), int(self.first_D1[document + 1]))

    def alone(self, document: int) -> Rows:
        """One document as rows of its own, copied, so that the row group can go."""
        here = self.positions(document)

        def cut(name: str) -> Any:
            values = getattr(self, name)
            return None if values is None else values[here].copy()

        return Rows(
            [self.doc_ids[document]],
            [self.doc_rows[document]],
            [self.texts[document]],
            np.array([0, here.stop - here.start], np.int64),
            *(cut(column.name) for column in fields(self)[4:]),
        )


def entropy_bits(logps_NK: npt.NDArray[np.float32], tail_logp_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Entropy of what is stored, [N] bits: the K tokens and, as one outcome, all others. At most that of the distribution."""
    logps = np.concatenate([logps_NK, tail_logp_N[:, None]], 1).astype(np.float64)
    probs = np.exp(logps)
    return -(probs * np.where(probs > 0, logps, 0.0)).sum(1) / NATS_PER_BIT


def read_rows(
    store: Store,
    plan: Plan,
    product: str,
    shards: Sequence[ShardRecord],
    wanted: Callable[[Shard, int], bool] = lambda shard, group: True,
) -> Iterator[Rows]:
    """The row groups of all files of a product, in order; only those that are wanted (open file, number of the group) are read.
    Raises OutputError for a file that is missing, damaged or of another run."""
    for shard in shards:
        record = shard.files[product]
        if record is None:
            continue
        with open_sealed(store, plan, record) as opened:
            for group in range(opened.file.num_row_groups):
                if wanted(opened, group):
                    rows = rows_of(opened, group, plan.products[product])  # in here, where a damaged page gets its name
                    yield rows


def rows_of(shard: Shard, group: int, facts: ProductFacts) -> Rows:
    """A row group as arrays. Not for hidden states, which have no distributions."""
    names = [*_NAMES, *_LISTS, *(_TOPK if facts.codec == "topk" else ())]
    table = shard.file.read_row_group(group, names)
    lists = {name: flat(table, name) for name in names[len(_NAMES) :]}
    first = np.concatenate([[0], np.cumsum(lengths_of(table))]).astype(np.int64)
    end = lists["byte_end"].astype(np.int64)
    start = np.concatenate([[0], end[:-1]]) if len(end) else end
    start[first[:-1]] = 0
    shape = (-1, facts.top_k)
    topk = facts.codec == "topk"
    excluded = lists["excluded_mass"]
    return Rows(
        doc_ids=table.column("doc_id").to_pylist(),
        doc_rows=table.column("doc_row").to_pylist(),
        texts=table.column("text").to_pylist(),
        first_D1=first,
        token_ids_N=lists["token_ids"],
        start_N=start,
        end_N=end,
        scored_N=lists["scored"],
        flags_N=lists["flags"],
        gold_logp_N=lists["gold_logp"],
        width_N=lists["err"],
        open_mass_N=lists["open_mass"],
        no_text_mass_N=excluded if facts.regime in _EXCLUDE_NO_TEXT else np.zeros_like(excluded),
        ids_NK=lists["topk_ids"].reshape(shape) if topk else None,
        logps_NK=lists["topk_logps"].reshape(shape) if topk else None,
        tail_logp_N=lists["tail_logp"] if topk else None,
    )
