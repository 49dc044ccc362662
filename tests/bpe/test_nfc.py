"""What NFC may change, held against the normaliser of the tokenizers library: every character, and random strings (lemma 22)."""

from __future__ import annotations

import random
from functools import cache

import pytest
from tokenizers.normalizers import NFC

from engine.bpe import nfc
from engine.bpe.segmenter import build_segmenter
from engine.bpe.utf8 import characters_from, valid_utf8_prefix
from tests.support.vocabularies import EFFORT, needs_shared, vocabulary

normal = NFC().normalize_str
MARKS = ("\u0301", "\u0323", "\u0328", "\u0338", "\u093c", "\u094d", "\u1161", "\u11a8", "\u09be", "\u3099", "\u05b8")
BASES = "aeoqsxAS=<1 .\nиеαερनरय한하ᄒאがか漢éǫǭếṩ\u0958\u212b"


@cache
def characters() -> tuple[str, ...]:
    """All that a text can hold and the library knows as characters."""
    return tuple(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)


def test_the_library_has_the_same_normal_characters() -> None:
    for char in characters():
        assert nfc.is_composed(char.encode()) <= (normal(char) == char), ascii(char)


def test_no_character_without_a_border_before_it_is_taken_for_one_that_has_one() -> None:
    """NFC(a c) = NFC(a) NFC(c) for all c that do not join, behind all kinds of a."""
    rng = random.Random(0)
    for char in characters():
        if nfc.is_composed(char.encode()):
            a = rng.choice(BASES) + "".join(rng.choices(MARKS, k=rng.choice((0, 0, 1, 2))))
            assert normal(a + char) == normal(a) + normal(char), (ascii(a), ascii(char))


@pytest.mark.parametrize("seed", range(2 * EFFORT))
def test_what_is_fixed_stays_and_what_is_in_doubt_becomes_kin(seed: int) -> None:
    """Of random strings, incomplete characters among them, behind and before random texts."""
    rng, changed, doubts, closed = random.Random(seed), 0, 0, 0
    composed = [c for c in characters() if normal(c) != c or len(nfc.family(c)) > 1]
    pool = [*MARKS, *BASES * 4, *rng.sample(composed, 100)]
    for _ in range(4000):
        r = "".join(rng.choices(pool, k=rng.randint(1, 4))).encode()
        r = r[: len(r) - rng.choice((0, 0, 0, 1))]
        if nfc.may_compose(r) or not r:
            continue
        whole = valid_utf8_prefix(r)
        ends = rng.sample(characters_from(r[whole:]), 1) if whole < len(r) else [""]
        before = normal("".join(rng.choices(pool, k=2)))
        w = "".join(rng.choices((*MARKS, *MARKS, *BASES), k=rng.randint(0, 4)))
        text = r[:whole].decode()
        if not text and nfc.may_compose(ends[0].encode()):
            continue  # nothing of it is known: it may change what is before it
        got, said = normal(before + text + ends[0] + w), nfc.fixed(r)
        known = before + text[: said.known]
        assert got.startswith(known), (ascii(before), r, ascii(w))
        rest = got[len(known) :]
        if said.doubt:
            doubts += 1
            changed += rest[:1] != said.doubt
            assert rest[:1] in nfc.family(said.doubt), (ascii(before), r, ascii(w))
        else:
            closed += 1
    assert doubts > 300 and changed > 30 and closed > 300


def test_a_starter_behind_it_closes_a_composed_character() -> None:
    assert nfc.fixed("é".encode())[:2] == (0, "é")
    assert nfc.fixed("ét".encode())[:2] == (1, "t")
    assert nfc.fixed("é.".encode())[:2] == (2, "")
    assert nfc.fixed("é".encode() + b"\xd0")[:2] == (1, "")  # half a Cyrillic letter: none of these joins
    assert nfc.fixed("é".encode() + b"\xcc")[:2] == (0, "é")  # half an accent
    assert nfc.fixed(b"\xcc")[:2] == (0, "")
    assert nfc.fixed("漢".encode())[:2] == (1, "")
    assert nfc.fixed("한".encode())[:2] == (1, "") and nfc.fixed("하".encode())[:2] == (0, "하")
    assert nfc.fixed("q\u0323".encode())[:2] == (0, "q") and nfc.fixed("य".encode())[:2] == (1, "")


@needs_shared
def test_of_a_real_student_the_class_of_a_character_in_doubt_is_known() -> None:
    """Qwen's pattern takes all letters alike; not the `s` of `'s`, which may become an ś that is no contraction, nor the first
    letter of an added text."""
    known = build_segmenter(vocabulary("qwen2.5-subset-8000")).known
    assert (
        known("é".encode()) == (0, 0, "é", False)
        and known("né".encode())[::2] == (1, "é")
        and known("né!".encode())[::2] == (3, "")
    )
    assert known(b"cats")[::2] == (3, "s") and known(b"'s")[::2] == (1, "") and known(b"it's")[::2] == (3, "")
    assert known(" là".encode()).classes == 3
