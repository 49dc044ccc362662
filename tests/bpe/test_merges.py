"""The pair rule, the illegal successors, prefix trees and reachability, held against the real BPE."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bpe.merges import MergeTable, build_merge_table
from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from schemas.errors import TokenizerError
from tests.support.tiers import usual
from tests.support.vocabularies import (
    ALL,
    EFFORT,
    byte_level,
    encoding_of_prefix,
    merge_table,
    needs_shared,
    save,
    vocabulary,
    words,
)

PAIRS = 3_250 * EFFORT  # per vocabulary; 18 of them


def ordinary(vocab: Vocabulary) -> list[int]:
    """Tokens of the BPE model itself: no specials, no added text, no byte tokens."""
    left_out = {*vocab.added_only, *vocab.fallback_ids, *vocab.specials}
    return [i for i, piece in enumerate(vocab.token_bytes) if piece is not None and i not in left_out]


def real(vocab: Vocabulary, data: bytes) -> list[int]:
    """What the library's BPE makes of a pre-token's part (merges only)."""
    return vocab.bpe(data, whole=False)


def adversarial_pairs(table: MergeTable, rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Pairs at which a wrong rule would show: halves of tokens, parts of merges beside tokens that begin or end like
    the other part, and illegal successors. Random pairs nearly never interact."""
    vocab = table.vocabulary
    usable = [i for i in ordinary(vocab) if table.reachable(i)]
    by_bytes = vocab.id_of_bytes
    ends_with: dict[int, list[int]] = {}
    begins_with: dict[int, list[int]] = {}
    for token in usable:
        if table.left[token] >= 0:
            begins_with.setdefault(int(table.left[token]), []).append(token)
            ends_with.setdefault(int(table.right[token]), []).append(token)
    late = [m for m in vocab.merges if table.late[m[2]]]
    out: list[tuple[int, int]] = []
    while len(out) < count:
        way = rng.randrange(5)
        if way == 0:
            out.append((rng.choice(usable), rng.choice(usable)))
        elif way == 1:  # a token cut in two
            piece = vocab.token_bytes[rng.choice(usable)] or b""
            at = rng.randrange(len(piece))
            a, b = by_bytes.get(piece[:at]), by_bytes.get(piece[at:])
            if a is not None and b is not None:
                out.append((a, b))
        elif vocab.merges and (way < 4 or not late):  # the two parts of a merge inside larger tokens
            a, b, _ = rng.choice(late) if late and rng.random() < 0.5 else rng.choice(vocab.merges)
            a = rng.choice(ends_with.get(a, [a]))
            b = rng.choice(begins_with.get(b, [b]))
            out.append((a, b))
        elif late:
            made = rng.choice(late)[2]
            other = rng.choice(usable)
            out.append((made, other) if rng.random() < 0.5 else (other, made))
        elif not vocab.merges:
            out.append((rng.choice(usable), rng.choice(usable)))
    skip = set(vocab.fallback_ids) | set(vocab.specials)
    return [(a, b) for a, b in out if table.reachable(a) and table.reachable(b) and not {a, b} & skip]


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_pairs_are_canonical_exactly_when_the_real_bpe_keeps_them(name: str) -> None:
    vocab, table = vocabulary(name), merge_table(name)
    pairs = adversarial_pairs(table, random.Random(name), PAIRS)
    assert len(pairs) > 0.7 * PAIRS
    kept, wrong = 0, []
    for a, b in pairs:
        data = (vocab.token_bytes[a] or b"") + (vocab.token_bytes[b] or b"")
        truth = real(vocab, data) == [a, b]
        kept += truth
        if table.pair_is_canonical(a, b) != truth:
            wrong.append((a, b, vocab.token_bytes[a], vocab.token_bytes[b]))
    assert not wrong, f"{len(wrong)} of {len(pairs)}: {wrong[:5]}"
    assert kept > 100 and (kept < len(pairs) - 100 or not vocab.merges)


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_illegal_after_is_the_pair_rule(name: str) -> None:
    vocab, table = vocabulary(name), merge_table(name)
    rng = random.Random(name)
    usable = [i for i in ordinary(vocab) if table.reachable(i)]
    short = [i for i in usable if len(vocab.token_bytes[i] or b"") <= 2]
    illegal_pairs = 0
    for a in rng.sample(usable, min(10 * EFFORT, len(usable))) + rng.sample(short, min(5 * EFFORT, len(short))):
        illegal = table.illegal_after(a).tolist()
        illegal_pairs += len(illegal)
        assert illegal == sorted(set(illegal)) and all(table.reachable(b) for b in illegal)
        others = rng.sample(usable, min(300, len(usable)))
        for b in {*others, *rng.sample(illegal, min(100, len(illegal)))}:
            assert (b in set(illegal)) != table.pair_is_canonical(a, b), (a, b)
    assert illegal_pairs or not vocab.merges


@needs_shared
@pytest.mark.parametrize("name", usual([name for name in ALL if name != "babyllama-tok105"]))
def test_prefix_trees_hold_the_encoding_of_every_prefix(name: str) -> None:
    vocab, table = vocabulary(name), merge_table(name)
    known = {bytes([b]) for b in range(256)} & set(vocab.id_of_bytes)
    sample = [w.encode() for w in random.Random(name).sample(words(), 125 * EFFORT)]
    sample += [bytes([0xE7, 0x8C, 0xAB, 0xF0, 0x9F, 0x98, 0x80, 0x61]), b" " * 40, b"aaaaaaaaaaaaaaaaaaaaab"]
    for piece in sample:
        if any(bytes([b]) not in known for b in piece) and vocab.kind == "bytelevel":
            continue
        tree = table.prefix_tree(piece)
        assert len(tree[0]) == len(tree[1]) == len(piece) + 1
        for end in range(len(piece) + 1):
            assert encoding_of_prefix(tree, end) == real(vocab, piece[:end]), (piece, end)


@needs_shared
def test_without_byte_tokens_prefixes_of_known_characters_are_right() -> None:
    vocab, table = vocabulary("babyllama-tok105"), merge_table("babyllama-tok105")
    piece = b" Once upon a time, there was a big dog."
    tree = table.prefix_tree(piece)
    for end in range(1, len(piece) + 1):
        assert encoding_of_prefix(tree, end) == real(vocab, piece[:end])


@needs_shared
def test_unreachable_tokens_of_llama_3_are_those_that_do_not_encode_to_themselves() -> None:
    vocab, table = vocabulary("llama-3"), merge_table("llama-3")
    ours = {i for i in ordinary(vocab) if not table.reachable(i)}
    truth = {i for i in ordinary(vocab) if real(vocab, vocab.token_bytes[i] or b"") != [i]}
    assert ours == truth and len(truth) == 588
    assert all(vocab.bpe(vocab.token_bytes[i] or b"") == [i] for i in ours)  # `ignore_merges` makes them as whole words


@needs_shared
@pytest.mark.parametrize("name", usual([name for name in ALL if name != "llama-3"]))
def test_reachable_tokens_encode_to_themselves(name: str) -> None:
    vocab, table = vocabulary(name), merge_table(name)
    everything = ordinary(vocab)
    for token in random.Random(name).sample(everything, min(len(everything), 1250 * EFFORT)):
        piece = vocab.token_bytes[token] or b""
        assert table.reachable(token) == (real(vocab, piece) == [token]), (token, piece)


# ==== random small vocabularies


@st.composite
def proper_merges(draw: st.DrawFn) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """A BPE training run's kind of list: each merge joins tokens that exist by then."""
    tokens = [bytes([b]) for b in draw(st.sampled_from([b"ab", b"abc", b"a"]))]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(draw(st.integers(1, 12))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if pair not in merges and len(pair[0] + pair[1]) <= 8:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    return [], merges


@st.composite
def converted_tiktoken(draw: st.DrawFn) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """A list of tokens in rank order, and for each all its splits into two tokens, as converted tiktoken files have."""
    chars = draw(st.sampled_from([b"ab", b"abc"]))
    trained = draw(proper_merges())[1] if draw(st.booleans()) else []
    tokens = [bytes([b]) for b in chars] + list(dict.fromkeys(a + b for a, b in trained))
    extra = st.lists(st.sampled_from(list(chars)), min_size=2, max_size=5).map(bytes)
    tokens += [t for t in draw(st.lists(extra, max_size=4)) if t not in tokens]
    tokens = list(dict.fromkeys(tokens))
    rank = {t: i for i, t in enumerate(tokens)}
    merges = []
    for token in tokens:
        splits = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in rank and token[i:] in rank]
        merges += sorted(splits, key=lambda s: (rank[s[0]], rank[s[1]]))
    return tokens, merges


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """A list in which a token may come before its parts."""
    vocab, merges = draw(st.one_of(proper_merges(), converted_tiktoken()))
    return [b"a", b"b", *vocab], draw(st.permutations(merges))


def check(vocab: Vocabulary, longest: int, alphabet: bytes) -> None:
    table = build_merge_table(vocab)
    usable = [i for i in ordinary(vocab) if table.reachable(i)]
    for token in ordinary(vocab):
        piece = vocab.token_bytes[token] or b""
        assert table.reachable(token) == (real(vocab, piece) == [token]), piece
    for a in usable:
        illegal = set(table.illegal_after(a).tolist())
        for b in usable:
            data = (vocab.token_bytes[a] or b"") + (vocab.token_bytes[b] or b"")
            truth = real(vocab, data) == [a, b]
            shown = (vocab.token_bytes[a], vocab.token_bytes[b])
            assert table.pair_is_canonical(a, b) == truth, shown
            assert (b in illegal) != truth, shown
    rng = random.Random(0)
    for _ in range(12):
        piece = bytes(rng.choice(alphabet) for _ in range(longest))
        tree = table.prefix_tree(piece)
        for end in range(len(piece) + 1):
            assert encoding_of_prefix(tree, end) == real(vocab, piece[:end]), piece[:end]


def loaded(merges: list[tuple[bytes, bytes]], vocab: list[bytes], ignore_merges: bool) -> Vocabulary:
    with tempfile.TemporaryDirectory() as folder:
        return load_vocabulary(save(byte_level(merges, vocab=vocab, ignore_merges=ignore_merges), Path(folder)))


@settings(max_examples=30 * EFFORT, deadline=None, derandomize=True)
@given(proper_merges(), st.booleans())
def test_random_merge_lists(made: tuple[list[bytes], list[tuple[bytes, bytes]]], ignore_merges: bool) -> None:
    vocab = loaded(made[1], made[0], ignore_merges)
    check(vocab, 14, bytes({b for pair in made[1] for b in pair[0] + pair[1]}) or b"a")


@settings(max_examples=30 * EFFORT, deadline=None, derandomize=True)
@given(converted_tiktoken(), st.booleans())
def test_random_converted_tiktoken_lists(
    made: tuple[list[bytes], list[tuple[bytes, bytes]]], ignore_merges: bool
) -> None:
    check(loaded(made[1], made[0], ignore_merges), 14, b"".join(t for t in made[0] if len(t) == 1))


@settings(max_examples=30 * EFFORT, deadline=None, derandomize=True)
@given(shuffled(), st.booleans())
def test_lists_in_any_order(made: tuple[list[bytes], list[tuple[bytes, bytes]]], ignore_merges: bool) -> None:
    check(loaded(made[1], made[0], ignore_merges), 14, b"abc" if any(b"c" in a + b for a, b in made[1]) else b"ab")


def test_late_merges_finish_on_the_left_first() -> None:
    """Merges (ab, a) before (a, b): in `abab` the first `ab` takes the next `a` before the second `ab` is made."""
    vocab = loaded([(b"ab", b"a"), (b"a", b"b")], [], False)
    table, ids = build_merge_table(vocab), vocab.id_of_bytes
    assert table.late[ids[b"aba"]] and not table.late[ids[b"ab"]]
    assert real(vocab, b"abab") == [ids[b"aba"], ids[b"b"]]
    assert not table.pair_is_canonical(ids[b"ab"], ids[b"ab"]) and table.pair_is_canonical(ids[b"aba"], ids[b"b"])
    assert ids[b"ab"] in table.illegal_after(ids[b"ab"]).tolist()


def test_two_late_merges_that_want_the_same_part() -> None:
    """In `baaa` both (b, aa) and (aa, a) wait for the same `aa` to be made; the lower rank wins, whoever is on the left."""
    vocab = loaded([(b"a", b"aa"), (b"aa", b"a"), (b"b", b"aa"), (b"a", b"a")], [], False)
    table, ids = build_merge_table(vocab), vocab.id_of_bytes
    assert real(vocab, b"baaa") == [ids[b"b"], ids[b"aaa"]]
    assert not table.pair_is_canonical(ids[b"baa"], ids[b"a"])
    assert ids[b"a"] in table.illegal_after(ids[b"baa"]).tolist()


def test_a_merge_that_is_listed_twice_has_its_last_rank() -> None:
    vocab = loaded([(b"a", b"b"), (b"b", b"c"), (b"a", b"b")], [], False)
    table, ids = build_merge_table(vocab), vocab.id_of_bytes
    assert real(vocab, b"abc") == [ids[b"a"], ids[b"bc"]]
    assert not table.pair_is_canonical(ids[b"ab"], ids[b"c"]) and table.pair_is_canonical(ids[b"a"], ids[b"bc"])


def test_whole_words_that_only_ignore_merges_makes() -> None:
    """`abc` has no derivation: it is a token only when the whole pre-token is `abc`."""
    vocab = loaded([(b"a", b"b")], [b"abc"], True)
    table = build_merge_table(vocab)
    whole = vocab.id_of_bytes[b"abc"]
    assert not table.reachable(whole) and vocab.bpe(b"abc") == [whole] and len(vocab.bpe(b"abca")) == 3
    assert whole not in table.illegal_after(vocab.id_of_bytes[b"a"]).tolist()
    assert encoding_of_prefix(table.prefix_tree(b"abca"), 3) == real(vocab, b"abc") != [whole]


def test_a_vocabulary_without_single_bytes_is_refused() -> None:
    vocab = loaded([(b"a", b"b")], [], False)
    with pytest.raises(TokenizerError, match=r"no canonical token ends at byte 2 .*lacks single bytes"):
        build_merge_table(vocab).prefix_tree(b"axb")


def test_valid_prefixes() -> None:
    text = "aé猫😀".encode()
    for end in range(len(text) + 1):
        assert valid_utf8_prefix(text[:end]) == len(text[:end].decode("utf-8", "ignore").encode())
    assert valid_utf8_prefix(b"ab\xff cd") == 2
