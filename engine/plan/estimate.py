"""What a run will take and give, worked out from a trial: a few of its documents, scored by the run itself.

corpus + Trial + cluster -> Estimate. Arithmetic only; the trial is made by jobs/run/trial.py.

Everything that grows with the text is carried over by bytes of text, of which the whole corpus is known: tokens and rows for each
byte vary far less from document to document than documents in length. What comes once for each file or actor is counted as that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from engine.dataset.parquet import MAX_GROUP_ROWS
from schemas.counts import counted

PEAK_TFLOPS = {
    "t4": 65, "v100": 125, "l4": 121, "a10": 125, "a100": 312, "l40s": 362, "h100": 989, "h200": 989, "b200": 2250,
}  # fmt: skip
"""Dense half-precision products as the makers give them, in 1e12 operations a second."""
UTILISATION = 0.35
"""Share of the peak that forward passes of packed documents reach (assumed; not measured here)."""
HOST_US = 75.0
"""Microseconds of one core for a teacher token and student (docs/log.md: 31 to 73), prepared beside the teacher."""
UNITS = "records of units"
"""The kind of other bytes that grows with the number of units."""


@dataclass(frozen=True, slots=True)
class OtherBytes:
    """once: bytes of what a run has once, by kind; plan, manifest and card list every file of the products in some hundred bytes,
    which is not foretold. each_unit: of what every unit has."""

    once: dict[str, int]
    each_unit: float

    def of(self, units: int) -> dict[str, int]:
        """Of a run of so many units, by kind, without what it does not have."""
        found = {**self.once, UNITS: round(self.each_unit * units)}
        return {kind: size for kind, size in found.items() if size}


@dataclass(frozen=True, slots=True)
class Trial:
    """What was seen of a few documents. documents: tried; refused: those in quarantine, by reason; text_bytes: of all tried, good
    or not.

    stats: sums, as in a manifest. data_bytes: of the columns of each product, all rows in one row group; group_bytes: what each
    further group adds to that; file_bytes: of one file beside its columns. other: all else in the output. start_s: until the
    first actor takes work. cold_s, cold_tokens: of the first unit of each actor; warm_s, warm_tokens: of all others (seconds
    of actors, added up). actors: that worked; device: in words.
    """

    documents: int
    refused: Mapping[str, int]
    text_bytes: int
    stats: Mapping[str, float]
    data_bytes: Mapping[str, int]
    group_bytes: Mapping[str, int]
    file_bytes: Mapping[str, int]
    other: OtherBytes
    start_s: float
    cold_s: float
    cold_tokens: int
    warm_s: float
    warm_tokens: int
    actors: int
    device: str

    @property
    def tokens_per_s(self) -> float:
        """Of one actor that has done a unit before; of cold ones where there was no other."""
        if self.warm_s > 0 and self.warm_tokens:
            return self.warm_tokens / self.warm_s
        return self.cold_tokens / self.cold_s if self.cold_s else 0.0

    @property
    def cold_extra_s(self) -> float:
        """Seconds that an actor's first unit takes longer than another would."""
        if not self.actors or not self.warm_s:
            return 0.0
        return max(0.0, self.cold_s - self.cold_tokens / self.tokens_per_s) / self.actors


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the run is to be. actors: at most so many at once. gpus: in all; 0 on processors. tokens_per_s: of one actor, where
    it is not what the trial has measured, and `how` that is known. price: of one GPU (actor, without GPUs) for an hour."""

    actors: int
    gpus: float = 0.0
    tokens_per_s: float | None = None
    how: str = ""
    price: float | None = None


@dataclass(frozen=True, slots=True)
class ProductEstimate:
    """Of the whole corpus. The means are over scored positions; None for hidden states."""

    regime: str
    positions: int
    bytes: int
    bytes_per_position: float
    text_bytes_per_token: float
    stored_mass: float | None
    width: float | None
    open_mass: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of the whole run. quarantined: documents by reason. expected_tv, open_share: by evaluations a student token that would be
    spent, "spent" for those that are; empty where none are spent by expected error. disk_bytes: of the whole output;
    other_bytes: what of it is no product's, by kind. hours: of wall time; None where nothing is known of the speed."""

    documents: int
    text_bytes: int
    quarantined: dict[str, int]
    teacher_tokens: int
    evaluations_per_token: float
    products: dict[str, ProductEstimate]
    expected_tv: dict[str, float]
    open_share: dict[str, float]
    disk_bytes: int
    other_bytes: dict[str, int]
    actors: int
    tokens_per_s: float
    how: str
    hours: float | None
    gpu_hours: float | None
    price: float | None


def estimate(
    unit_rows: Sequence[int], text_bytes: int, regimes: Mapping[str, str], trial: Trial, cluster: Cluster
) -> Estimate:
    """unit_rows: documents of each unit of the corpus; text_bytes: of all; regimes: product -> word of it, in order.

    Raises ValueError for a trial of which nothing was scored: nothing can be said.
    """
    documents, units = sum(unit_rows), len(unit_rows)
    groups = sum(ceil(rows / MAX_GROUP_ROWS) for rows in unit_rows)
    refused = sum(trial.refused.values())
    good = trial.documents - refused
    if not good or not trial.stats.get("teacher_tokens"):
        raise ValueError(
            f"none of {counted(trial.documents, 'document')} of the trial was scored: {dict(trial.refused)}"
        )
    scale = text_bytes / trial.text_bytes
    tokens = round(trial.stats["teacher_tokens"] * scale)
    products = {name: _product(name, regime, (units, groups), scale, trial) for name, regime in regimes.items()}
    other = trial.other.of(units)
    actors = max(1, min(cluster.actors, units))
    rate = cluster.tokens_per_s or trial.tokens_per_s
    hours = (trial.start_s + trial.cold_extra_s + tokens / (rate * actors)) / 3600 if rate else None
    gpu_hours = None if hours is None else hours * cluster.gpus
    paid = None if hours is None else hours * (cluster.gpus or actors)
    return Estimate(
        documents=documents,
        text_bytes=text_bytes,
        quarantined={reason: round(count * documents / trial.documents) for reason, count in trial.refused.items()},
        teacher_tokens=tokens,
        evaluations_per_token=trial.stats["teacher_evaluations"] / trial.stats["teacher_tokens"],
        products=products,
        expected_tv=_by_budget(trial.stats, "expected_tv"),
        open_share=_by_budget(trial.stats, "open"),
        disk_bytes=sum(product.bytes for product in products.values()) + sum(other.values()),
        other_bytes=other,
        actors=actors,
        tokens_per_s=rate * actors,
        how=cluster.how or (f"measured here, {trial.device}" if rate else "not known"),
        hours=hours,
        gpu_hours=gpu_hours,
        price=None if cluster.price is None or paid is None else paid * cluster.price,
    )


def _product(name: str, regime: str, files: tuple[int, int], scale: float, trial: Trial) -> ProductEstimate:
    """files: (files, row groups in them)."""
    positions, scored = trial.stats[f"{name}.positions"], trial.stats[f"{name}.scored"]
    each_group = trial.group_bytes[name]
    size = (trial.data_bytes[name] - each_group) * scale + each_group * files[1] + trial.file_bytes[name] * files[0]

    def mean(what: str) -> float | None:
        key = f"{name}.{what}_sum"
        return trial.stats[key] / scored if key in trial.stats and scored else None

    return ProductEstimate(
        regime=regime,
        positions=round(positions * scale),
        bytes=round(size),
        bytes_per_position=size / (positions * scale),
        text_bytes_per_token=trial.stats["text_bytes"] / positions,
        stored_mass=mean("stored_mass"),
        width=mean("err"),
        open_mass=mean("open_mass"),
    )


def _by_budget(stats: Mapping[str, float], what: str) -> dict[str, float]:
    boundaries = stats.get("beam.boundaries", 0.0)
    if not boundaries:
        return {}
    names = (re.fullmatch(rf"beam\.{what}_at_(\d+)_sum", name) for name in stats)
    found = {name[1]: stats[name[0]] / boundaries for name in names if name}
    if f"beam.{what}_sum" in stats:
        found["spent"] = stats[f"beam.{what}_sum"] / boundaries
    return found


def worked_out_rate(gpu: str, gpus: float, parameters: int, evaluations: float, students: int) -> tuple[float, str]:
    """(teacher tokens a second of one actor on `gpus` GPUs of this kind, how that was worked out in words). evaluations: of the
    teacher for each of its tokens. Raises KeyError for a GPU that is not in PEAK_TFLOPS."""
    device_s = evaluations * 2 * parameters / (PEAK_TFLOPS[gpu] * 1e12 * UTILISATION * max(1.0, gpus))
    host_s = HOST_US * 1e-6 * max(1, students)
    slower = "the GPU" if device_s >= host_s else "one core of the host"
    return 1 / max(device_s, host_s), (
        f"worked out, not measured: 2 x {parameters:,} parameters x {evaluations:.2f} evaluations at {UTILISATION:.0%} of "
        f"{PEAK_TFLOPS[gpu]:,} TFLOPS, {HOST_US:.0f} us of the host for each token and student; {slower} holds it back"
    )


def trial_rows(units: Sequence[tuple[int, int]], documents: int, actors: int) -> list[int]:
    """Rows of the corpus for a trial, rising. units: (first row, rows) of each unit of the corpus.

    From the beginning of units that are spread over the whole: whole units, but at least one for each actor. What is scored
    together decides the speed (groups fill batches, searches go on in rounds): few documents from each of many units would
    be slower than the run.
    """
    if not units or not documents:
        return []
    largest = max(rows for _, rows in units)
    count = min(len(units), max(min(actors, documents), ceil(documents / largest)))
    each = ceil(documents / count)
    chosen = [units[(2 * i + 1) * len(units) // (2 * count)] for i in range(count)]
    return [first + i for first, rows in chosen for i in range(min(rows, each))]
