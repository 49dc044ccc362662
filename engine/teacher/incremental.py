"""Trees scored in rounds: first some nodes, then nodes that hang off them, over the keys and values kept from before.

In: windows of nodes, round after round. Out: their last hidden states. No node depends on nodes below it or beside it
(lemma 8), so what a round adds changes nothing of what earlier rounds gave.

Where a model takes no tree, or its cache does not hold what later rounds need, the new nodes are scored afresh with all that
is above them: the same results, without the saving.

Letters: B rows, P places filled before, M new places, n and m nodes of one window, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from engine.teacher.attention_masks import Reach, reach_of
from engine.teacher.decoder import MASK_CELLS, Decoder
from engine.teacher.long_trees import LONG_NODES, plain
from engine.teacher.packing import Window, ancestors_too, chain_length, lay_out


class IncrementalTrees:
    """Windows that take more nodes. `hidden`: the last round's states, one [n, D] for each window.

    With a cache, rows keep all keys and values until the object goes: layers x 2 x key heads x head size numbers a place.
    """

    hidden: list[torch.Tensor]

    @property
    def sizes(self) -> list[int]:
        """Nodes of each window so far; the next one gets this number."""
        raise NotImplementedError

    def add(self, more: Sequence[Window]) -> list[torch.Tensor]:
        """Score m more nodes of each window (perhaps none): [m, D] each.

        Parents are numbers of the window's nodes in the order of addition, earlier rounds included; depth is absolute.
        Raises ValueError for a wrong number of windows, or a parent that does not come before its child.
        """
        raise NotImplementedError


class CachedTrees(IncrementalTrees):
    """Rounds over one cache. Places of a row, padding included, stay where they were when the next round is added behind them.

    One window to a row: trunks take no mask so, and what is not finite in one window cannot spoil another.

    _parent, _depth: int64 [B, P], all places so far; parents are places of the same row, -1 for roots and padding.
    _place: for each window int64 [n], the place of each of its nodes in the order of addition (where other windows of a round had
    more nodes, padding lies between). _row: the row of each window.
    """

    def __init__(self, decoder: Decoder, windows: Sequence[Window]) -> None:
        self._decoder = decoder
        config = decoder.model.config
        kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
        # without the config: full layers; one made from it would crop sliding layers. Indexers keep keys of their own
        self._cache = DynamicCache(config=config) if kinds == {"indexed_attention"} else DynamicCache()
        chains = not any(w.branched for w in windows)
        self._rows = [[i] for i in range(len(windows))]
        first = lay_out(windows, self._rows)
        self._parent, self._depth = first.parent, first.depth
        self._place = [at + np.arange(len(w.token)) for w, (_, at) in zip(windows, first.start, strict=True)]
        self._row = [row for row, _ in first.start]
        # a trunk needs no mask, and of a long one it would be a square; where that cannot be spared, it is made in steps
        alone = len(windows) == 1 and len(windows[0].token) > LONG_NODES
        trunk = first.token.shape[1] if chains else chain_length(windows[0]) if alone else 0
        if alone and not plain(decoder):
            trunk = 0
        parts = []
        if trunk:
            token = torch.from_numpy(first.token[:, :trunk]).to(decoder.device)
            parts.append(decoder.causal(token, self._cache))
        if trunk < first.token.shape[1]:
            parts.append(self._score(first.token[:, trunk:], trunk))
        states = torch.cat(parts, 1)
        self.hidden = [states[row, at[0] : at[-1] + 1] for row, at in zip(self._row, self._place, strict=True)]
        self._empty = states[0, :0]

    @property
    def sizes(self) -> list[int]:
        return [len(at) for at in self._place]

    def _reach(self) -> Reach:
        return reach_of(self._parent, self._depth, self._decoder.device)

    @torch.inference_mode()
    def add(self, more: Sequence[Window]) -> list[torch.Tensor]:
        check_round(more, [len(at) for at in self._place])
        past = self._parent.shape[1]
        fresh = lay_out([Window(w.token, [-1] * len(w.token), w.depth) for w in more], self._rows)
        count = fresh.token.shape[1]
        if count == 0:
            self.hidden = [self._empty for _ in more]
            return self.hidden
        for index, w in enumerate(more):
            row, at = fresh.start[index]
            new = past + at + np.arange(len(w.token))  # the round's places stand behind everything before it
            self._place[index] = np.concatenate([self._place[index], new])
            above = np.asarray(w.parent, np.int64)  # numbers of nodes -> places of the row
            fresh.parent[row, at : at + len(new)] = np.where(above >= 0, self._place[index][above], -1)
        self._parent = np.concatenate([self._parent, fresh.parent], axis=1)
        self._depth = np.concatenate([self._depth, fresh.depth], axis=1)
        states = self._score(fresh.token, past)
        self.hidden = [states[row, at : at + len(w.token)] for w, (row, at) in zip(more, fresh.start, strict=True)]
        return self.hidden

    def _score(self, token_BM: np.ndarray, past: int) -> torch.Tensor:
        """Hidden states [B, M, D] of the last M places, in steps whose mask stays small. Parents come before their children, so a
        step needs only places before its end; the intervals of the whole rows stay right when they are cut there."""
        token = torch.from_numpy(token_BM).to(self._decoder.device)
        reach, parts = self._reach(), []
        step = max(1, MASK_CELLS // (len(token) * (past + token.shape[1])))
        for begin in range(0, token.shape[1], step):
            part = token[:, begin : begin + step]
            end = past + begin + part.shape[1]
            seen = Reach(reach.enter[:, :end], reach.leave[:, :end], reach.depth[:, :end])
            parts.append(self._decoder.masked(part, seen, past + begin, _dense(self._decoder), self._cache))
        return torch.cat(parts, 1)


class RescoredTrees(IncrementalTrees):
    """Rounds that keep nothing: each scores the new nodes and all above them by `score`."""

    def __init__(self, score: Callable[[list[Window]], list[torch.Tensor]], windows: Sequence[Window]) -> None:
        self._score = score
        self._known = [Window([], [], []) for _ in windows]
        self._width: torch.Tensor | None = None
        self.add(windows)

    @property
    def sizes(self) -> list[int]:
        return [len(w.token) for w in self._known]

    def add(self, more: Sequence[Window]) -> list[torch.Tensor]:
        check_round(more, [len(w.token) for w in self._known])
        wanted: list[tuple[int, Window, np.ndarray]] = []
        for index, (known, w) in enumerate(zip(self._known, more, strict=True)):
            joined = [np.concatenate([a, b]).astype(np.int64) for a, b in zip(_arrays(known), _arrays(w), strict=True)]
            self._known[index] = whole = Window(*(a.tolist() for a in joined))
            if len(w.token):
                # the part of the window that the new nodes need, renumbered: `at` are the parents' places in it
                nodes = ancestors_too(whole.parent, range(len(known.token), len(whole.token)))
                above = joined[1][nodes]
                at = np.where(above >= 0, np.searchsorted(nodes, above), -1)
                part = Window(joined[0][nodes].tolist(), at.tolist(), joined[2][nodes].tolist())
                wanted.append((index, part, np.flatnonzero(nodes >= len(known.token))))
        states = self._score([part for _, part, _ in wanted]) if wanted else []
        if states:
            self._width = states[0][:0]
        assert self._width is not None
        self.hidden = [self._width for _ in more]
        for (index, _, keep), rows in zip(wanted, states, strict=True):
            self.hidden[index] = rows[torch.from_numpy(keep).to(rows.device)]
        return self.hidden


def _arrays(window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(window.token), np.asarray(window.parent), np.asarray(window.depth)


def _dense(decoder: Decoder) -> str:
    """Few queries against many keys are no case for a block mask: rounds take the model's own kernel."""
    return decoder.model.config._attn_implementation


def check_round(more: Sequence[Window], known: list[int]) -> None:
    if len(more) != len(known):
        raise ValueError(f"a round of {len(more)} windows for {len(known)}; give one for each, empty where none is new")
    for index, (w, count) in enumerate(zip(more, known, strict=True)):
        parent = np.asarray(w.parent, np.int64)
        wrong = np.flatnonzero((parent < -1) | (parent >= count + np.arange(len(parent))))
        if wrong.size:
            at = int(wrong[0])
            raise ValueError(
                f"window {index}: new node {at} has parent {parent[at]}, but it is number {count + at} of its window; "
                "parents come before their children"
            )


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch to which nodes can be added. windows: for each one (passage, nodes, numbers, depths): the number of the passage in
    the group, and for the nodes that the window owns their numbers in the passage's tree, in `trees`, and their depths in the
    window, int64 each. A number in `trees` of -1: the context was pruned."""

    trees: IncrementalTrees
    windows: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]
