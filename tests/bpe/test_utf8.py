"""The rules of UTF-8 against Python's own encoder, for all characters."""

from __future__ import annotations

from collections import Counter

import numpy as np

from engine.bpe.utf8 import (
    character_length,
    characters_beginning,
    characters_from,
    is_continuation,
    open_tail,
    successor,
    valid_utf8_prefix,
)

CHARACTERS = [chr(c).encode() for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def test_lengths_and_continuation_bytes_of_all_characters() -> None:
    assert all(character_length(c[0]) == len(c) for c in CHARACTERS)
    data = np.frombuffer(b"".join(CHARACTERS), np.uint8)
    starts = np.cumsum([0, *map(len, CHARACTERS)])[:-1]
    np.testing.assert_array_equal(np.flatnonzero(~is_continuation(data)), starts)
    assert [is_continuation(b) for b in (0x7F, 0x80, 0xBF, 0xC0)] == [False, True, True, False]


def test_what_can_begin_a_character_is_counted() -> None:
    counts = Counter(c[:n] for c in CHARACTERS for n in range(1, len(c) + 1))
    some = [bytes([a]) for a in range(256)] + [bytes([a, b]) for a in range(0xC0, 256) for b in range(0x70, 0xC8)]
    for begun in some:
        if begun[0] >= 0xC0 or len(begun) == 1:
            assert characters_beginning(begun) == counts[begun], begun
            assert (open_tail(begun) is None) == (counts[begun] == 0 and not open_tail(begun) == b""), begun
    for begun in (b"\xc3", b"\xe2\x80", b"\xf0\x9f\x98", b"\xed\x9f", b"\xf4\x8f\xbf"):
        assert {c.encode() for c in characters_from(begun)} == {c for c in CHARACTERS if c.startswith(begun)}


def test_incomplete_ends() -> None:
    assert valid_utf8_prefix("aé".encode()[:-1]) == 1 and open_tail("aé".encode()[:-1]) == b"\xc3"
    assert open_tail(b"a\xff") is None and open_tail(b"\xed\xa0") is None and open_tail("né".encode()) == b""


def test_the_successor_is_just_above_all_that_begin_so() -> None:
    assert b"ab" < b"ab\xff\xff" < successor(b"ab") == b"ac" and successor(b"a\xff\xff") == b"b"
    assert b"\xff\xff" * 10 < successor(b"\xff")
