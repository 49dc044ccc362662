"""Illegal successors are those of the merge table, also when what is kept is forgotten, and under other numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.bpe.flatten import flatten
from engine.bpe.successors import Successors
from tests.support.vocabularies import EFFORT, merge_table, needs_shared, vocabulary


@needs_shared
@pytest.mark.parametrize("name", ["gpt2", "llama-2", "smollm2"])
def test_illegal_successors(name: str) -> None:
    table, flat = merge_table(name), flatten(vocabulary(name), merge_table(name))
    rng = random.Random(name)
    tokens = rng.choices(flat.made_Q[rng.sample(range(len(flat.made_Q)), 40)].tolist(), k=100 * EFFORT)
    small = Successors(flat, most_bytes=30_000)
    number = np.full(len(flat.rank_V), -1, np.int32)
    number[::3] = np.arange(len(number[::3]))
    renumbered = Successors(flat, number)
    for token in tokens:
        want = table.illegal_after(token)
        np.testing.assert_array_equal(small.illegal_after(token), want)
        np.testing.assert_array_equal(renumbered.illegal_after(token), want[want % 3 == 0] // 3)
    assert small._known.cleared and small._known.size <= 30_000
