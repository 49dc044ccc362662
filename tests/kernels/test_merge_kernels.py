"""The compiled functions give what their slow twins give, on real tokenizers and on random merge lists of every kind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.alignment.openness import Openness
from engine.bpe.flatten import flatten
from engine.bpe.merges import MergeTable, build_merge_table
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter
from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary
from engine.kernels.flat import FlatTokenizer
from engine.kernels.jit import compile_all, declared
from engine.kernels.merge_kernels import (
    decided,
    illegal_after,
    new_memo,
    pair_is_canonical,
    prefix_tree,
    valid_utf8_end,
)
from schemas.errors import TokenizerError
from tests.bpe.test_merges import adversarial_pairs, converted_tiktoken, loaded, ordinary, proper_merges, shuffled
from tests.support.tiers import usual
from tests.support.toys import SENTENCEPIECE, alphabet, strings, toy
from tests.support.vocabularies import (
    ALL,
    EFFORT,
    encoding_of_prefix,
    merge_table,
    needs_shared,
    splitter,
    vocabulary,
    words,
)


class Trees:
    """`prefix_tree`, `decided` and `illegal_after` with the arrays that they fill."""

    def __init__(self, flat: FlatTokenizer) -> None:
        self.flat = flat
        self.last, self.parent, self.first = (np.zeros(4096, np.int32) for _ in range(3))
        self.memo = new_memo(len(flat.rank_V), answers=1 << 12, listed=1 << 14)  # so small that it fills up
        self.bits = np.zeros(len(flat.rank_V) // 64 + 1, np.uint64)
        self.out = np.empty(len(flat.rank_V), np.int32)

    def tree(self, piece: bytes) -> tuple[list[int], list[int], list[int]]:
        text, n = np.frombuffer(bytearray(piece), np.uint8), len(piece)
        prefix_tree(self.flat, text, n, self.last, self.parent, self.first)
        return tuple(a[: n + 1].tolist() for a in (self.last, self.parent, self.first))

    def decided(self, piece: bytes) -> bool:
        self.tree(piece)
        text = np.frombuffer(bytearray(piece), np.uint8)
        return decided(self.flat, text, len(piece), self.last, self.first, self.memo)

    def illegal(self, a: int) -> list[int]:
        return self.out[: illegal_after(self.flat, a, self.bits, self.out)].tolist()


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compile_all()


def openness_of(vocab: Vocabulary, table: MergeTable) -> Openness:
    return Openness(Segmenter(vocab, table, build_splitter(vocab)))


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_pairs_and_illegal_successors(name: str) -> None:
    table = merge_table(name)
    trees = Trees(flatten(vocabulary(name), table))
    pairs = adversarial_pairs(table, random.Random(name), 3000 * EFFORT)
    broken = 0
    for a, b in pairs:
        want = table.pair_is_canonical(a, b)
        assert pair_is_canonical(trees.flat, a, b) == want, (a, b)
        broken += not want
    assert broken > 100 or not vocabulary(name).merges
    made = [i for i in ordinary(vocabulary(name)) if table.reachable(i)]
    for a in random.Random(name).sample(made, min(len(made), 60 * EFFORT)):
        assert trees.illegal(a) == table.illegal_after(a).tolist()


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_prefix_trees_and_decided_strings(name: str) -> None:
    vocab, table = vocabulary(name), merge_table(name)
    trees, openness = Trees(flatten(vocab, table)), Openness(Segmenter(vocab, table, splitter(name)))
    rng, counts = random.Random(name), [0, 0]
    sample = [w.encode() for w in rng.sample(words(), 200 * EFFORT)]
    sample += [
        bytes([0xE7, 0x8C, 0xAB, 0xF0, 0x9F, 0x98, 0x80, 0x61]),
        b" " * 40,
        b"aaaaaaaaaaaaaaaaaaaaab",
        b"\xff\xc3",
    ]
    for piece in sample:
        try:
            want = table.prefix_tree(piece)
        except TokenizerError:
            assert trees.tree(piece)[0][-1] == -1
            continue
        last, parent, first = trees.tree(piece)
        assert (last, parent) == want, piece
        for end in range(1, len(piece) + 1):
            assert first[end] == next(iter(encoding_of_prefix(want, end)), -1), (piece, end)
        whole = piece[: valid_utf8_prefix(piece)]
        if all(i >= 0 for i in trees.tree(whole)[0][1:]):
            counts[trees.decided(whole)] += 1
            assert trees.decided(whole) == openness.decided(whole), whole
    assert min(counts) > 10 or vocab.size < 600  # strings are longer than their tokens there


def check(vocab: Vocabulary, chars: bytes) -> None:
    table = build_merge_table(vocab)
    trees, openness = Trees(flatten(vocab, table)), openness_of(vocab, table)
    made = [i for i in ordinary(vocab) if table.reachable(i)]
    for a in made:
        assert trees.illegal(a) == table.illegal_after(a).tolist()
        for b in made:
            assert pair_is_canonical(trees.flat, a, b) == table.pair_is_canonical(a, b), (a, b)
    rng = random.Random(0)
    for _ in range(12):
        piece = bytes(rng.choice(chars) for _ in range(rng.randint(1, 9)))
        assert trees.tree(piece)[:2] == table.prefix_tree(piece)
        assert trees.decided(piece) == openness.decided(piece), piece


@settings(max_examples=60 * EFFORT, deadline=None, derandomize=True)
@given(st.one_of(proper_merges(), converted_tiktoken(), shuffled()), st.booleans())
def test_random_merge_lists(made: tuple[list[bytes], list[tuple[bytes, bytes]]], ignore_merges: bool) -> None:
    vocab = loaded(made[1], made[0], ignore_merges)
    check(vocab, bytes(sorted({b for p in vocab.token_bytes for b in p or b""})))


@pytest.mark.parametrize("style", SENTENCEPIECE)
def test_random_sentencepiece(style: str, tmp_path: Path) -> None:
    """Characters without a token are spelt in bytes, also inside a longer string and where the string ends in one."""
    rng = random.Random(style)
    for number in range(10 * EFFORT):
        chars = (*alphabet(rng), "é")
        vocab = toy(rng, tmp_path / str(number), style, chars, whole=False, merges=rng.randint(3, 12))
        table = build_merge_table(vocab)
        trees, openness = Trees(flatten(vocab, table)), openness_of(vocab, table)
        for text in rng.sample(strings(chars, 4), 60):
            piece = text.encode()
            for end in range(len(piece) + 1):
                assert trees.tree(piece[:end])[:2] == table.prefix_tree(piece[:end]), piece[:end]
            assert trees.decided(piece) == openness.decided(piece), piece


@settings(max_examples=400 * EFFORT, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=12), st.text(max_size=5).map(lambda t: t.encode("utf-8", "surrogatepass"))))
def test_where_utf8_ends(data: bytes) -> None:
    text = np.frombuffer(bytearray(data + b"\x80"), np.uint8)
    for end in range(len(data) + 1):
        assert valid_utf8_end(text, 0, end) == valid_utf8_prefix(data[:end]), data[:end]


def test_every_function_has_the_one_type_it_was_declared_for(tmp_path: Path) -> None:
    """A call with other types would compile another copy, seconds of silence. Runs the functions, then looks."""
    rng = random.Random(0)
    vocab = toy(rng, tmp_path / "t", "gpt2", ("a", "b", " "), whole=False, merges=5)
    check(vocab, b"ab ")
    asked: dict[Any, list[Any]] = {}
    for function, types in declared():
        asked.setdefault(function, []).append(types)
    for function, types in asked.items():
        others = [s for s in function.signatures if s not in types]
        assert not others, f"{function.__name__}: {[[str(t)[:60] for t in s] for s in others]}"
