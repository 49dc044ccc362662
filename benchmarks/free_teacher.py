"""A teacher that costs nothing: a bigram model of some text over a real vocabulary, behind the teacher's interface.

Its hidden state is the number of the context's last token, its lm_head a table row: log(0.9 bigram + 0.1 unigram). So trees,
windows, searches and all arithmetic see distributions with the peaks of real text, and the seconds that remain are the engine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from engine.bpe.vocabulary import Vocabulary
from engine.teacher.incremental import IncrementalTrees
from engine.teacher.packing import Window

BIGRAM = 0.9
UNSEEN = 1e-3
"""Count of a token that the text does not have, for the unigram's part."""


class FreeTeacher:
    """Takes the place of `engine.teacher.Teacher` where documents are scored. No model, no cache, no self-check."""

    attention, why, reuse = "tree", "", True
    device = torch.device("cpu")

    def __init__(self, vocabulary: Vocabulary, texts: Iterable[str], *, max_length: int = 4096) -> None:
        self.max_length, self.vocab_rows = max_length, vocabulary.size
        self.end_ids = () if vocabulary.eos_id is None else (vocabulary.eos_id,)
        pairs = [_pairs(vocabulary, text) for text in texts]
        key, count = np.unique(np.concatenate(pairs), return_counts=True)
        before, token = key // vocabulary.size, key % vocabulary.size
        unigram = np.full(vocabulary.size, UNSEEN)
        np.add.at(unigram, token, count)
        unigram /= unigram.sum()
        seen = np.bincount(before, count, minlength=vocabulary.size)
        logp = np.log((1 - BIGRAM) * unigram[token] + BIGRAM * count / seen[before])
        self._start = torch.from_numpy(np.searchsorted(before, np.arange(vocabulary.size + 1)))
        self._token, self._logp = torch.from_numpy(token), torch.from_numpy(logp.astype(np.float32))
        self._base_V = torch.from_numpy(np.log((1 - BIGRAM) * unigram).astype(np.float32))

    def hidden(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """[n, 1] of every window: its tokens."""
        return [torch.from_numpy(np.asarray(window.token, np.float32)[:, None]) for window in windows]

    def logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        """float32 [C, V]."""
        last = hidden_CD[:, 0].long()
        out = self._base_V.repeat(len(last), 1)
        sizes = self._start[last + 1] - self._start[last]
        row = torch.repeat_interleave(sizes)
        at = torch.arange(len(row)) + (self._start[last] - (torch.cumsum(sizes, 0) - sizes))[row]
        out[row, self._token[at]] = self._logp[at]
        return out

    def open_trees(self, windows: Sequence[Window]) -> IncrementalTrees:
        """Trees that take more nodes."""
        return _FreeTrees(self, windows)

    def with_less_memory(self, batch_tokens: int, *, keep: bool) -> FreeTeacher:
        """It has nothing to spare."""
        return self


class _FreeTrees(IncrementalTrees):
    def __init__(self, teacher: FreeTeacher, windows: Sequence[Window]) -> None:
        self._teacher, self._sizes = teacher, [len(window.token) for window in windows]
        self.hidden = teacher.hidden(windows)

    @property
    def sizes(self) -> list[int]:
        return list(self._sizes)

    def add(self, more: Sequence[Window]) -> list[torch.Tensor]:
        self._sizes = [size + len(window.token) for size, window in zip(self._sizes, more, strict=True)]
        self.hidden = self._teacher.hidden(more)
        return self.hidden


def _pairs(vocabulary: Vocabulary, text: str) -> np.ndarray:
    """Keys of the pairs of neighbouring tokens; behind the last one stands the end."""
    ids = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
    end = [] if vocabulary.eos_id is None else [vocabulary.eos_id]
    line = np.array([*vocabulary.bos_ids, *ids, *end], np.int64)
    return line[:-1] * vocabulary.size + line[1:]
