"""The context tree in special cases: whole words of `ignore_merges`, white space, the beginning of a text, monstrous words."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.bpe.segmenter import build_segmenter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.contexts.builder import ContextBuilder
from engine.contexts.tree import NO_NODE
from schemas.errors import BadDocument
from tests.contexts.test_builder import path_to
from tests.support.vocabularies import at_byte, builder, byte_level, needs_shared, save, vocabulary


def small(to: Path, **changes: object) -> tuple[Vocabulary, ContextBuilder]:
    merges = [(b"a", b"b"), (b"ab", b"c"), (b" ", b" ")]
    pattern = r" ?\p{L}+|\s+(?!\S)|\s+|."
    spec = byte_level(merges, vocab=[b"\n", b"abab"], pattern=pattern, ignore_merges=True)
    vocab = load_vocabulary(save({**spec, **changes}, to))
    return vocab, ContextBuilder(build_segmenter(vocab))


def test_whole_words_of_ignore_merges_are_second_contexts(tmp_path: Path) -> None:
    """`abab` is one token as a whole word and two where the word goes on: both are contexts at its end."""
    vocab, make = small(tmp_path)
    whole, ab = vocab.id_of_bytes[b"abab"], vocab.id_of_bytes[b"ab"]
    assert vocab.encode("abab")[0] == [whole] and vocab.encode("ababc")[0] == [ab, vocab.id_of_bytes[b"abc"]]
    for text in ("abab", "ababab", "abab\n"):
        tree = make.build(text.encode(), vocab.encode(text)[0], [4], (0,))
        assert sorted(path_to(tree, n) for n in at_byte(tree, 4)) == sorted([[whole], [ab, ab]])
    tree = make.build(b"abab\n", vocab.encode("abab\n")[0], [2], (0,))
    assert [path_to(tree, n) for n in at_byte(tree, 2)] == [[ab]]


def test_contexts_in_runs_of_whitespace(tmp_path: Path) -> None:
    """After `ab  `: the last space joins a word that follows, and a run of spaces is one token where more space does."""
    vocab, make = small(tmp_path)
    ab, space, two, abc = (vocab.id_of_bytes[piece] for piece in (b"ab", b" ", b"  ", b"abc"))
    assert vocab.encode("ab  abc")[0] == [ab, space, space, abc] and vocab.encode("ab   abc")[0] == [
        ab,
        two,
        space,
        abc,
    ]
    for text in ("ab  abc", "ab   abc"):
        tree = make.build(text.encode(), vocab.encode(text)[0], [3, 4], (0,))
        assert [path_to(tree, n) for n in at_byte(tree, 3)] == [[ab, space]]
        assert sorted(path_to(tree, n) for n in at_byte(tree, 4)) == sorted([[ab, space, space], [ab, two]])


def test_without_bos_the_first_token_is_given(tmp_path: Path) -> None:
    vocab, make = small(tmp_path)
    ids = vocab.encode("abab\nab")[0]
    tree = make.build(b"abab\nab", ids, [0, 2, 4, 5, 6, 7], ())
    assert tree.given == 0 and tree.token[0] == ids[0] and tree.parent[0] == NO_NODE
    assert tree.places.tolist() == [4, 5, 6, 7]  # before the end of the given token there is nothing to ask
    for place in tree.places.tolist():
        for node in at_byte(tree, place):
            while tree.parent[node] != NO_NODE:
                node = tree.parent[node]
            assert node == 0
    with pytest.raises(BadDocument) as caught:
        make.build(b"ab", vocab.encode("ab")[0], [2], ())
    assert caught.value.reason == "too_short" and "1 teacher token" in caught.value.detail
    assert make.build(b"ab", vocab.encode("ab")[0], [2], (0,)).trunk.tolist() == [1]


def test_several_given_tokens(tmp_path: Path) -> None:
    vocab, make = small(tmp_path)
    tree = make.build(b"ab", vocab.encode("ab")[0], [0, 1, 2], (1, 2, 3))
    assert (
        tree.given == 2 and tree.token[:3].tolist() == [1, 2, 3] and not tree.end[:3].any() and at_byte(tree, 0) == [2]
    )
    assert [tree.depth[n] for n in tree.trunk] == [3]


@needs_shared
def test_without_byte_tokens_nothing_ends_inside_a_character() -> None:
    """A teacher of whole characters only: half a character has no tokens, so no context (and no token -1)."""
    vocab, make = vocabulary("babyllama-tok105"), builder("babyllama-tok105")
    text = next(f"a{piece.decode()}b" for piece in vocab.token_bytes if piece and len(piece) > 1 and piece[0] >= 0xC2)
    data = b" " + text.encode()
    tree = make.build(data, vocab.encode(text)[0], list(range(len(data) + 1)), (1,))
    assert min(tree.token) >= 0 and len(tree.token) == 1 + len(tree.trunk)
    for place in range(1, len(data) + 1):
        inside = place < len(data) and data[place] & 0xC0 == 0x80
        assert len(at_byte(tree, place)) == (0 if inside else 1)


@needs_shared
def test_monstrous_pre_tokens_are_taken() -> None:
    """A run of one kind is never too long, nor are white space and signs of several kinds, quotes among them."""
    vocab, make = vocabulary("gpt2"), builder("gpt2")
    for text in ("a" * 6000, "\t \n" * 2000, "'=" * 3000):
        make.build(text.encode(), vocab.encode(text)[0], [5999], (50256,))
