"""Logits of contexts that are asked for more than once, made once: a beam search reads every row of a group, pruning those with
something below them, and rows are made of all.

Letters: R contexts asked for at once, D hidden size, V rows of the lm_head, P passages, N contexts of a passage.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engine.teacher.group import Group

CPU_BYTES = 384 << 20  # what an actor may have beside the model leaves so much room (docs/decisions.md)
_GPU_SHARE = 0.25  # of the memory that is free when the first group comes


class LogitsStore:
    """Room for the logits of one group, used again for the next. most_bytes: None for what the device allows."""

    def __init__(self, most_bytes: int | None = None) -> None:
        self.most_bytes = most_bytes
        self._kept: torch.Tensor | None = None  # [rows, V]

    def room_for(self, rows: int, like_RV: torch.Tensor) -> torch.Tensor:
        """[at most rows, V], with what was in it before: pages that were touched once are not paid for again."""
        if self.most_bytes is None:
            self.most_bytes = CPU_BYTES
            if like_RV.device.type == "cuda":
                self.most_bytes = int(torch.cuda.mem_get_info(like_RV.device)[0] * _GPU_SHARE)
        width = like_RV.shape[1]
        rows = min(rows, self.most_bytes // (width * like_RV.element_size()))
        if self._kept is None or len(self._kept) < rows:
            self._kept = None  # before the new one is made
            self._kept = like_RV.new_empty((rows, width))
        return self._kept


class KeptLogits:
    """The logits of one group's contexts. Each is made when it is first asked for, and kept while there is room.

    The group may be numbered anew with longer trees, as long as its passages and their first contexts stay the same.
    """

    def __init__(self, logits: Callable[[torch.Tensor], torch.Tensor], store: LogitsStore, contexts: int) -> None:
        """logits: [R, D] -> [R, V]. contexts: of the group as it is now; room is made for so many rows at most."""
        self._logits, self._store, self._contexts = logits, store, contexts
        self._kept: torch.Tensor | None = None
        self._used = 0
        self._at_PN = np.full((0, 0), -1, np.int64)  # row of `_kept`; -1: none

    def __call__(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] of states that are asked for once: nothing is kept."""
        return self._logits(hidden_RD)

    def rows(self, group: Group, nodes_R: np.ndarray, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[R, V] of the contexts with these numbers in the group, a tensor of the caller's own."""
        passage_R = group.passage_of[nodes_R]
        hidden_RD = hidden_ND[torch.from_numpy(nodes_R).to(hidden_ND.device)]
        return self.of(passage_R, nodes_R - group.first_node[passage_R], hidden_RD)

    def of(self, passage_R: np.ndarray, local_R: np.ndarray, hidden_RD: torch.Tensor) -> torch.Tensor:
        """[R, V] of contexts by passage and by number within it, a tensor of the caller's own. A number below 0: of a context
        that nobody will ask for again."""
        self._grow(int(passage_R.max(initial=-1)) + 1, int(local_R.max(initial=-1)) + 1)
        at_R = np.where(local_R >= 0, self._at_PN[passage_R, local_R], -1)
        known_R = at_R >= 0
        if self._kept is None or not known_R.any():
            made = self(hidden_RD)
            self._keep(passage_R, local_R, made)
            return made
        kept = self._kept
        index = torch.from_numpy(np.maximum(at_R, 0)).to(kept.device)
        out = kept.index_select(0, index)
        if not known_R.all():
            lacking = torch.from_numpy(np.flatnonzero(~known_R)).to(kept.device)
            made = self(hidden_RD[lacking])
            self._keep(passage_R[~known_R], local_R[~known_R], made)
            out[lacking] = made
        return out

    def _keep(self, passage_R: np.ndarray, local_R: np.ndarray, made_RV: torch.Tensor) -> None:
        if self._kept is None:
            self._kept = self._store.room_for(self._contexts, made_RV)
        worth = np.flatnonzero(local_R >= 0)[: len(self._kept) - self._used]
        if len(worth):
            to = slice(self._used, self._used + len(worth))
            all_first = len(worth) == int(worth[-1]) + 1  # the usual case, without a copy
            self._kept[to] = made_RV[: len(worth)] if all_first else made_RV[torch.from_numpy(worth).to(made_RV.device)]
            self._at_PN[passage_R[worth], local_R[worth]] = np.arange(to.start, to.stop)
            self._used += len(worth)

    def _grow(self, passages: int, contexts: int) -> None:
        have = self._at_PN.shape
        if have[0] < passages or have[1] < contexts:
            grown = np.full((max(passages, have[0]), max(contexts, have[1])), -1, np.int64)
            grown[: have[0], : have[1]] = self._at_PN
            self._at_PN = grown
