"""Metrics of the actors in Ray's own registry: Prometheus finds them where it finds Ray's (docs/operations.md).

sums of a unit, seconds -> counters and gauges. Ray puts `ray_` before the names; a dashboard: examples/cluster/grafana.json
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

SUMS = {
    "documents": "Documents decided, those in quarantine included",
    "quarantined": "Documents in quarantine",
    "teacher_tokens": "Teacher tokens of the corpus that are scored",
    "teacher_evaluations": "Contexts that the teacher was asked for",
    "text_bytes": "Bytes of text that are scored",
    "oom_retries": "Attempts that were repeated with less after memory ran out",
}
"""Sums of a unit (docs/format.md, section 5) that become counters `targetsmith_<name>`."""


class UnitMetrics:
    """What an actor tells of its units. run: the beginning of the fingerprint, which stands at every value."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        keys = ("run",)
        self._units = Counter("targetsmith_units", "Units published", tag_keys=keys)
        self._sums = {name: Counter(f"targetsmith_{name}", about, tag_keys=keys) for name, about in SUMS.items()}
        edges = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
        self._seconds = Histogram(
            "targetsmith_unit_seconds", "Seconds that a unit took", boundaries=edges, tag_keys=keys
        )
        of_product = ("run", "product")
        self._positions = Counter("targetsmith_positions", "Positions that are scored", tag_keys=of_product)
        self._width = Gauge("targetsmith_width", "Mean certified width of the last unit's rows", tag_keys=of_product)
        self._expected = Gauge(
            "targetsmith_expected_tv", "Total variation that the search expects to have left, last unit", tag_keys=keys
        )

    def add(self, stats: Mapping[str, float], seconds: float) -> None:
        """One more unit, with its sums and the seconds that it took to read, score and publish."""
        self._units.inc(1, self._tags)
        self._seconds.observe(seconds, self._tags)
        for name, counter in self._sums.items():
            if stats.get(name):
                counter.inc(stats[name], self._tags)
        if stats.get("beam.boundaries"):
            self._expected.set(stats["beam.expected_tv_sum"] / stats["beam.boundaries"], self._tags)
        for key, scored in stats.items():
            product, dot, what = key.rpartition(".")
            if dot and what == "scored" and scored:
                tags = {**self._tags, "product": product}
                self._positions.inc(scored, tags)
                if f"{product}.err_sum" in stats:
                    self._width.set(stats[f"{product}.err_sum"] / scored, tags)
