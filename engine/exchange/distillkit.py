"""DistillKit: compressed Parquet and its `compression_config.yaml`.

Row j is what the teacher says behind `input_ids[j]`. DistillKit's losses take the rows where `labels[j]` is not -100 and
multiply the others by 0, so that those must be finite: they hold a uniform distribution that nobody reads. Its trainer takes rows
of one length only; ours are filled up, `attention_mask` 0. In its own packed files `attention_mask` numbers the sequences of
a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml
from pydantic import ValidationError

from engine.exchange.destination import write_text
from engine.exchange.distillkit_codec import Compression, pack_exact, pack_ids, unpack_ids, unpack_logps
from engine.exchange.outgoing import Outgoing, Tally
from engine.exchange.parquet_files import (
    flat_list,
    nested_list,
    one_list,
    ragged,
    records,
    source_files,
    write_files,
)
from engine.exchange.reading import Reading, before, behind, sorted_rows
from engine.exchange.source import Source, folder_of
from engine.exchange.trl import IGNORED
from schemas.errors import CorpusError
from schemas.target import PAD_ID

CONFIG = "compression_config.yaml"
NO_MASS_LOGP = -1e4
"""Instead of minus infinity, which times 0 is NaN in DistillKit's losses; e to this power is 0."""
NEEDED = ("input_ids", "compressed_logprobs", "bytepacked_indices")


def write(folder: Path, outgoing: Outgoing, metadata: Mapping[str, str], length: int | None) -> Tally:
    """All files. length: tokens of every row; None: of the longest reading."""
    how, tally = Compression.exact(outgoing.facts.vocab_size, outgoing.facts.top_k), Tally()
    size = tally.rows = length or outgoing.longest()

    def columns(readings: list[Reading]) -> pa.Table:
        taken = [_fitted(reading, size, tally) for reading in readings]
        fill, uniform = np.arange(how.k, dtype=np.int32), np.full(how.k, -np.log(how.k), np.float32)
        tokens_DL = np.zeros((len(taken), size), np.int32)
        labels_DL = np.full((len(taken), size), IGNORED, np.int32)
        mask_DL = np.zeros((len(taken), size), np.int8)
        ids_DLK = np.broadcast_to(fill, (len(taken), size, how.k)).copy()
        logps_DLK = np.broadcast_to(uniform, (len(taken), size, how.k)).copy()
        for d, reading in enumerate(taken):
            n = len(reading)
            there_T = behind(reading.scored_T, False)
            ids, logps = behind(reading.ids_TK, PAD_ID)[there_T], behind(reading.logps_TK, -np.inf)[there_T]
            here = np.flatnonzero(there_T)
            tokens_DL[d, :n], mask_DL[d, :n] = reading.token_ids_T, 1
            labels_DL[d, here] = reading.token_ids_T[here]
            ids_DLK[d, here] = np.where(ids == PAD_ID, 0, ids)
            logps_DLK[d, here] = np.where(ids == PAD_ID, NO_MASS_LOGP, logps)
        lengths = [size] * len(taken)
        return pa.table(
            {
                "input_ids": flat_list(tokens_DL.ravel(), lengths, pa.uint64()),
                "attention_mask": flat_list(mask_DL.ravel(), lengths, pa.int8()),
                "labels": flat_list(labels_DL.ravel(), lengths, pa.int64()),
                "compressed_logprobs": nested_list(pack_exact(logps_DLK.reshape(-1, how.k)), lengths, pa.uint8()),
                "bytepacked_indices": nested_list(
                    pack_ids(ids_DLK.reshape(-1, how.k), how.id_bits), lengths, pa.uint8()
                ),
            }
        )

    write_files(folder, outgoing.files(), len(outgoing.shards), columns, metadata, size)
    write_text(folder, CONFIG, yaml.safe_dump(how.model_dump(mode="json")))
    return tally


def _fitted(reading: Reading, size: int, tally: Tally) -> Reading:
    """The first tokens of a reading, as many as there is room for; what is left out is counted."""
    taken = reading.part(slice(size))
    left_out = int(reading.scored_T[size:].sum())
    tally.cut += len(reading) > size
    tally.cut_positions += left_out
    tally.count(taken, by_input=True)
    return taken


@dataclass(frozen=True)
class DistillKitSource(Source):
    """Parquet files with these columns, and how they are compressed."""

    how: Compression = Compression.exact(2, 1)

    def read(self, file: int, first: int, count: int) -> Iterator[list[Reading]]:
        path = self.files[file].path
        for record in records(path, first, count, (*NEEDED, "labels", "attention_mask")):
            tokens = one_list(record["input_ids"], np.int32)
            logps_RB, ids_RB = (ragged(record[name], 0, np.uint8) for name in NEEDED[1:])
            if len(logps_RB) != len(ids_RB) or not len(tokens) - 1 <= len(ids_RB) <= len(tokens):
                raise CorpusError(
                    f"{path}: a record with {len(tokens)} input_ids, {len(logps_RB)} rows of compressed_logprobs and "
                    f"{len(ids_RB)} of bytepacked_indices; wanted a row for each, or for each but the last"
                )
            try:
                logps_RK = unpack_logps(logps_RB, self.how)
                ids_RK = unpack_ids(ids_RB, self.how.id_bits, self.how.k).astype(np.int32)
            except ValueError as error:
                raise CorpusError(
                    f"{path}: {error}: not what {CONFIG} beside it says; put the configuration there that it was captured with"
                ) from error
            kept_RK = logps_RK > NO_MASS_LOGP * 0.9
            if "labels" in record:
                kept_RK &= (one_list(record["labels"], np.int64)[: len(kept_RK)] >= 0)[:, None]
            mask = one_list(record["attention_mask"], np.int64) if "attention_mask" in record else np.ones_like(tokens)
            yield [self._reading(tokens[a:b], ids_RK[a:b], logps_RK[a:b], kept_RK[a:b]) for a, b in _runs(mask)]

    def stored(self) -> list[Path]:
        return [*super().stored(), _config_of(self.files[0].path)]

    def _reading(self, tokens: np.ndarray, ids: np.ndarray, logps: np.ndarray, kept: np.ndarray) -> Reading:
        ids, logps, kept = (
            before(values, fill, len(tokens)) for values, fill in ((ids, PAD_ID), (logps, -np.inf), (kept, False))
        )
        scored, ids, logps = sorted_rows(ids, logps, kept, self.top_k)
        nothing = np.full(len(tokens), -np.inf, np.float32)
        return Reading("", tokens, scored, scored, ids, logps, nothing, None)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """From where to where the same number stands, 0 left out."""
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a and mask[a]]


def _config_of(path: Path) -> Path:
    return path.parent / CONFIG


def open_source(src: str) -> Source:
    """A folder of such files, or one of them, with its configuration. Raises CorpusError."""
    _, paths = folder_of(src, "DistillKit", "*.parquet")
    files, said = source_files(paths, NEEDED, "DistillKit's compressed form")
    config = _config_of(paths[0])
    try:
        how = Compression.model_validate(yaml.safe_load(config.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CorpusError(
            f"{config}: missing; put the configuration there that the files were captured with (teacher: logprob_compressor)"
        ) from error
    except (OSError, yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        raise CorpusError(f"{config}: not a configuration of DistillKit's compression ({told}); correct it") from error
    return DistillKitSource(tuple(files), how.k, said, how)
