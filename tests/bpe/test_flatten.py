"""A tokenizer as arrays: ranks, ranges, the trie, and the merge table made from them again."""

from __future__ import annotations

import bisect
import random

import numpy as np
import pytest

from engine.bpe.flatten import flatten, table_of
from engine.bpe.merges import MergeTable
from engine.bpe.utf8 import successor
from engine.kernels.hash_kernels import node_of
from tests.support.tiers import usual
from tests.support.vocabularies import ALL, EFFORT, merge_table, needs_shared, vocabulary, words


def as_bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(text), np.uint8)


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_tokens_in_byte_order_and_the_ranges_of_their_beginnings(name: str) -> None:
    vocab = vocabulary(name)
    flat = flatten(vocab, merge_table(name))
    pairs = sorted((p, i) for i, p in enumerate(vocab.token_bytes) if p)
    assert flat.ids_R.tolist() == [i for _, i in pairs]
    assert flat.rank_V[flat.ids_R].tolist() == list(range(len(pairs)))
    assert (flat.rank_V >= 0).sum() == len(pairs)
    pieces = [p for p, _ in pairs]
    assert flat.bytes_B.tobytes() == b"".join(pieces)
    assert np.diff(flat.start_R).tolist() == [len(p) for p in pieces]
    asked = [b"", *(w.encode()[: random.Random(w).randint(1, 6)] for w in words()[: 150 * EFFORT])]
    asked += [p[: len(p) // 2 + 1] for p in random.Random(name).sample(pieces, min(len(pieces), 150 * EFFORT))]
    inside = 0
    for z in asked:
        begin = bisect.bisect_right(pieces, z)
        end = bisect.bisect_left(pieces, successor(z)) if z else len(pieces)
        node = node_of(flat.node_key_H, flat.node_H, as_bytes(z), 0, len(z))
        if node < 0:
            assert begin == end and z not in pieces
            continue
        inside += 1
        assert (flat.lo_N[node], max(flat.hi_N[node], flat.lo_N[node])) == (begin, end), z
        made = merge_table(name)._reachable_ids.get(z, -1)
        assert flat.own_N[node] == made, z
    assert inside > 100


@needs_shared
@pytest.mark.parametrize("name", usual(["gpt2", "llama-2", "llama-3", "deepseek-llm-7b"]))
def test_the_merge_table_comes_back(name: str) -> None:
    want = merge_table(name)
    got: MergeTable = table_of(flatten(vocabulary(name), want), vocabulary(name))
    for field in ("left", "right", "birth", "late"):
        np.testing.assert_array_equal(getattr(got, field), getattr(want, field))
        assert getattr(got, field).dtype == getattr(want, field).dtype
    assert got.rank == want.rank
