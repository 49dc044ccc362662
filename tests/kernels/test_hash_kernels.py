"""Hash tables: what is found is what was put there last."""

from __future__ import annotations

import numpy as np

from engine.kernels.hash_kernels import find, put, put_all


def test_hash_tables_hold_what_was_put_there_last() -> None:
    rng = np.random.default_rng(0)
    keys, values = np.full(64, -1, np.int64), np.zeros(64, np.int32)
    new = rng.integers(0, 1 << 40, 32)
    put_all(keys, values, new, np.arange(32, dtype=np.int32))
    put(keys, values, int(new[3]), np.int32(77))
    assert [find(keys, values, int(k)) for k in new] == [77 if i == 3 else i for i in range(32)]
    assert find(keys, values, 5) == -1
