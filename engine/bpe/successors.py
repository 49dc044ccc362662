"""Which tokens may not stand behind a token inside one pre-token, remembered.

In: a `FlatTokenizer` and token ids. Out: sorted int32 ids, as `MergeTable.illegal_after` gives them (lemma 3), in tens of
microseconds. A text asks for each token again and again, and for new ones without end: what is kept is bounded in bytes.
"""

from __future__ import annotations

import numpy as np

from engine.bpe.bounded_cache import BoundedCache
from engine.kernels.flat import FlatTokenizer
from engine.kernels.merge_kernels import illegal_after

_MOST_BYTES = 128_000_000


class Successors:
    """The illegal successors of one tokenizer's tokens. Not thread-safe.

    number_of_V: int32 [V], other numbers for the ids, rising with them, negative where an id does not matter; None: ids
    themselves. most_bytes: what may be kept.
    """

    def __init__(
        self, flat: FlatTokenizer, number_of_V: np.ndarray | None = None, *, most_bytes: int = _MOST_BYTES
    ) -> None:
        self.flat, self.number_of_V = flat, number_of_V
        size = len(flat.rank_V)
        self._bits, self._out = np.zeros(size // 64 + 1, np.uint64), np.empty(size, np.int32)
        self._known: BoundedCache[int, np.ndarray] = BoundedCache(most_bytes, weight=lambda ids: ids.nbytes + 100)

    def illegal_after(self, token: int) -> np.ndarray:
        """int32, rising: the tokens b for which `token b` is not canonical. `token` has to be one that merges make."""
        known = self._known.get(token)
        if known is None:
            ids = self._out[: illegal_after(self.flat, token, self._bits, self._out)]
            if self.number_of_V is not None:
                ids = self.number_of_V[ids]
                ids = ids[ids >= 0]
            known = self._known[token] = ids.copy()
        return known
