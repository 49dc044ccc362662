"""Several sources in one corpus, the [[corpus]] tables of the run file: which records of each are taken.

Weights say how many documents a source has in the mixture beside the others: 7 and 3, seven of one for three of the other. No
document is taken twice, so the mixture is as large as the scarcest source allows, which is taken whole; of the others the records
that are taken lie evenly over the source. Of N records n are taken: record i where floor((i + 1) n / N) > floor(i n / N). That
hangs on the counts alone, so every machine takes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from engine.corpus.tables import Span
from schemas.counts import counted
from schemas.errors import CorpusError
from schemas.runfile import CorpusConfig


@dataclass(frozen=True, slots=True)
class Share:
    """Of a source's `total` records `taken` are taken; a file's first record is number `first` of the source."""

    taken: int
    total: int
    first: int = 0

    @property
    def as_tuple(self) -> tuple[int, int, int]:
        return (self.taken, self.total, self.first)

    def of_file(self, first: int) -> Share:
        """The same for a file that begins there."""
        return replace(self, first=first)

    def takes(self, row: int) -> bool:
        """Whether a record of the file is taken."""
        at = self.first + row
        return (at + 1) * self.taken // self.total > at * self.taken // self.total

    def span(self, first_taken: int, count: int) -> Span:
        """The rows of the file from its taken record number `first_taken` to `count` of them, those between included."""
        before = self.first * self.taken // self.total
        return self._row(before + first_taken), self._row(before + first_taken + count - 1) + 1

    def _row(self, number: int) -> int:
        """The row in the file of the source's taken record with this number."""
        return -(-(number + 1) * self.total // self.taken) - 1 - self.first


def parts_of(config: CorpusConfig) -> tuple[CorpusConfig, ...]:
    """The tables: one, or those of a mixture."""
    return config.parts or (config,)


def part_of(config: CorpusConfig, source: str) -> CorpusConfig:
    """The table of a file, by the name of its source; "" where there is no mixture."""
    return next((part for part in config.parts if part.source == source), config)


def label_of(config: CorpusConfig, label: str) -> str:
    """The name of a file in doc ids: in a mixture it begins with that of its source."""
    return f"{config.source}/{label}" if config.source else label


def shares_of(read: Sequence[tuple[CorpusConfig, int]]) -> list[Share | None]:
    """What is taken of each source, given its records; None: all. Raises CorpusError where a weight leaves nothing of one."""
    weights = [None if config.weight is None else Fraction(str(config.weight)) for config, _ in read]
    sizes = [Fraction(count) / weight for (_, count), weight in zip(read, weights, strict=True) if weight]
    shares: list[Share | None] = []
    for (config, count), weight in zip(read, weights, strict=True):
        if weight is None:
            shares.append(None)
            continue
        taken = int(weight * min(sizes))
        if taken == 0:
            raise CorpusError(
                f"[[corpus]] {config.source}: its weight {config.weight:g} leaves none of its "
                f"{counted(count, 'record')} beside the other "
                "sources, which have too few for it; wanted one at least. Raise the weight, or take the table out."
            )
        shares.append(Share(taken, count))
    return shares
