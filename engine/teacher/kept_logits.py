"""Logits of contexts that are asked for more than once, made once: a beam search reads every row of a group, and so do its rows.

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

    def __init__(self, logits: Callable[[torch.Tensor], torch.Tensor], store: LogitsStore) -> None:
        """logits: [R, D] -> [R, V]."""
        self._logits, self._store = logits, store
        self._kept: torch.Tensor | None = None
        self._used = 0
        self._at_PN = np.full((0, 0), -1, np.int64)  # row of `_kept`; -1: none

    def __call__(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] of states that are asked for once: nothing is kept."""
        return self._logits(hidden_RD)

    def rows(self, group: Group, nodes_R: np.ndarray, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[R, V] of the contexts with these numbers in the group, a tensor of the caller's own."""
        passage_R = group.passage_of[nodes_R]
        local_R = nodes_R - group.first_node[passage_R]
        self._grow(len(group.passages), int(np.diff(group.first_node).max(initial=0)))
        at_R = self._at_PN[passage_R, local_R]
        known_R = at_R >= 0
        if self._kept is None or not known_R.any():
            made = self._made(hidden_ND, nodes_R)
            self._keep(group, passage_R, local_R, made)
            return made
        kept = self._kept
        index = torch.from_numpy(np.maximum(at_R, 0)).to(kept.device)
        out = kept.index_select(0, index)
        if not known_R.all():
            lacking = np.flatnonzero(~known_R)
            out[torch.from_numpy(lacking).to(kept.device)] = self._made(hidden_ND, nodes_R[lacking])
        return out

    def _made(self, hidden_ND: torch.Tensor, nodes: np.ndarray) -> torch.Tensor:
        return self(hidden_ND[torch.from_numpy(nodes).to(hidden_ND.device)])

    def _keep(self, group: Group, passage_R: np.ndarray, local_R: np.ndarray, made_RV: torch.Tensor) -> None:
        if self._kept is None:
            self._kept = self._store.room_for(int(group.evaluated.sum()), made_RV)
        count = min(len(made_RV), len(self._kept) - self._used)
        if count > 0:
            self._kept[self._used : self._used + count] = made_RV[:count]
            self._at_PN[passage_R[:count], local_R[:count]] = np.arange(self._used, self._used + count)
            self._used += count

    def _grow(self, passages: int, contexts: int) -> None:
        have = self._at_PN.shape
        if have[0] < passages or have[1] < contexts:
            grown = np.full((max(passages, have[0]), max(contexts, have[1])), -1, np.int64)
            grown[: have[0], : have[1]] = self._at_PN
            self._at_PN = grown
