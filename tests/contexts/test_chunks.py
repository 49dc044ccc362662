"""Stages 4a, 4b: trees made of remembered chunks are those of the slow twin, and what is remembered is little."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter
from engine.contexts.builder import ContextBuilder
from engine.contexts.tree import ContextTree
from schemas.errors import BadDocument, IdentityError
from tests.contexts.test_builder import FRAGMENTS, boundaries, documents, encodable, given_token
from tests.support.contexts_twin import TwinBuilder, TwinTree
from tests.support.tiers import usual
from tests.support.vocabularies import (
    ALL,
    EFFORT,
    QWEN_SUBSETS,
    at_byte,
    builder,
    fringe_at,
    needs_shared,
    texts,
    vocabulary,
)

SLOW = (*QWEN_SUBSETS, "qwen2.5", "o200k_base", "deepseek-llm-7b")  # for the twin


def contents(tree: ContextTree | TwinTree, places: dict[int, list[int]], fringe: dict[int, list[tuple[int, int]]]):
    """What a tree says, whatever its numbering: all contexts, those of each byte and its fringe, as (token, end) paths."""
    paths: list[tuple[tuple[int, int], ...]] = []
    for token, parent, end in zip(*(np.asarray(x).tolist() for x in (tree.token, tree.parent, tree.end)), strict=True):
        paths.append((*paths[parent], (token, end)) if parent >= 0 else ((token, end),))
    assert np.asarray(tree.depth).tolist() == [len(path) - 1 for path in paths]
    at = {place: sorted(paths[n] for n in nodes) for place, nodes in places.items()}
    hanging = {place: sorted((paths[n], t) for n, t in entries) for place, entries in fringe.items()}
    return sorted(paths), at, hanging, [paths[n] for n in tree.trunk], paths[tree.given]


def built(make: ContextBuilder | TwinBuilder, data: bytes, ids: list[int], wanted: list[int], bos: tuple[int, ...]):
    """The contents, or what is raised."""
    try:
        tree = make.build(data, ids, wanted, bos)
    except BadDocument as error:
        return error.reason, error.detail
    if isinstance(tree, TwinTree):
        return contents(tree, tree.at_byte, tree.fringe)
    assert all(
        array.dtype == np.int32 for name in ContextTree.__slots__ if name != "given" for array in [getattr(tree, name)]
    )
    places = tree.places.tolist()
    return contents(tree, {p: at_byte(tree, p) for p in places}, {p: fringe_at(tree, p) for p in places})


def check_twin(name: str, samples: Iterator[tuple[str, list[int], bytes]]) -> None:
    vocab, fast, rng = vocabulary(name), builder(name), random.Random(name)
    slow = TwinBuilder(vocab, fast.merges, fast.splitter)
    student = vocabulary("llama-2" if name == "gpt2" else "gpt2")
    for text, ids, data in samples:
        ends, shift = encodable(student, text), len(vocab.prefix_bytes)
        every = range(len(data) + 1)
        choices = [list(every), sorted(rng.sample(every, rng.randrange(len(every) + 1))), rng.sample(every, 1), []]
        if ends is not None:
            own = {b - len(student.prefix_bytes) for b in boundaries(student, ends)}
            choices.append([b + shift for b in sorted(own) if b >= 0])
        for wanted in choices:
            for bos in (given_token(vocab), ()):
                theirs = built(slow, data, ids, wanted, bos)
                assert built(fast, data, ids, wanted, bos) == theirs, (text, wanted, bos)
                if not isinstance(theirs[0], str):
                    bare = fast.build(data, np.array(ids), np.array(wanted, int), bos, fringe=False)
                    assert len(bare.fringe_node) == len(bare.fringe_token) == 0 and not bare.fringe_start.any()
                    assert contents(bare, {p: at_byte(bare, p) for p in bare.places.tolist()}, {})[1] == theirs[1]


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_trees_are_those_of_the_slow_twin(name: str) -> None:
    """Fragments of every kind and pieces of texts of 81 languages; wanted: all bytes, some, one, none, a student's."""
    check_twin(name, documents(name, (2 if name in SLOW else 4) * EFFORT))


@needs_shared
@pytest.mark.parametrize("name", usual(["gpt2", "qwen2.5-subset-8000", "qwen2.5", "o200k_base", "llama-2"]))
def test_long_texts_are_those_of_the_slow_twin(name: str) -> None:
    """Whole paragraphs, so that chunks follow each other in every way: prose, mathematics, LaTeX, whitespace, emoji."""
    rng = random.Random(name)
    prose = [t for t in texts() if t.isascii() and len(t) > 200]
    mixes = ["".join(rng.choices([*FRAGMENTS, " a", " word", "\r\n\r\n", "    "], k=120)) for _ in range(EFFORT)]

    def samples() -> Iterator[tuple[str, list[int], bytes]]:
        for text in [t[:500] for t in rng.sample(prose, 2 * EFFORT)] + mixes:
            ids = encodable(vocabulary(name), text)
            if ids is not None:
                yield text, ids, vocabulary(name).prefix_bytes + text.encode()

    check_twin(name, samples())


@needs_shared
@pytest.mark.parametrize("name", usual(["gpt2", "smollm2", "qwen2.5", "llama-2", "llama-3", "o200k_base"]))
def test_prose_falls_into_small_chunks_that_come_again(name: str) -> None:
    """What makes trees cheap: a chunk is about a word, and a second pass learns nothing."""
    vocab = vocabulary(name)
    make = ContextBuilder(builder(name).segmenter)
    text = next(t for t in texts() if "Once upon a time" in t and t.isascii() and len(t) > 500)
    data, ids = vocab.prefix_bytes + text.encode(), vocab.encode(text)[0]
    learnt = []
    for _ in range(2):
        make.build(data, ids, range(len(data) + 1), given_token(vocab))
        learnt.append(len(make._stores[True].number))
    known = make._stores[True].number
    assert learnt[0] == learnt[1] < len(text.split()) and max(map(len, known)) <= 2 * 16


@needs_shared
def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit everything is forgotten, and trees stay the same."""
    vocab, known = vocabulary("gpt2"), builder("gpt2")
    make = ContextBuilder(Segmenter(vocab, known.merges, build_splitter(vocab)))
    monkeypatch.setattr("engine.contexts.builder._MOST_REMEMBERED", 20_000)
    sizes = []
    for text, ids, data in documents("gpt2", 60):
        wanted = list(range(len(data) + 1))
        assert built(make, data, ids, wanted, (0,)) == built(known, data, ids, wanted, (0,)), text
        sizes.append(make._stores[True].size)
    assert max(sizes) < 60_000 and sum(b < a for a, b in zip(sizes, sizes[1:], strict=False)) > 2


@needs_shared
def test_ids_that_are_not_the_texts_are_refused() -> None:
    vocab, make = vocabulary("gpt2"), builder("gpt2")
    ids = vocab.encode("one two three")[0]
    other = vocab.encode("one tww three")[0]
    with pytest.raises(IdentityError, match="contexts: "):
        make.build(b"one two three", [*ids[:1], *ids], [3], (0,))
    make.build(b"one two three", ids, [3, 13], (0,))
    with pytest.raises(IdentityError, match="other tokens here than before"):
        make.build(b"one two three", other, [3, 13], (0,))
    with pytest.raises(ValueError, match="must rise"):
        make.build(b"one two three", ids, [3, 3], (0,))
