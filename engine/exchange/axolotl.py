"""Axolotl: its columns for distillation, tokenized: `target_token_ids`, `target_logprobs`, `target_mask`.

`axolotl.integrations.kd` reads them through its collators (0.19; the README of its kd plugin, "Target alignment"): row j is the
distribution of `input_ids[j + 1]`, the last row is padding. Padded entries have a mask of 0, the log-probability -1e9 and id 0.
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
from engine.exchange.reading import Reading, before, behind, sorted_rows
from engine.exchange.source import Source, folder_of
from engine.exchange.trl import IGNORED, labels_of
from schemas.errors import CorpusError
from schemas.target import PAD_ID

PADDED_LOGP = -1e9
NEEDED = ("input_ids", "labels", "target_token_ids", "target_logprobs", "target_mask")


def write(folder: Path, outgoing: Outgoing, metadata: Mapping[str, str], length: int | None) -> Tally:
    """All files. length: has no meaning here, Axolotl packs by itself."""
    tally = Tally()

    def columns(readings: list[Reading]) -> pa.Table:
        for reading in readings:
            tally.count(reading, by_input=True)
        lengths = [len(reading) for reading in readings]
        tokens_N = np.concatenate([reading.token_ids_T for reading in readings])
        ids_NK = np.concatenate([behind(reading.ids_TK, PAD_ID) for reading in readings])
        logps_NK = np.concatenate([behind(reading.logps_TK, -np.inf) for reading in readings])
        there_NK = ids_NK != PAD_ID
        labels_N = np.concatenate([labels_of(reading) for reading in readings])
        return pa.table(
            {
                "input_ids": flat_list(tokens_N, lengths, pa.int32()),
                "attention_mask": flat_list(np.ones(len(tokens_N), np.int8), lengths, pa.int8()),
                "labels": flat_list(labels_N, lengths, pa.int32()),
                "target_token_ids": nested_list(np.where(there_NK, ids_NK, 0), lengths, pa.int32()),
                "target_logprobs": nested_list(np.where(there_NK, logps_NK, PADDED_LOGP), lengths, pa.float32()),
                "target_mask": nested_list(there_NK.astype(np.int8), lengths, pa.int8()),
            }
        )

    write_files(folder, outgoing.files(), len(outgoing.shards), columns, metadata)
    return tally


@dataclass(frozen=True)
class AxolotlSource(Source):
    """Parquet files with these columns."""

    def read(self, file: int, first: int, count: int) -> Iterator[list[Reading]]:
        path = self.files[file].path
        for record in records(path, first, count, NEEDED):
            tokens = one_list(record["input_ids"], np.int32)
            ids, logps = (
                ragged(record["target_token_ids"], PAD_ID, np.int32),
                ragged(record["target_logprobs"], -np.inf, np.float32),
            )
            kept = ragged(record["target_mask"], 0, np.int8) != 0
            if not ids.shape == logps.shape == kept.shape or len(ids) != len(tokens):
                raise CorpusError(
                    f"{path}: a record with {len(tokens)} tokens, {ids.shape} target_token_ids, {logps.shape} target_logprobs "
                    f"and {kept.shape} of target_mask; wanted a row of as many of all three for each token"
                )
            ids, logps, kept = (
                before(values, fill, len(tokens)) for values, fill in ((ids, PAD_ID), (logps, -np.inf), (kept, False))
            )
            kept &= logps != -np.inf
            yield [
                Reading(
                    "",
                    tokens,
                    one_list(record["labels"], np.int64) != IGNORED,
                    *sorted_rows(ids, logps, kept, self.top_k),
                    np.full(len(tokens), -np.inf, np.float32),
                    None,
                )
            ]


def open_source(src: str) -> Source:
    """A folder of such files, or one of them. Raises CorpusError."""
    _, paths = folder_of(src, "Axolotl's columns", "*.parquet")
    files, said = source_files(paths, NEEDED, "Axolotl's form")
    return AxolotlSource(tuple(files), int(said.get("top_k") or widest(paths, "target_token_ids")), said)
