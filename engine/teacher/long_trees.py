"""A long window read with memory that grows with its length, and not with its square: the trunk first, then blocks of branches.

In: one window. Out: its last hidden states. The trunk goes through the model's own causal kernel, which needs no mask, and leaves
its keys and values; branches follow in blocks, each over the part of them up to the last trunk node that one of its branches
hangs off. So a mask has (nodes of a block) x (that part) cells, and branches near the beginning do not look over the whole text.

Where the causal kernel itself makes a square (a sliding window, whose mask transformers writes out; attention without a kernel),
the trunk goes in blocks, too. Nothing is dropped: lemma 8 holds for any order in which parents come before their children.

Letters: n nodes of the window, b nodes of the branches, D hidden size, M nodes of a block, P places of the trunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from engine.teacher.attention_masks import Reach, reach_of
from engine.teacher.decoder import Decoder
from engine.teacher.packing import Window, chain_length

LONG_NODES = 4096
"""Nodes above which a window goes this way, where the start-up check has found it right."""
BLOCK_CELLS = 1 << 23
"""Cells of the mask of a block; kernels make a number of 4 bytes of each."""


def needs_blocks(decoder: Decoder, window: Window) -> bool:
    """Whether one pass over the window would make a square that can be spared."""
    return decoder.blocks and len(window.token) > LONG_NODES and (window.branched or not plain(decoder))


def plain(decoder: Decoder) -> bool:
    """Whether the model's own causal attention makes no square."""
    return decoder.masking.window is None and decoder.model.config._attn_implementation != "eager"


def long_states(decoder: Decoder, window: Window, cells: int = BLOCK_CELLS) -> torch.Tensor:
    """Hidden states [n, D] of all nodes. cells: of a mask."""
    token, parent, depth = (np.asarray(a, np.int64) for a in (window.token, window.parent, window.depth))
    trunk, cache = chain_length(window), DynamicCache()
    first = _trunk(decoder, Window(token[:trunk], parent[:trunk], depth[:trunk]), cache, cells)
    if trunk == len(token):
        return first
    anchor_b = _anchors(parent, trunk)
    order = trunk + np.argsort(
        anchor_b, kind="stable"
    )  # branches by where they hang; within one, parents before children
    place = np.empty(len(token), np.int64)
    place[np.concatenate([np.arange(trunk), order])] = np.arange(len(token))
    nodes = np.concatenate([np.arange(trunk), order])
    above = parent[nodes]
    reach = reach_of(np.where(above >= 0, place[above], -1)[None], depth[nodes][None], decoder.device)
    put = torch.from_numpy(token[nodes])[None].to(decoder.device)
    out = first.new_empty((len(token), first.shape[1]))
    out[:trunk] = first
    for begin, end, keys in _blocks(anchor_b[order - trunk], trunk, cells):
        over, known = _over(cache, keys), keys
        step = max(1, cells // (keys + end - begin))
        for at in range(begin, end, step):  # more than one step only below a trunk node with very many nodes
            stop = min(end, at + step)
            seen = torch.cat([torch.arange(keys), torch.arange(begin, stop)]).to(decoder.device)
            part = Reach(reach.enter[:, seen], reach.leave[:, seen], reach.depth[:, seen])
            kernel = decoder.model.config._attn_implementation
            states = decoder.masked(put[:, at:stop], part, known, kernel, over)
            out[torch.from_numpy(nodes[at:stop]).to(out.device)] = states[0]
            known += stop - at
    return out


def _trunk(decoder: Decoder, trunk: Window, cache: Any, cells: int) -> torch.Tensor:
    """Hidden states [P, D] of a chain, whose keys and values go into the cache."""
    put = torch.from_numpy(np.asarray(trunk.token))[None].to(decoder.device)
    if plain(decoder):
        return decoder.causal(put, cache)[0]
    size = put.shape[1]
    reach = reach_of(np.asarray(trunk.parent)[None], np.asarray(trunk.depth)[None], decoder.device)
    kernel, step = decoder.model.config._attn_implementation, max(1, cells // size)
    parts = []
    for at in range(0, size, step):
        stop = min(size, at + step)
        seen = Reach(reach.enter[:, :stop], reach.leave[:, :stop], reach.depth[:, :stop])
        parts.append(decoder.masked(put[:, at:stop], seen, at, kernel, cache)[0])
    return torch.cat(parts)


def _anchors(parent_n: np.ndarray, trunk: int) -> np.ndarray:
    """int64 [b]: of each node behind the trunk, the trunk node that it hangs off; -1 for none."""
    found = parent_n[trunk:].copy()
    while (deep := found >= trunk).any():
        found[deep] = parent_n[found[deep]]
    return found


def _blocks(anchor_b: np.ndarray, trunk: int, cells: int) -> Iterator[tuple[int, int, int]]:
    """(first place, place behind the last, places of the trunk that they look at) of each block, in places behind the trunk.

    Nodes below one trunk node stay together, since they look at each other; blocks have at most `cells` in their mask, but for
    those that are a single trunk node's.
    """
    starts = np.flatnonzero(np.diff(anchor_b, prepend=-2)).tolist()
    begin = 0
    for here, end in zip(starts, [*starts[1:], len(anchor_b)], strict=True):
        keys = int(anchor_b[here]) + 1
        if here > begin and (end - begin) * (keys + end - begin) > cells:
            yield trunk + begin, trunk + here, int(anchor_b[here - 1]) + 1
            begin = here
    yield trunk + begin, trunk + len(anchor_b), int(anchor_b[-1]) + 1


class _Behind(DynamicLayer):
    """Keys and values of the trunk's first places, and of the nodes behind them that were added so far. The trunk's are not
    copied: what a layer attends to is put together when it is asked for, and let go."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._trunk = (keys, values)
        self.keys, self.values = keys[..., :0, :], values[..., :0, :]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        mine = super().update(key_states, value_states)
        return tuple(torch.cat(pair, -2) for pair in zip(self._trunk, mine, strict=True))

    def get_seq_length(self) -> int:
        assert self.keys is not None
        return self._trunk[0].shape[-2] + self.keys.shape[-2]


def _over(cache: Any, places: int) -> Any:
    """A cache that begins with the first places of another one."""
    made: Any = DynamicCache()
    made.layers = [_Behind(layer.keys[..., :places, :], layer.values[..., :places, :]) for layer in cache.layers]
    return made
