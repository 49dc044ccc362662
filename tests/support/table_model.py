"""A table teacher in the place of a model, for everything that runs a model in rounds.

Only the model itself is replaced: its "hidden states" are numbers of token paths, and `logits` looks each path up in the
table. Windows, batches, rounds, splitting and emitting are the engine's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engine.bpe.vocabulary import Vocabulary
from engine.teacher.incremental import IncrementalTrees
from engine.teacher.packing import Window
from tests.support.toys import TableTeacher

Path = tuple[int, ...]


class TableModel:
    """What teacher/evaluate.py and beam/search.py ask of a teacher. broken: text tokens of contexts whose row is NaN.
    asked: contexts in the order in which they were scored, BOS included."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        table: TableTeacher,
        *,
        max_length: int = 1 << 30,
        broken: frozenset[Path] = frozenset(),
    ) -> None:
        self.vocabulary, self.table, self.max_length, self.broken = vocabulary, table, max_length, broken
        self.asked: list[Path] = []

    def states(self, paths: Sequence[Path]) -> torch.Tensor:
        numbers = range(len(self.asked), len(self.asked) + len(paths))
        self.asked += paths
        return torch.tensor(list(numbers), dtype=torch.float64)[:, None]

    def hidden(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        return self.open_trees(windows).hidden

    def open_trees(self, windows: Sequence[Window]) -> TableTrees:
        return TableTrees(self, windows)

    def logits(self, hidden_R1: torch.Tensor) -> torch.Tensor:
        rows = []
        for number in hidden_R1[:, 0].long().tolist():
            text = tuple(t for t in self.asked[number] if t not in self.vocabulary.specials)
            nan = np.full(self.vocabulary.size, np.nan)
            rows.append(nan if text in self.broken else self.table.logp(text))
        return torch.from_numpy(np.array(rows))


class TableTrees(IncrementalTrees):
    """Remembers the path and the depth of every node; refuses positions that a model would get wrong."""

    def __init__(self, model: TableModel, windows: Sequence[Window]) -> None:
        self._model = model
        self._paths: list[list[Path]] = [[] for _ in windows]
        self.add(windows)

    @property
    def sizes(self) -> list[int]:
        return [len(paths) for paths in self._paths]

    def add(self, more: Sequence[Window]) -> list[torch.Tensor]:
        self.hidden = []
        for paths, window in zip(self._paths, more, strict=True):
            begin = len(paths)
            columns: Any = (window.token, window.parent, window.depth)
            for token, parent, depth in zip(*(np.asarray(c).tolist() for c in columns), strict=True):
                assert -1 <= parent < len(paths), "parents come before their children"
                path = (*(paths[parent] if parent >= 0 else ()), token)
                assert depth == len(path) - 1 < self._model.max_length, (path, depth)
                paths.append(path)
            self.hidden.append(self._model.states(paths[begin:]))
        return self.hidden
