"""Trees of architectures that take no tree mask: the trunk is run once, its states are kept, branches go on from the nearest one.

In: windows of nodes, round after round. Out: their last hidden states. A hybrid or recurrent model sees what is before a token
through states (of convolutions, recurrences, keys and values), which its cache holds. Long chains of a tree (the trunk, and other
chains of `spacing` tokens or more) are read in pieces that end at the same depths, and the state behind each piece is kept. All
other nodes are read from the nearest kept state above them, level by level: one token of every node of a level in a pass, each
behind its parent's state. So a token of the trunk is read once, and once more where something hangs off it or below it in its
piece; a node of a branch once. How a model can be led so differs (`Leading`), and is found by trying (state_check.py).

Letters: R rows of a pass, L tokens that a pass adds, n and m nodes of one window, D hidden size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, TypeVar

import numpy as np
import torch

from engine.teacher.cache_rows import Row, chosen, joined, rows_of
from engine.teacher.decoder import Decoder
from engine.teacher.incremental import IncrementalTrees, check_round
from engine.teacher.packing import Window

STATE_BYTES = 1 << 30
"""Bytes of kept states, and of the states of one pass, on a host; on a GPU an eighth of its memory where that is more."""
T = TypeVar("T")
_LEAST_SPACING, _SPACING_OF_PATHS = 16, 4


@dataclass(frozen=True, slots=True)
class Leading:
    """How a model is led on from a state. pieces: it takes several tokens behind a state, else one. levels: branches are read one
    token of every node at a time, else path by path (where single tokens behind a state go wrong). mixed: rows of a pass may be
    of different depths, shorter ones filled up on the left, else they are of one depth.

    state_bytes, token_bytes: what a row's state takes, and each token behind it (keys and values). room_bytes: for all states
    that are kept, and for those of one pass. spacing: tokens between kept states; 0: chosen from the room.
    """

    pieces: bool
    levels: bool
    mixed: bool
    state_bytes: int = 0
    token_bytes: int = 0
    room_bytes: int = STATE_BYTES
    spacing: int = 0

    def spacing_for(self, tokens: int, longest: int) -> int:
        """Tokens between kept states. tokens: of all windows; longest: of one.

        Level by level, the number of tokens read does not hang on it, that of passes is least at the root of the length; path by
        path each branch reads half of it again, so that it is short. More where so many states have no room.
        """
        if self.spacing:
            return self.spacing
        least = max(_LEAST_SPACING, isqrt(longest)) if self.levels else _SPACING_OF_PATHS
        return max(least, -(-tokens * self.state_bytes // self.room_bytes))

    def rows_at_once(self, depth: int) -> int:
        """Rows of a pass behind so many tokens."""
        return max(1, self.room_bytes // max(1, self.state_bytes + self.token_bytes * (depth + 1)))


@dataclass(slots=True)
class _Nodes:
    """A window's nodes so far, and the states kept behind some of them."""

    token: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    kept: dict[int, Row] = field(default_factory=dict)

    def above(self, node: int) -> list[int]:
        """The nodes from behind the nearest kept state down to this one."""
        path = []
        while node >= 0 and node not in self.kept:
            path.append(node)
            node = self.parent[node]
        return path[::-1]


@dataclass(frozen=True, slots=True)
class _Unit:
    """Nodes of a window that are read from one kept state (of node `start`; -1: from nothing). nodes: rising; wanted: those whose
    hidden states are asked for; width: of the fullest level."""

    window: int
    start: int
    depth: int
    nodes: list[int]
    wanted: set[int]
    width: int


class StateTrees(IncrementalTrees):
    """Windows that take more nodes, over kept states."""

    def __init__(self, decoder: Decoder, leading: Leading, windows: Sequence[Window]) -> None:
        self._decoder, self._leading = decoder, leading
        self._windows = [_Nodes() for _ in windows]
        sizes = [len(w.token) for w in windows]
        longest = max((int(np.max(w.depth)) + 1 for w in windows if len(w.depth)), default=1)
        self._spacing = leading.spacing_for(sum(sizes), longest)
        self._empty: torch.Tensor | None = None
        self.add(windows)

    @property
    def sizes(self) -> list[int]:
        return [len(w.token) for w in self._windows]

    @torch.inference_mode()
    def add(self, more: Sequence[Window]) -> list[torch.Tensor]:
        check_round(more, self.sizes)
        self._first = self.sizes
        for nodes, w in zip(self._windows, more, strict=True):
            nodes.token += np.asarray(w.token, np.int64).tolist()
            nodes.parent += np.asarray(w.parent, np.int64).tolist()
            nodes.depth += np.asarray(w.depth, np.int64).tolist()
        self._out: list[torch.Tensor | None] = [None] * len(more)
        spines = [spine(w.parent, first, self._spacing) for w, first in zip(self._windows, self._first, strict=True)]
        self._read_spines(spines)
        units = [
            unit
            for number, (w, on_spine, first) in enumerate(zip(self._windows, spines, self._first, strict=True))
            for unit in _units(w, number, [n for n in range(first, len(w.token)) if n not in on_spine])
        ]
        run = self._read_levels if self._leading.levels else self._read_paths
        for group in self._together(units):
            run(group)
        assert self._empty is not None
        self.hidden = [self._empty if rows is None else rows for rows in self._out]
        return self.hidden

    # ---- long chains, in pieces

    def _read_spines(self, spines: list[set[int]]) -> None:
        """The nodes of long chains, in the order of their depths, and the states behind the pieces."""
        ends: dict[int, list[tuple[int, int]]] = defaultdict(list)  # number of a piece -> (window, last node there)
        for number, (w, on_spine) in enumerate(zip(self._windows, spines, strict=True)):
            inner = {w.parent[n] for n in on_spine}
            for n in on_spine:
                if n not in inner or self._ends_piece(w.depth[n]):
                    ends[w.depth[n] // self._spacing].append((number, n))
        for piece in sorted(ends):
            by_start: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
            for number, end in ends[piece]:
                path = self._windows[number].above(end)
                by_start[self._windows[number].depth[path[0]]].append((number, path))
            for depth, paths in sorted(by_start.items()):
                for part in self._passes(paths, depth):
                    self._read_piece(part, depth)

    def _ends_piece(self, depth: int) -> bool:
        return depth % self._spacing == self._spacing - 1

    def _passes(self, paths: list[tuple[T, list[int]]], depth: int) -> Iterator[list[tuple[T, list[int]]]]:
        """Paths in passes of bounded size, the longest first. depth: tokens above the deepest of them."""
        paths = sorted(paths, key=lambda job: -len(job[1]))
        at = 0
        while at < len(paths):
            length = len(paths[at][1])
            most = min(self._leading.rows_at_once(depth + length), max(1, self._decoder.path_tokens // length))
            yield paths[at : at + most]
            at += most

    def _read_piece(self, paths: list[tuple[int, list[int]]], depth: int) -> None:
        """Paths that begin at one depth as one pass; the states behind those that end a piece are kept."""
        cache, _ = self._behind([(number, self._windows[number].parent[path[0]]) for number, path in paths])
        states, cache = self._advance(cache, self._tokens(paths), [depth] * len(paths), {})
        for row, (number, path) in enumerate(paths):
            self._put(number, path, states[row])
        full = [
            row for row, (number, path) in enumerate(paths) if self._ends_piece(self._windows[number].depth[path[-1]])
        ]
        if full:
            length = depth + len(paths[full[0]][1])
            made = rows_of(chosen(cache, full, len(paths)), length)
            for row, state in zip(full, made, strict=True):
                number, path = paths[row]
                w = self._windows[number]
                w.kept[path[-1]] = state
                if w.parent[path[0]] >= 0:
                    w.kept[w.parent[path[0]]].lean_on(state)

    # ---- branches

    def _together(self, units: list[_Unit]) -> Iterator[list[_Unit]]:
        """Units that are read in the same passes: of like depth, or of one depth, or from nothing."""
        group: list[_Unit] = []
        width = 0
        for unit in sorted(units, key=lambda u: u.depth):
            most = self._leading.rows_at_once(unit.depth + self._spacing)
            for part in self._narrow(unit, most):
                same = group and (
                    (part.start < 0) == (group[0].start < 0) if self._leading.mixed else part.depth == group[0].depth
                )
                if group and (not same or width + part.width > most):
                    yield group
                    group, width = [], 0
                group.append(part)
                width += part.width
        if group:
            yield group

    def _narrow(self, unit: _Unit, most: int) -> list[_Unit]:
        """The unit in parts of at most so many rows, each with all that its wanted nodes need."""
        if unit.width <= most or len(unit.wanted) == 1:
            return [unit]
        wanted = sorted(unit.wanted)
        halves = (wanted[: len(wanted) // 2], wanted[len(wanted) // 2 :])
        return [
            part
            for half in halves
            for whole in _units(self._windows[unit.window], unit.window, half)
            for part in self._narrow(whole, most)
        ]

    def _read_levels(self, units: list[_Unit]) -> None:
        """All nodes of the units, one level below their starts after the other."""
        cache, filled = self._behind([(u.window, u.start) for u in units])
        count, longest = len(units), max(u.depth for u in units)
        row_of = {(u.window, u.start): row for row, u in enumerate(units)}
        levels: dict[int, list[tuple[_Unit, int]]] = defaultdict(list)
        for u in units:
            for n in u.nodes:
                levels[self._windows[u.window].depth[n] - u.depth].append((u, n))
        for level in sorted(levels):
            here = levels[level]
            above = [row_of[u.window, self._windows[u.window].parent[n]] for u, n in here] if cache is not None else []
            if cache is not None:
                cache = chosen(cache, above, count)
            extra = self._seen([u.depth for u, _ in here], longest, level + 1) if filled else {}
            starts = [u.depth + level for u, _ in here]
            tokens = self._tokens([(u.window, [n]) for u, n in here])
            states, cache = self._advance(cache, tokens, starts, extra)
            for row, (u, n) in enumerate(here):
                row_of[u.window, n] = row
                if n in u.wanted:
                    self._put(u.window, [n], states[row])
            count = len(here)

    def _read_paths(self, units: list[_Unit]) -> None:
        """Every leaf's path from its unit's start as a row."""
        paths = []
        for u in units:
            w, inner = self._windows[u.window], {self._windows[u.window].parent[n] for n in u.nodes}
            paths += [(u, w.above(n)) for n in u.nodes if n not in inner]
        for part in self._passes(paths, max(u.depth for u in units)):
            longest = max(u.depth for u, _ in part)
            cache, filled = self._behind([(u.window, u.start) for u, _ in part])
            tokens = self._tokens([(u.window, path) for u, path in part])
            starts = [u.depth for u, _ in part]
            extra = self._seen(starts, longest, tokens.shape[1]) if filled else {}
            states, _ = self._advance(cache, tokens, starts, extra)
            for row, (u, path) in enumerate(part):
                self._put(u.window, path, states[row])

    # ---- passes

    def _behind(self, starts: list[tuple[int, int]]) -> tuple[Any, bool]:
        """(A cache of the states kept behind these nodes, None behind nothing; whether shorter ones were filled up)."""
        if starts[0][1] < 0:
            return None, False
        cache, filled = joined([self._windows[number].kept[node] for number, node in starts])
        if filled and not self._leading.mixed:
            raise ValueError("states behind as many tokens are of different sizes")
        return cache, filled

    def _tokens(self, paths: Sequence[tuple[int, list[int]]]) -> torch.Tensor:
        """int64 [R, L] on the device: the tokens of these nodes, filled up on the right, where nothing looks."""
        length = max(len(path) for _, path in paths)
        if not self._leading.levels:
            length = max(length, 2)  # single tokens are what such a model takes wrongly
        out = np.zeros((len(paths), length), np.int64)
        for row, (number, path) in enumerate(paths):
            token = self._windows[number].token
            out[row] = token[path[0]]
            out[row, : len(path)] = [token[n] for n in path]
        return torch.from_numpy(out).to(self._decoder.device)

    def _advance(
        self, cache: Any, token_RL: torch.Tensor, starts: list[int], extra: dict[str, Any]
    ) -> tuple[torch.Tensor, Any]:
        """Hidden states [R, L, D], and the cache behind them. starts: tokens before each row."""
        start = torch.tensor(starts, device=self._decoder.device)[:, None]
        if self._leading.pieces or cache is None:
            states, cache = self._decoder.onward(token_RL, cache, start, **extra)
        else:
            parts = []
            for at in range(token_RL.shape[1]):
                one, cache = self._decoder.onward(token_RL[:, at : at + 1], cache, start + at, **extra)
                parts.append(one)
            states = torch.cat(parts, 1)
        self._empty = states[0, :0]
        return states, cache

    def _seen(self, depths: list[int], longest: int, new: int) -> dict[str, Any]:
        """Which places of rows that were filled up count. depths: tokens of each row's kept state; longest: of the longest; new:
        tokens behind the kept states, this pass's among them."""
        start = torch.tensor(depths, device=self._decoder.device)[:, None]
        place = torch.arange(longest + new, device=self._decoder.device)
        return {"attention_mask": (place >= longest - start).long()}

    def _put(self, number: int, nodes: list[int], states: torch.Tensor) -> None:
        """Hidden states of nodes into the round's result, as far as they are new. states: [at least len(nodes), D]."""
        first = self._first[number]
        skip = next((k for k, n in enumerate(nodes) if n >= first), len(nodes))
        if skip == len(nodes):
            return
        rows = self._out[number]
        if rows is None:
            count = len(self._windows[number].token) - first
            rows = self._out[number] = states.new_empty((count, states.shape[1]))
        at = torch.tensor([n - first for n in nodes[skip:]], device=rows.device)
        rows[at] = states[skip : len(nodes)]


def spine(parent: Sequence[int], first: int, least: int) -> set[int]:
    """The new nodes (`first` and later) that lie on long chains. A chain goes from a node to the child below which it is deepest;
    it is long when it has `least` new nodes, or when it begins at a root. All new nodes above one of these are among them."""
    size = len(parent)
    height, heavy = [1] * size, [-1] * size
    for n in range(size - 1, first - 1, -1):
        above = parent[n]
        if above >= first and height[n] + 1 > height[above]:
            height[above], heavy[above] = height[n] + 1, n
    found: set[int] = set()
    for n in range(first, size):
        above = parent[n]
        if above < 0 or height[n] >= least or (above in found and heavy[above] == n):
            found.add(n)
    return found


def _units(w: _Nodes, number: int, wanted: list[int]) -> Iterator[_Unit]:
    """The wanted nodes of a window and what must be read again above them, by the kept state that they begin at."""
    start_of: dict[int, int] = {}
    for node in wanted:
        path, at = [], node
        while at >= 0 and at not in w.kept and at not in start_of:
            path.append(at)
            at = w.parent[at]
        start = start_of.get(at, at)
        start_of |= dict.fromkeys(path, start)
    asked = set(wanted)
    by_start: dict[int, list[int]] = defaultdict(list)
    for node in sorted(start_of):
        by_start[start_of[node]].append(node)
    for start, nodes in by_start.items():
        depth = 0 if start < 0 else w.depth[start] + 1
        fullest = int(np.bincount([w.depth[n] - depth for n in nodes]).max())
        yield _Unit(number, start, depth, nodes, asked.intersection(nodes), fullest)
