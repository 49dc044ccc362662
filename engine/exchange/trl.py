"""TRL: a dataset with the names of its server distillation, `topk_token_ids`, `topk_logprobs`, `actual_logprobs`.

TRL 1.16 has no trainer for stored log-probabilities: `ServerDistillationTrainer` asks a server for them, and these are the
names and the shapes that its loss takes. Row i is that of token i, entries without mass have id 0 and -inf, labels are -100 where
nothing is asked. `tail_logprobs` and `doc_id` are our own columns beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.exchange.outgoing import Outgoing, Tally
from engine.exchange.parquet_files import (
    flat_list,
    nested_list,
    one_list,
    ragged,
    records,
    source_files,
    widest,
    write_files,
)
from engine.exchange.reading import Reading, sorted_rows
from engine.exchange.source import Source, folder_of
from schemas.errors import CorpusError
from schemas.target import PAD_ID

IGNORED = -100
"""Label of a token that is not to be learned from."""
NEEDED = ("input_ids", "topk_token_ids", "topk_logprobs")
OTHERS = ("labels", "actual_logprobs", "tail_logprobs", "doc_id")


def write(folder: Path, outgoing: Outgoing, metadata: Mapping[str, str], length: int | None) -> Tally:
    """All files. length: has no meaning here."""
    tally = Tally()

    def columns(readings: list[Reading]) -> pa.Table:
        for reading in readings:
            tally.count(reading, by_input=False)
        lengths = [len(reading) for reading in readings]
        ids_NK = np.concatenate([reading.ids_TK for reading in readings])
        tails = [reading.tail_logp_T for reading in readings if reading.tail_logp_T is not None]
        lists = {
            "input_ids": (np.concatenate([reading.token_ids_T for reading in readings]), pa.int32()),
            "labels": (np.concatenate([labels_of(reading) for reading in readings]), pa.int32()),
            "actual_logprobs": (np.concatenate([reading.gold_logp_T for reading in readings]), pa.float32()),
            "tail_logprobs": (np.concatenate(tails), pa.float32()),
        }
        logps_NK = np.concatenate([reading.logps_TK for reading in readings])
        return pa.table(
            {
                "doc_id": pa.array([reading.name for reading in readings], pa.string()),
                **{name: flat_list(values, lengths, kind) for name, (values, kind) in lists.items()},
                "topk_token_ids": nested_list(np.where(ids_NK == PAD_ID, 0, ids_NK), lengths, pa.int32()),
                "topk_logprobs": nested_list(logps_NK, lengths, pa.float32()),
            }
        )

    write_files(folder, outgoing.files(), len(outgoing.shards), columns, metadata)
    return tally


def labels_of(reading: Reading) -> np.ndarray:
    """[T]: the token where it is to be learned from, else IGNORED."""
    return np.where(reading.asked_T, reading.token_ids_T, IGNORED)


@dataclass(frozen=True)
class TrlSource(Source):
    """Parquet files with these columns."""

    def read(self, file: int, first: int, count: int) -> Iterator[list[Reading]]:
        path = self.files[file].path
        for record in records(path, first, count, (*NEEDED, *OTHERS)):
            tokens = one_list(record["input_ids"], np.int32)
            logps = ragged(record["topk_logprobs"], -np.inf, np.float32)
            ids = ragged(record["topk_token_ids"], PAD_ID, np.int32)
            if ids.shape != logps.shape or len(ids) != len(tokens):
                raise CorpusError(
                    f"{path}: a record with {len(tokens)} tokens, {ids.shape} ids and {logps.shape} log-probabilities; wanted a "
                    "row of as many of both for each token"
                )
            kept = logps != -np.inf
            gold = record.get("actual_logprobs")
            tail = record.get("tail_logprobs")
            labels = record.get("labels")
            yield [
                Reading(
                    record["doc_id"].as_py() if "doc_id" in record else "",
                    tokens,
                    one_list(labels, np.int64) != IGNORED if labels is not None else np.ones(len(tokens), bool),
                    *sorted_rows(ids, logps, kept, self.top_k),
                    one_list(gold, np.float32) if gold is not None else np.full(len(tokens), -np.inf, np.float32),
                    one_list(tail, np.float32) if tail is not None else None,
                )
            ]


def open_source(src: str) -> Source:
    """A folder of such files, or one of them. Raises CorpusError."""
    _, paths = folder_of(src, "a TRL dataset", "*.parquet")
    files, said = source_files(paths, NEEDED, "a TRL dataset")
    return TrlSource(tuple(files), int(said.get("top_k") or widest(paths, "topk_token_ids")), said)
