"""What the Unicode normal form NFC may change: which bytes stay as they are, whatever stands before or follows them.

A tokenizer with an NFC normaliser reads a text after normalisation, so that a letter and an accent behind it may become one
character. In: bytes behind a boundary. Out: whether what stands before them stays (`may_compose`), and how many of their
characters nothing changes that follows (`fixed`). docs/design.md, lemma 22.

A character *joins* where its canonical decomposition begins with one that may be merged with, or moved before, what stands in
front. All others have a border of normalisation before them: what is before it and what is behind it are normalised apart.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache, partial
from typing import NamedTuple

_HANGUL_LEADS, _HANGUL_TAILS = range(0x1100, 0x1113), range(0x1161, 0x11C3)  # composed by rule, not by table
_SYLLABLES, _TO_A_LEAD, _TO_A_VOWEL = range(0xAC00, 0xD7A4), 588, 28
_SURROGATES = range(0xD800, 0xE000)


class _Tables(NamedTuple):
    """joining: characters that join. begun: proper beginnings of their bytes. growing: normal characters that something behind
    them may merge with. families: first character of a decomposition -> the normal characters made of it and more."""

    joining: frozenset[str]
    begun: frozenset[bytes]
    growing: frozenset[str]
    families: dict[str, frozenset[str]]


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    joining, growing = set(map(chr, _HANGUL_TAILS)), set(map(chr, _HANGUL_LEADS))
    growing.update(map(chr, _SYLLABLES[::_TO_A_VOWEL]))
    composed, families = list[str](), dict[str, set[str]]()
    is_normal = partial(unicodedata.is_normalized, "NFC")
    for code in range(0x110000):
        if code in _SURROGATES:
            continue
        char = chr(code)
        parts = unicodedata.decomposition(char)
        if unicodedata.combining(char):
            joining.add(char)
        if parts and not parts.startswith("<"):  # "<...>": a compatibility form, which NFC leaves alone
            composed.append(char)
            if is_normal(char):  # others are never made
                first, second = (chr(int(part, 16)) for part in parts.split())
                growing.add(first)
                joining.add(second)
    for char in composed:
        apart = unicodedata.normalize("NFD", char)
        if apart[0] in joining:
            joining.add(char)
        if unicodedata.combining(apart[-1]):  # a mark behind it may come to stand before the last one of its own
            growing.add(char)
        if is_normal(char):
            families.setdefault(apart[0], set()).add(char)
    for number, code in enumerate(_HANGUL_LEADS):
        families[chr(code)] = set(map(chr, _SYLLABLES[number * _TO_A_LEAD : (number + 1) * _TO_A_LEAD]))
    spelt = [char.encode() for char in joining]
    begun = frozenset(spelling[:i] for spelling in spelt for i in range(1, len(spelling)))
    return _Tables(
        frozenset(joining), begun, frozenset(growing), {first: frozenset(kin) for first, kin in families.items()}
    )


def family(char: str) -> frozenset[str]:
    """All characters that NFC may make of one that is normal and does not join, by what stands behind it; itself among them."""
    first = unicodedata.normalize("NFD", char)[0]
    return _tables().families.get(first, frozenset()) | {char}


def is_composed(r: bytes) -> bool:
    """Whether NFC leaves r as it is, whatever stands before it. What follows may still change its last character."""
    text = r.decode("utf-8", "ignore")
    return text.isascii() or (text[0] not in _tables().joining and unicodedata.is_normalized("NFC", text))


def may_compose(r: bytes) -> bool:
    """Whether NFC may change r, or something in front of it, whatever follows."""
    return not is_composed(r)


class Fixed(NamedTuple):
    """Of a string. known: how many of its characters, from the first one on, no continuation changes; size: their bytes. doubt:
    the one behind them, which may become another of its family; "" where none is known. composes: `may_compose`; then NFC may
    change these, too."""

    known: int
    doubt: str
    size: int
    composes: bool


def fixed(r: bytes) -> Fixed:
    """What is fixed of r. An incomplete character at its end counts as something that follows: it may join or not."""
    tables = _tables()
    try:
        text, rest = r.decode(), b""
    except UnicodeDecodeError as error:
        text, rest = r[: error.start].decode(), r[error.start :]
    composes = may_compose(r) if rest or not r.isascii() else False
    if rest and rest not in tables.begun:
        return Fixed(len(text), "", len(r) - len(rest), composes)
    at = len(text) - 1
    while at >= 0 and text[at] in tables.joining:
        at -= 1
    if at < 0:
        return Fixed(0, "", 0, composes)
    if at == len(text) - 1 and text[at] not in tables.growing:
        return Fixed(len(text), "", len(r) - len(rest), composes)
    return Fixed(at, text[at], len(r) - len(rest) - len(text[at:].encode()), composes)
