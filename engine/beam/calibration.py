"""How the teacher usually goes on behind each of its tokens, from a sample of the corpus: what open leaves are closed by.

In: rows of next-token probabilities along the texts of the sample (`CalibrationSums.add`). Out: a `Calibration`, the mean row
behind each last token.

An open leaf that is not split must be placed somehow. "As if a boundary followed" is wrong for most pieces of words; the mean
of the teacher's own rows behind the same last token is better. The sample is the first documents of the corpus, named in the
plan, and its mean rows are a file of the output (calibration_file.py), so that all actors have the same. They move the point
estimate only: what is closed by them counts as open, and no certificate depends on them (lemma 19).

Letters: K heaviest tokens of a mean row, H heads of a student.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine.beam.sketch import RowSketch

TAKEN = 64  # heaviest tokens of each row that enter a mean
KEPT = 32  # heaviest next tokens of a mean row; the rest is closed as if a boundary followed


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mean rows by last token: teacher token -> mean of the rows behind it in the sample. Empty: no sample was read."""

    mean_rows: dict[int, RowSketch] = field(default_factory=dict)

    def mean_row(self, token: int) -> RowSketch | None:
        """The mean row behind `token`, None when the sample does not have it."""
        return self.mean_rows.get(token)


@dataclass(slots=True)
class _Sum:
    """Rows added up, all behind one token. tokens: next token -> sum of its probabilities; heads: product -> float64 [H]."""

    count: int = 0
    special: float = 0.0
    tokens: dict[int, float] = field(default_factory=dict)
    heads: dict[str, np.ndarray] = field(default_factory=dict)


class CalibrationSums:
    """Rows of the sample as they come, summed by last token."""

    def __init__(self) -> None:
        self._sums: dict[int, _Sum] = {}

    def add(self, token: int, row: RowSketch) -> None:
        """One more row behind `token`."""
        known = self._sums.setdefault(token, _Sum())
        known.count += 1
        known.special += row.special
        for t, p in zip(row.ids[:TAKEN].tolist(), row.prob[:TAKEN].tolist(), strict=True):
            known.tokens[t] = known.tokens.get(t, 0.0) + p
        for product, heads in row.heads.items():
            known.heads[product] = known.heads[product] + heads if product in known.heads else heads

    def calibration(self) -> Calibration:
        """The means of all rows so far. Of equally heavy next tokens the one with the smaller id is kept."""
        mean_rows = {}
        for token, known in self._sums.items():
            best = sorted(known.tokens.items(), key=lambda item: (-item[1], item[0]))[:KEPT]
            mean_rows[token] = RowSketch(
                ids=np.array([t for t, _ in best], np.int64),
                prob=np.array([p for _, p in best]) / known.count,
                heads={product: heads / known.count for product, heads in known.heads.items()},
                special=known.special / known.count,
                total=1.0,
            )
        return Calibration(mean_rows)
