"""Megatron-LM: tar files of top-k log-probabilities for its offline distillation, and the samples that they are of.

`megatron.training.distillation` (format version 2): `dp0__<last iteration>.tar` holds `_meta.json`, then of each iteration
a member `<iteration>.pt.zst`, a zstd-packed torch file: `values` [S, samples, K], `indices_low` (uint16) and `bit_17` (bool)
of the same shape. Row s is the distribution of label s, token s + 1. There are no token ids in it: Megatron's own data loader
must give the same samples in the same order, so these lie in `samples.parquet` beside it. Version 1 (lists of microbatches) is
read, too.

We write one sample an iteration (gbs 1, mbs 1, dp 1), which any batch size and number of ranks is a multiple of.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import zstandard

from engine.exchange.outgoing import Outgoing, Tally
from engine.exchange.parquet_files import flat_list, one_list, records, source_files, write_file
from engine.exchange.reading import Reading, before, behind, sorted_rows
from engine.exchange.source import Source, folder_of
from schemas.errors import CorpusError, OutputError
from schemas.target import PAD_ID

SAMPLES = "samples.parquet"
NO_MASS_LOGP = -1e3
MOST_IDS = 2**17
_META = "_meta.json"
_SUFFIX = ".pt.zst"
_TAR = re.compile(r"(?:cp(?P<cp>\d+)_)?dp(?P<dp>\d+)__(?P<last>\d+)\.tar")
_MOST_BYTES = 2**32  # of one member; what is said to be larger is no such file


def write(folder: Path, outgoing: Outgoing, metadata: Mapping[str, str], length: int | None) -> Tally:
    """All files. length: rows of every sample (Megatron's --seq-length); None: of the longest reading. Raises OutputError for a
    vocabulary that its 17 bits cannot hold."""
    facts, tally = outgoing.facts, Tally()
    if facts.vocab_size > MOST_IDS:
        raise OutputError(
            f"{outgoing.store}: {outgoing.product} has {facts.vocab_size:,} ids, and Megatron's form has 17 bits for one "
            f"({MOST_IDS:,}); write another form"
        )
    rows = tally.rows = length or max(1, outgoing.longest() - 1)
    saver = {"k": facts.top_k, "p": None, "min_k": 1, "save_dtype": "fp32", "format_version": 2}
    saver |= {"mbs_save": 1, "dp_size_save": 1, "gbs_save": 1}
    meta = json.dumps({"hash": None, "identifiers": {}, "saver": saver, "targetsmith": dict(metadata)}).encode()

    def written() -> Iterator[list[Reading]]:
        """The readings, as their rows are written: a tar for each file of the output."""
        sample = 0
        for groups in outgoing.files():
            with tarfile.open(folder / "part", "w") as tar:
                _add(tar, _META, meta)
                for readings in groups:
                    fitted = [_fitted(reading, rows, tally) for reading in readings]
                    for reading in fitted:
                        _add(tar, f"{sample}{_SUFFIX}", _payload(reading, rows))
                        sample += 1
                    yield fitted
            (folder / "part").rename(folder / f"dp0__{sample - 1}.tar")

    write_file(folder / SAMPLES, written(), _samples, metadata)
    return tally


def _fitted(reading: Reading, rows: int, tally: Tally) -> Reading:
    """The tokens that so many rows are of, and the one before them; what is left out is counted."""
    taken = reading.part(slice(rows + 1))
    tally.cut += len(reading) > rows + 1
    tally.cut_positions += int(reading.scored_T[rows + 1 :].sum())
    tally.count(taken, by_input=True)
    return taken


def _payload(reading: Reading, rows: int) -> bytes:
    """One sample as a member of a tar."""
    values = np.full((rows, 1, reading.ids_TK.shape[1]), NO_MASS_LOGP, np.float32)
    indices = np.full(values.shape, -1, np.int32)
    ids, logps = behind(reading.ids_TK, PAD_ID)[:rows], behind(reading.logps_TK, -np.inf)[:rows]
    values[: len(ids), 0] = np.where(ids == PAD_ID, NO_MASS_LOGP, logps)
    indices[: len(ids), 0] = ids
    content = {
        "values": torch.from_numpy(values),
        "indices_low": torch.from_numpy((indices & 0xFFFF).astype(np.uint16)),
        "bit_17": torch.from_numpy((indices >> 16) != 0),
        "format_version": 2,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return zstandard.ZstdCompressor(level=3).compress(buffer.getvalue())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _samples(readings: list[Reading]) -> pa.Table:
    """The tokens of each sample, and which are to be learned from; row s of a sample is of token s + 1."""
    lengths = [len(reading) for reading in readings]
    tokens, asked = (
        np.concatenate([getattr(reading, name) for reading in readings]) for name in ("token_ids_T", "asked_T")
    )
    return pa.table(
        {
            "doc_id": pa.array([reading.name for reading in readings], pa.string()),
            "input_ids": flat_list(tokens, lengths, pa.int32()),
            "loss_mask": flat_list(asked, lengths, pa.bool_()),
        }
    )


@dataclass(frozen=True)
class MegatronSource(Source):
    """The tars of each rank, in order, and the samples. ranks: data-parallel ranks of the teacher; micro: samples of
    a microbatch; batch: samples of an iteration."""

    tars: tuple[tuple[Path, ...], ...] = ()
    first_iteration: int = 0
    micro: int = 1
    batch: int = 1

    def read(self, file: int, first: int, count: int) -> Iterator[list[Reading]]:
        path = self.files[file].path
        rows = self._rows(first)
        for number, record in enumerate(records(path, first, count, ("doc_id", "input_ids", "loss_mask")), first):
            tokens = one_list(record["input_ids"], np.int32)
            try:
                logps, ids = next(rows)
            except StopIteration:
                raise CorpusError(
                    f"{self.tars[0][-1]}: no rows of sample {number}, and {path.name} has {len(self.files[file].tokens):,}; copy "
                    "the tars again, or name the samples that they are of"
                ) from None
            if len(logps) < len(tokens) - 1:
                raise CorpusError(
                    f"{path}: sample {number} has {len(tokens)} tokens, its rows in the tar are {len(logps)}: not the samples "
                    "that they are of"
                )
            ids, logps = before(ids, PAD_ID, len(tokens)), before(logps, -np.inf, len(tokens))
            kept = logps > NO_MASS_LOGP * 0.9
            mask = record.get("loss_mask")
            yield [
                Reading(
                    record["doc_id"].as_py() if "doc_id" in record else "",
                    tokens,
                    one_list(mask, bool) if mask is not None else np.ones(len(tokens), bool),
                    *sorted_rows(ids, logps, kept, self.top_k),
                    np.full(len(tokens), -np.inf, np.float32),
                    None,
                )
            ]

    def stored(self) -> list[Path]:
        return [*super().stored(), *(tar for rank in self.tars for tar in rank)]

    def _rows(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(log-probabilities [S, K], ids [S, K]) of each sample from `first` on, in the order of Megatron's samples."""
        start = self.first_iteration + first // self.batch
        ranks = [_iterations(tars, start) for tars in self.tars]
        inside = first % self.batch
        for expected, parts in enumerate(zip(*ranks, strict=False), start):
            if wrong := [found for found, _, _ in parts if found != expected]:
                raise CorpusError(f"{self.tars[0][0].parent}: iteration {wrong[0]} stands where {expected} should be")
            for x in range(inside, self.batch):
                rank = x // self.micro % len(parts)
                row = x // self.micro // len(parts) * self.micro + x % self.micro
                _, values, indices = parts[rank]
                if row >= values.shape[1]:
                    raise CorpusError(
                        f"{self.tars[rank][0].parent}: iteration {expected} has {values.shape[1]} samples of rank {rank}, the "
                        f"first one had {self.batch // len(parts)}"
                    )
                yield values[:, row], indices[:, row]
            inside = 0


def _iterations(tars: tuple[Path, ...], start: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(iteration, log-probabilities, ids [S, samples, K]) of one rank, from `start` on."""
    for path in tars:
        if _parts(path)[1] < start:
            continue
        for name, data in _members(path):
            if name.endswith(_SUFFIX) and (iteration := int(name.removesuffix(_SUFFIX))) >= start:
                values, indices = _decoded(path, name, data())
                yield iteration, np.concatenate(values, 1), np.concatenate(indices, 1)


def _members(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, how to read it) of each file in a tar."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile():
                    yield member.name, lambda member=member: tar.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise CorpusError(f"{path}: cannot be read as a tar ({error}); copy it again") from error


def _decoded(path: Path, name: str, data: bytes) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(log-probabilities, ids) of an iteration, [S, samples, K] of each microbatch; version 2 has all of them in one."""
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if not size < _MOST_BYTES:
            raise ValueError(f"{size:,} bytes unpacked")
        content = torch.load(io.BytesIO(zstandard.ZstdDecompressor().decompress(data)), weights_only=True)
        lists = [content[key] for key in ("values", "indices_low", "bit_17")]
        lists = [value if isinstance(value, list) else [value] for value in lists]
        values = [part.float().numpy() for part in lists[0]]
        indices = [
            low.numpy().astype(np.int32) | (high.numpy().astype(np.int32) << 16)
            for low, high in zip(lists[1], lists[2], strict=True)
        ]
        if not values or any(v.ndim != 3 or v.shape != i.shape for v, i in zip(values, indices, strict=True)):
            raise ValueError("values and indices of other shapes")
    except Exception as error:  # torch, zstandard and what is inside them have many kinds of errors
        raise CorpusError(
            f"{path}, {name}: not rows of Megatron's offline distillation ({type(error).__name__}: {error}); copy it again"
        ) from error
    widest = max(part.shape[2] for part in values)
    pads = [((0, 0), (0, 0), (0, widest - part.shape[2])) for part in values]
    return (
        [np.pad(part, pad, constant_values=NO_MASS_LOGP) for part, pad in zip(values, pads, strict=True)],
        [np.pad(part, pad, constant_values=PAD_ID) for part, pad in zip(indices, pads, strict=True)],
    )


def _parts(path: Path) -> tuple[int, int]:
    """(rank, last iteration) of a tar, by its name."""
    match = _TAR.fullmatch(path.name)
    if match is None:
        raise CorpusError(f"{path}: wanted the name dp<rank>__<iteration>.tar, as Megatron gives it")
    if int(match["cp"] or 0):
        raise CorpusError(
            f"{path}: a part of a sequence (context-parallel rank {match['cp']}); only whole sequences are read: save them with "
            "one context-parallel rank, or by a version of Megatron that writes dp<rank>__<iteration>.tar"
        )
    return int(match["dp"]), int(match["last"])


def open_source(src: str) -> Source:
    """A folder of tars with its samples. Raises CorpusError."""
    folder, paths = folder_of(src, "Megatron", "*.tar")
    if not (samples := folder / SAMPLES).is_file():
        raise CorpusError(
            f"{samples}: missing; the tars hold no token ids: put a Parquet file there with a list `input_ids` for each sample, "
            "in the order of Megatron's samples (a row more than its sequence length)"
        )
    files, said = source_files([samples], ["input_ids"], "the samples of Megatron's tars")
    by_rank: dict[int, list[Path]] = {}
    for path in sorted(paths, key=_parts):
        by_rank.setdefault(_parts(path)[0], []).append(path)
    if sorted(by_rank) != list(range(len(by_rank))):
        raise CorpusError(f"{folder}: tars of the ranks {', '.join(map(str, sorted(by_rank)))}; wanted 0, 1, 2 ..")
    first = by_rank[0][0]
    members = _members(first)
    name, data = next(members, ("", bytes))
    try:
        saver = json.loads(data())["saver"] if name == _META else None
        version = int(saver.get("format_version", 1)) if saver is not None else 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(
            f"{first}, {_META}: not Megatron's ({type(error).__name__}: {error}); copy it again"
        ) from error
    if saver is None or version > 2:
        got = f"format version {version}" if saver is not None else f"no {_META}"
        raise CorpusError(f"{first}: {got}; the versions 1 and 2 are read")
    name, data = next(members, ("", bytes))
    if not name.endswith(_SUFFIX):
        raise CorpusError(f"{first}: no iteration in it ({name or 'nothing'} behind {_META}); copy it again")
    values, _ = _decoded(first, name, data())
    micro = int(saver["mbs_save"]) if version == 2 else values[0].shape[1]
    return MegatronSource(
        tuple(files),
        max(int(saver.get("k") or 0), values[0].shape[2]),
        said,
        tuple(tuple(by_rank[rank]) for rank in sorted(by_rank)),
        int(name.removesuffix(_SUFFIX)),
        micro,
        len(by_rank) * sum(part.shape[1] for part in values),
    )
