"""The rule that says which next tokens keep a context canonical, against brute force with the real tokenizers."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from engine.bpe.segmenter import build_segmenter
from engine.bpe.utf8 import characters_beginning, characters_from, open_tail
from engine.bpe.vocabulary import Vocabulary
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext, State
from engine.contexts.tree import ContextTree
from tests.contexts.test_builder import CONTINUATIONS, characters_like, documents, encodable, given_token, path_to
from tests.support.pairs import path_of
from tests.support.tiers import usual
from tests.support.toys import BYTE_LEVEL as TOY_BYTE_LEVEL
from tests.support.toys import SENTENCEPIECE as TOY_SENTENCEPIECE
from tests.support.toys import TableTeacher, added_texts, alphabet, random_text, strings, toy
from tests.support.vocabularies import (
    ALL,
    BYTE_LEVEL,
    EFFORT,
    builder,
    merge_table,
    needs_shared,
    segmenter,
    vocabulary,
    words,
)

MORE = [*CONTINUATIONS, "x ", "zq", "Qj", " Zq", "7x", "  x", "\n\nx", "\t\tx", "'x", "##", "=x", "\r", " \n\n", "   "]


@cache
def chooser(name: str) -> CanonicalNext:
    return CanonicalNext(segmenter(name))


def ids_of(chooser: CanonicalNext, state: State) -> set[int]:
    return set(chooser.illegal(state).tolist())


# ==== pairs


def pairs_from(vocab: Vocabulary, rng: random.Random, usable: list[int], count: int) -> Iterator[tuple[int, int]]:
    """Uniform pairs, and pairs that come from cutting tokens and words where BPE does not, or not always, cut them."""
    own = set(usable)
    while count:
        piece = vocab.token_bytes[rng.choice(usable)] or b""
        if rng.random() < 0.5:
            piece = rng.choice(words()).encode()[:12]
        at = rng.randrange(len(piece) + 1)
        left = [t for i in range(at) if (t := vocab.id_of_bytes.get(piece[i:at])) in own]
        right = [t for e in range(at + 1, len(piece) + 1) if (t := vocab.id_of_bytes.get(piece[at:e])) in own]
        if rng.random() < 0.3:
            left, right = usable, usable
        if left and right:
            count -= 1
            yield rng.choice(left), rng.choice(right)


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_pairs_against_the_tokenizers_own_bpe(name: str) -> None:
    vocab, merges, rng = vocabulary(name), merge_table(name), random.Random(name)
    fallback = set(vocab.fallback_ids)
    usable = [t for t in vocab.id_of_bytes.values() if merges.reachable(t) and t not in fallback]
    seen = broken = 0
    wrong = []
    for a, b in pairs_from(vocab, rng, usable, 3_000 * EFFORT):
        real = vocab.bpe((vocab.token_bytes[a] or b"") + (vocab.token_bytes[b] or b""), whole=False) == [a, b]
        seen += 1
        broken += not real
        if merges.pair_is_canonical(a, b) != real:
            wrong.append((a, b))
    assert not wrong, f"{len(wrong)} of {seen}: {wrong[:5]}"
    assert seen == 3_000 * EFFORT and (broken > seen // 20 or not vocab.merges)


# ==== the full rule on real tokenizers


def continuations_of(data: bytes, more: list[str], *, every: bool = False) -> Iterator[str]:
    """Texts whose UTF-8 begins with `data`. every: an incomplete character becomes each character that it can be."""
    tail = open_tail(data)
    if tail is None:
        return
    head = data[: len(data) - len(tail)].decode()
    for char in (characters_from(tail) if every else characters_like(tail)) if tail else ("",):
        for end in more:
            yield head + char + end


def witness(vocab: Vocabulary, path: list[int], token: int, more: list[str] | None = None) -> str | None:
    """A text whose encoding begins with path + token, found by brute force. more: what to go on with, also characters that
    the vocabulary lacks."""
    wanted = [*path, token]
    data = b"".join(vocab.token_bytes[t] or b"" for t in wanted)
    shift = len(vocab.prefix_bytes)
    if not data.startswith(vocab.prefix_bytes[: len(data)]):
        return None
    inside = open_tail(data) != b""
    for every in (False, True) if inside else (False,):
        for text in continuations_of(data[shift:], (more or MORE)[:2] if every else more or MORE, every=every):
            if more is None:
                tokens = encodable(vocab, text) or []
            else:
                tokens = vocab.tokenizer.encode(text, add_special_tokens=False).ids
            if tokens[: len(wanted)] == wanted:
                return text
    for piece in tails(vocab) if inside else ():
        for text in continuations_of(data[shift:] + piece, MORE[:1]):
            if (encodable(vocab, text) or [])[: len(wanted)] == wanted:
                return text
    return None


@cache
def tails(vocab: Vocabulary) -> list[bytes]:
    """Tokens that begin inside a character: some go on into the next one, and are right where no shorter one is."""
    return [piece for piece in vocab.token_bytes if piece and 0x80 <= piece[0] < 0xC0]


def candidates(vocab: Vocabulary, rng: random.Random, data: bytes, end: int, follow: list[int]) -> set[int]:
    """Next tokens that are likely to be right, or nearly right."""
    rest, own = data[end : end + 12], vocab.id_of_bytes
    found = {own.get(rest[:size]) for size in range(1, len(rest) + 1)}
    tries = [" ", "  ", "   ", "\n", "\n\n", " \n", "\t", "s", "'s", "'", "t", "'t", "1", "12", "123",
        ".", " a", " the", "the", "ing"]  # fmt: skip
    found |= {own.get(t.encode()) for t in rng.sample(tries, 8)}
    found |= {own.get(bytes([b])) for b in (0xC3, 0xE2, 0x80, 0x99, 0xF0, rest[0] if rest else 0x20)}
    found |= set(rng.sample(follow, 6)) | set(rng.sample(sorted(own.values()), 8))
    found |= set(vocab.fallback_ids and rng.sample(vocab.fallback_ids, 4)) | set(list(vocab.added_text.values())[:2])
    return {t for t in found if t is not None and vocab.token_bytes[t]}


def skipped(vocab: Vocabulary, data: bytes) -> bool:
    """Where the real tokenizer's text is not the generated bytes: NFC; Metaspace before a space (design.md, gap 2)."""
    text = data.decode("utf-8", "ignore")
    metaspace = "Metaspace" in str(vocab.pre_tokenizer) and vocab.prefix_bytes and data.startswith(b"  ")
    return bool(metaspace) or (vocab.nfc and unicodedata.normalize("NFC", text) != text)


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_the_rule_against_brute_force(name: str) -> None:
    """Legal if and only if some continuation is encoded with context and token in front."""
    vocab, choose, rng = vocabulary(name), chooser(name), random.Random(name)
    count = {True: 0, False: 0}
    wrong = []
    starts = [t for t, piece in enumerate(vocab.token_bytes) if piece and piece[:1] in (b" ", b"\n", b"'", b"1", b"e")]
    follow = starts if len(starts) > 6 else sorted(vocab.id_of_bytes.values())
    for _, ids, data in documents(name, EFFORT):
        shift = len(vocab.prefix_bytes)
        places = sorted(rng.sample(range(shift, len(data) + 1), min(14, len(data) + 1 - shift)))
        tree = builder(name).build(data, ids, places, given_token(vocab))
        states = choose.states(tree, data)
        nodes = [n for n in range(tree.given, len(tree.token)) if int(tree.end[n]) in places]
        for node in rng.sample(nodes, min(9, len(nodes))):
            state, path = states[node], path_to(tree, node)
            assert state is not None
            inside = open_tail(data[: tree.end[node]]) != b""
            if path and inside and witness(vocab, path[:-1], path[-1]) is None:
                continue  # half a character that every completion merges away: no context (test_contexts.py)
            illegal = ids_of(choose, state)
            end = not inside and (encodable(vocab, data[shift : tree.end[node]].decode()) or []) == path
            assert all((t in illegal) == (not end) for t in vocab.specials), (path, end)
            for token in candidates(vocab, rng, data, tree.end[node], follow):
                if skipped(vocab, data[: tree.end[node]] + (vocab.token_bytes[token] or b"")):
                    continue
                real = witness(vocab, path, token)
                count[real is not None] += 1
                if (token not in illegal) != (real is not None):
                    wrong.append((data[: tree.end[node]], path, vocab.token_bytes[token], token, real))
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:6]}"
    assert count[True] > 50 and (count[False] > 50 or not vocab.merges)


RUNS = ["a", "ab", " a", "\n", " ", "\t", ".", " .", "1", "é", "日", "-", "'l", "=", " \n", "Ab", "_", "\u0301", "٣"]


@needs_shared
@pytest.mark.parametrize("name", usual(BYTE_LEVEL))  # no others have pending parts of units
def test_long_runs_are_cut_as_short_ones(name: str) -> None:
    """The premise of `Splitter.shorten`, on pending parts with a run of any length, behind whatever else may be pending."""
    book, rng = chooser(name).book, random.Random(name)
    splitter, checked, shortened = book.splitter, 0, 0
    assert not splitter.byte_units
    span = book._span(b"")
    for run in RUNS if EFFORT > 1 else rng.sample(RUNS, 10):
        for before in rng.sample(["", " ", "'", "a", "\n", "1", "A"], EFFORT):
            text = before + run[:-1] + run[-1] * rng.choice([6, 9, 29, 30])
            units = splitter.canonical(splitter.classes(text.encode()))
            ends = splitter.certain(units)
            pending = units[ends[-1] if ends else 0 :]
            short = splitter.shorten(pending)
            if short == pending:
                continue
            shortened += 1
            table = book.table(pending, b"")
            if any(cuts for cuts, _ in table.variants):
                continue
            whole = book.make_table(pending, span)
            assert whole.variants == table.variants and whole.behaviours == table.behaviours
            assert np.array_equal(whole.behaviour, table.behaviour), (name, text)
            checked += 1
    assert checked > 1 and shortened > 1, (checked, shortened)


# ==== toy tokenizers: all tokens, all continuations


def toy_side(
    rng: random.Random, folder: Path, *, ascii_only: bool = False, added: bool = False
) -> tuple[Vocabulary, tuple[str, ...], CanonicalNext, ContextBuilder]:
    chars, style = alphabet(rng), rng.choice(TOY_BYTE_LEVEL * 2 + TOY_SENTENCEPIECE)
    chars = tuple(c for c in chars if c.isascii()) if ascii_only else chars
    texts = added_texts(rng, chars) if added and style != "prepend" else ()  # these would be barred
    vocab = toy(rng, folder, style, chars, whole=rng.random() < 0.4, merges=rng.randint(3, 10), added=texts)
    parts = build_segmenter(vocab)
    return vocab, chars, CanonicalNext(parts), ContextBuilder(parts)


def tree_of(vocab: Vocabulary, make: ContextBuilder, text: str) -> tuple[ContextTree, bytes]:
    data = vocab.prefix_bytes + text.encode()
    wanted = list(range(len(vocab.prefix_bytes), len(data) + 1))
    return make.build(data, vocab.encode(text)[0], wanted, given_token(vocab)), data


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("seed", range(6 * EFFORT))
def test_toys_exactly(seed: int, added: bool, tmp_path: Path) -> None:
    """Every node, every token of the alphabet, against all continuations of up to three characters."""
    rng = random.Random(seed)
    vocab, chars, choose, make = toy_side(rng, tmp_path / "toy", added=added)
    table = TableTeacher(vocab, chars, seed, masked=True)
    table.probes = strings(chars, 3)
    more = ["", "z", ".", "7", *chars]  # characters outside the alphabet may be what a token stands before
    checked = 0
    while checked < 10:
        text = random_text(rng, chars)
        if encodable(vocab, text) is None:
            continue  # it holds an added text that takes the space before it, or beside it
        tree, data = tree_of(vocab, make, text)
        states = choose.states(tree, data)
        for node in range(tree.given, len(tree.token)):
            state, path = states[node], path_of(tree, node, vocab)
            assert state is not None
            want = set(table.followers(path))
            if not want and open_tail(table.bytes_of(path)) != b"":
                continue  # half a character that no character of the alphabet completes
            got = set(table.usable) - ids_of(choose, state)
            got -= {t for t in got - want if witness(vocab, list(path), t, [x + y for x in more for y in more])}
            assert got == want, (seed, path, [vocab.token_bytes[t] for t in got ^ want], got - want)
            checked += 1


# ==== masses and details


def test_how_many_characters_begin_so() -> None:
    every = [chr(c).encode() for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for hexed in ("61", "c3", "c1", "e0", "ed", "e2", "e280", "e080", "f0", "f4", "f5", "f09f", "edac", "ed9f", "f490"):
        begun = bytes.fromhex(hexed)
        want = sum(char.startswith(begun) for char in every)
        assert characters_beginning(begun) == want, begun
    assert open_tail(b"ab\xe2\x80") == b"\xe2\x80" and open_tail(b"\x80a") is None and open_tail(b"\xc3a") is None
