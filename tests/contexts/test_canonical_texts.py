"""Masked by the rule, a toy teacher's probabilities are a distribution over texts (docs/design.md, lemma 11)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.bpe.utf8 import open_tail
from engine.bpe.vocabulary import Vocabulary
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext, State
from tests.contexts.test_canonical import skipped, toy_side, tree_of
from tests.support.pairs import path_of
from tests.support.toys import TableTeacher, strings
from tests.support.vocabularies import EFFORT


@pytest.mark.parametrize("seed", range(4))
def test_masked_probabilities_are_a_distribution_over_texts(seed: int, tmp_path: Path) -> None:
    """Walk all canonical strings of a masked toy teacher: each is the encoding of its own text, and the probabilities of
    the texts and of what is cut off at the longest length add up to 1."""
    rng = random.Random(100 + seed)
    vocab, chars, choose, make = toy_side(rng, tmp_path / "toy")
    table = TableTeacher(vocab, chars, seed, masked=False, sharp=0.5)
    ended = cut = 0.0
    texts: dict[str, float] = {}
    stack: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while stack:
        path, weight = stack.pop()
        if len(path) == 3 or open_tail(table.bytes_of(path)) != b"":
            cut += weight
            continue
        text = table.bytes_of(path)[len(vocab.prefix_bytes) :].decode()
        if not text and path:
            cut += weight  # the prefix space alone: its tree needs more text
            continue
        state = root_state(choose, make, vocab) if not path else state_of(choose, make, vocab, text, path)
        prob = torch.from_numpy(np.exp(table.logp(path)))[None].clone()
        choose.lists([state]).clear_(prob)
        prob /= prob.sum()
        for token in torch.nonzero(prob[0]).flatten().tolist():
            p = weight * float(prob[0, token])
            if token in vocab.specials:
                assert tuple(vocab.tokenizer.encode(text, add_special_tokens=False).ids) == path
                ended += p
                texts[text] = texts.get(text, 0.0) + p
            else:
                stack.append(((*path, token), p))
    assert abs(ended + cut - 1) < 1e-9 and len(texts) > 3


def root_state(choose: CanonicalNext, make: ContextBuilder, vocab: Vocabulary) -> State:
    tree, data = tree_of(vocab, make, "a")
    state = choose.states(tree, data)[tree.given]
    assert state is not None
    return state


def state_of(choose: CanonicalNext, make: ContextBuilder, vocab: Vocabulary, text: str, path: tuple[int, ...]) -> State:
    tree, data = tree_of(vocab, make, text)
    states = choose.states(tree, data)
    return next(s for n, s in enumerate(states) if s is not None and path_of(tree, n, vocab) == path)


@pytest.mark.parametrize("seed", range(4 * EFFORT))
def test_probability_of_a_beginning(seed: int, tmp_path: Path) -> None:
    """F(x), the probability that the masked toy teacher's text begins with x: by contexts of x and the tokens that reach
    past it, masked by the rule, against a walk over all canonical strings, found with the real tokenizer. And F(x) is the
    sum of F(x + character) and of the probability that the text is x."""
    rng = random.Random(200 + seed)
    vocab, chars, choose, make = toy_side(rng, tmp_path / "toy", ascii_only=True)
    table = TableTeacher(vocab, chars, seed, masked=False, sharp=0.7)
    table.probes = strings(chars, 3)
    shift = len(vocab.prefix_bytes)
    begins, whole = walk_of_canonical_strings(table, shift + 3)
    checked = 0
    for x in [chars[0], *("".join(rng.choices(chars, k=2)) for _ in range(4))]:
        if skipped(vocab, vocab.prefix_bytes + x.encode()):
            continue
        got = {y: probability_of_beginning(choose, make, table, y) for y in (x, *(x + c for c in chars))}
        for y, value in got.items():
            assert value == pytest.approx(begins.get(vocab.prefix_bytes + y.encode(), 0.0), abs=1e-12), (seed, y)
        ends = whole.get(vocab.prefix_bytes + x.encode(), 0.0)
        assert got[x] == pytest.approx(ends + sum(got[x + c] for c in chars), abs=1e-12), (seed, x)
        checked += got[x] > 0
    assert checked


def walk_of_canonical_strings(table: TableTeacher, longest: int) -> tuple[dict[bytes, float], dict[bytes, float]]:
    """(bytes -> probability that the text begins so, bytes -> probability that it is this text), up to `longest` bytes."""
    begins: dict[bytes, float] = {}
    whole: dict[bytes, float] = {}
    stack: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while stack:
        path, weight = stack.pop()
        before, legal = table.bytes_of(path), table.followers(path)
        ends = table._encode(before) == list(path) and (bool(path) or not table.vocabulary.encode("")[0])
        legal = [*legal, *table.vocabulary.specials] if ends else legal
        prob = np.exp(table.logp(path))
        total = prob[legal].sum()
        for token in legal:
            p = weight * float(prob[token] / total)
            if token in table.vocabulary.specials:
                whole[before] = whole.get(before, 0.0) + p
                continue
            after = table.bytes_of((*path, token))
            for size in range(len(before) + 1, min(len(after), longest) + 1):
                begins[after[:size]] = begins.get(after[:size], 0.0) + p
            if len(after) <= longest:
                stack.append(((*path, token), p))
    return begins, whole


def probability_of_beginning(choose: CanonicalNext, make: ContextBuilder, table: TableTeacher, x: str) -> float:
    """Weights of the contexts that end with x, and of all leaves from before its end to behind it."""
    vocab = table.vocabulary
    tree, data = tree_of(vocab, make, x)
    token, parent, end = (np.asarray(f).tolist() for f in (tree.token, tree.parent, tree.end))
    nodes = range(tree.given, len(token))
    states = [s for s in choose.states(tree, data) if s is not None]
    prob = torch.from_numpy(np.exp(np.array([table.logp(path_of(tree, n, vocab)) for n in nodes])))
    choose.lists(states).clear_(prob)
    prob = (prob / prob.sum(1, keepdim=True)).numpy()
    weight, total = {tree.given: 1.0}, 0.0
    for row, node in enumerate(nodes):
        if node != tree.given:
            weight[node] = weight[parent[node]] * float(prob[parent[node] - tree.given, token[node]])
        if end[node] == len(data):
            total += weight[node]
            continue
        rest = data[end[node] :]
        past = [t for t in table.usable if (p := vocab.token_bytes[t] or b"").startswith(rest) and len(p) > len(rest)]
        total += weight[node] * float(prob[row, past].sum())
    return total
