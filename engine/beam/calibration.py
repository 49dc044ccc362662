"""Stage 8c (fast, beam): how each teacher token is usually continued, for leaves that nobody evaluates.

An open leaf that is not split must be closed somehow. "As if a boundary followed" is wrong for most pieces of words; better
is the mean of the teacher's own rows behind the same last token, over the paths of a calibration sample. The sample is the
first documents of the corpus, named in the plan, and what it gave is a file of the output (calibration_file.py), so that all have
the same means. They move the point estimate only: what is closed by them counts as open, and no certificate depends on them.

Letters: K heaviest tokens of a mean row, H heads of a student.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine.beam.sketch import RowSketch

TAKEN = 64  # heaviest tokens of each row that enter a mean
KEPT = 32  # heaviest next tokens of a mean row; the rest is closed as if a boundary followed


@dataclass(slots=True)
class _Sum:
    """Rows added up. tokens: next token -> sum of its probabilities."""

    count: int = 0
    special: float = 0.0
    tokens: dict[int, float] = field(default_factory=dict)
    heads: dict[str, np.ndarray] = field(default_factory=dict)


class Continuations:
    """Mean rows by last token. means: made already, else by `add` and then `close`."""

    def __init__(self, means: dict[int, RowSketch] | None = None) -> None:
        self._sums: dict[int, _Sum] = {}
        self.means = means or {}

    def add(self, token: int, row: RowSketch) -> None:
        """One more row behind `token`."""
        known = self._sums.setdefault(token, _Sum())
        known.count += 1
        known.special += row.special
        for t, p in zip(row.ids[:TAKEN].tolist(), row.prob[:TAKEN].tolist(), strict=True):
            known.tokens[t] = known.tokens.get(t, 0.0) + p
        for product, heads in row.heads.items():
            known.heads[product] = known.heads[product] + heads if product in known.heads else heads

    def close(self) -> None:
        """Make the means; what they were made from is given up."""
        for token, known in self._sums.items():
            best = sorted(known.tokens.items(), key=lambda item: (-item[1], item[0]))[:KEPT]
            self.means[token] = RowSketch(
                ids=np.array([t for t, _ in best], np.int64),
                prob=np.array([p for _, p in best]) / known.count,
                heads={product: heads / known.count for product, heads in known.heads.items()},
                special=known.special / known.count,
                total=1.0,
            )
        self._sums = {}

    def mean(self, token: int) -> RowSketch | None:
        """The mean row behind `token`, None when the sample does not have it."""
        return self.means.get(token)
