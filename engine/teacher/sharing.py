"""Windows of one document that begin with the same tokens, read as one: what they have in common is read once.

The scored parts of a conversation each stand behind all that was said before, so that their prompts grow turn by turn. A tree in
which they share the beginning has every node that they have, once; a node's state hangs on nothing but what is above it
(lemma 8), so it is the state in each of them.

Letters: W nodes of a window, m new nodes of a round.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.teacher.incremental import IncrementalTrees
from engine.teacher.packing import Window, chain_length


@dataclass(slots=True)
class SharedWindow:
    """Several windows as one. members: of each (its index among those given, int64 [W]: the places of its nodes here)."""

    parts: list[Window] = field(default_factory=list)
    members: list[tuple[int, np.ndarray]] = field(default_factory=list)
    size: int = 0

    @property
    def window(self) -> Window:
        """All nodes, parents before children."""
        if len(self.parts) == 1:
            return self.parts[0]
        joined = (np.concatenate([np.asarray(getattr(part, name)) for part in self.parts]) for name in _FIELDS)
        return Window(*joined)

    def add(self, index: int, window: Window, common: int) -> None:
        """One more member, whose first `common` nodes are those of the member before."""
        count = len(window.token)
        before = self.members[-1][1][:common] if common else np.empty(0, np.int64)
        at = np.concatenate([before, self.size + np.arange(count - common)])
        above = np.asarray(window.parent)[common:]
        parent = np.where(above >= 0, at[above], -1)
        self.parts.append(Window(np.asarray(window.token)[common:], parent, np.asarray(window.depth)[common:]))
        self.members.append((index, at))
        self.size += count - common


_LEAST = 16
"""Tokens in common below which nothing is joined: chains stay chains, which need no mask."""
_FIELDS = ("token", "parent", "depth")


def share(windows: Sequence[Window], document: Sequence[Hashable | None], most: int) -> list[SharedWindow]:
    """The windows, those of one document joined with the one before as far as they begin alike. document: of each window, what it
    is of; None: it is left alone. most: nodes of what is joined."""
    out: list[SharedWindow] = []
    for k, window in enumerate(windows):
        common = 0
        if k and document[k] is not None and document[k] == document[k - 1]:
            common = _alike(windows[k - 1], window)
        if common < _LEAST or out[-1].size + len(window.token) - common > most:
            out.append(SharedWindow())
            common = 0
        out[-1].add(k, window, common)
    return out


def _alike(a: Window, b: Window) -> int:
    """How many nodes at the beginning of two windows are one and the same chain of tokens."""
    most = min(chain_length(a), chain_length(b))
    differ = np.flatnonzero(
        (np.asarray(a.token)[:most] != np.asarray(b.token)[:most])
        | (np.asarray(a.depth)[:most] != np.asarray(b.depth)[:most])
    )
    return int(differ[0]) if len(differ) else most


class SharedTrees(IncrementalTrees):
    """Open trees of shared windows, as if each member had a window of its own: numbers are those of the member's nodes, in the
    order of addition. members: of each window of `trees`, as in SharedWindow."""

    def __init__(self, trees: IncrementalTrees, members: Sequence[Sequence[tuple[int, np.ndarray]]]) -> None:
        self._trees = trees
        self._at = [
            at for ones in members for _, at in ones
        ]  # of each member, its nodes' numbers in the window of `trees`
        self._first = np.cumsum([0, *(len(ones) for ones in members)]).tolist()  # the first member of each window
        self.hidden = [
            states[torch.from_numpy(self._at[k]).to(states.device)]
            for w, states in enumerate(trees.hidden)
            for k in range(self._first[w], self._first[w + 1])
        ]

    @property
    def sizes(self) -> list[int]:
        return [len(at) for at in self._at]

    def add(self, more: Sequence[Window]) -> list[torch.Tensor]:
        joined, sizes = [], self._trees.sizes
        for w, size in enumerate(sizes):
            parts = []
            for k in range(self._first[w], self._first[w + 1]):
                new = size + np.arange(len(more[k].token))
                size += len(new)
                self._at[k] = np.concatenate([self._at[k], new])
                above = np.asarray(more[k].parent, np.int64)
                parent = np.where(above >= 0, self._at[k][above], -1)
                parts.append((np.asarray(more[k].token, np.int64), parent, np.asarray(more[k].depth, np.int64)))
            joined.append(Window(*(np.concatenate(column) for column in zip(*parts, strict=True))))
        self.hidden = []
        for w, states in enumerate(self._trees.add(joined)):
            at = 0
            for k in range(self._first[w], self._first[w + 1]):
                self.hidden.append(states[at : at + len(more[k].token)])
                at += len(more[k].token)
        return self.hidden
