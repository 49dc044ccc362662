"""What the Unicode normal form NFC may change: which bytes stay as they are, whatever stands before or follows them.

A tokenizer with an NFC normaliser reads a text after normalisation, so that a letter and an accent behind it may become one
character. Where that can happen nothing is taken as certain (docs/design.md, section 7).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_HANGUL_TAILS = range(0x1161, 0x11C3)  # vowels and finals: composed by rule, not by table
_SURROGATES = range(0xD800, 0xE000)


@lru_cache(maxsize=1)
def _changing() -> tuple[frozenset[str], frozenset[str]]:
    """(joining, composing). joining: characters that NFC may merge with, or reorder before, the one in front of them.
    composing: these, and those that NFC may replace whatever stands in front of them."""
    joining, replaced = set(map(chr, _HANGUL_TAILS)), set()
    for code in range(0x110000):
        if code in _SURROGATES:
            continue
        char = chr(code)
        parts = unicodedata.decomposition(char)
        if unicodedata.combining(char):
            joining.add(char)
        elif parts and not parts.startswith("<"):  # "<...>": a compatibility form, which NFC leaves alone
            replaced.add(char)
            joining.update(chr(int(c, 16)) for c in parts.split()[1:])
    return frozenset(joining), frozenset(joining | replaced)


def is_composed(r: bytes) -> bool:
    """Whether NFC leaves r as it is, whatever stands before it. What follows may still change its last character."""
    text = r.decode("utf-8", "ignore")
    return text.isascii() or (unicodedata.is_normalized("NFC", text) and text[0] not in _changing()[0])


def may_compose(r: bytes) -> bool:
    """Whether NFC may change r, or something in front of it."""
    text = r.decode("utf-8", "ignore")
    return not text.isascii() and any(c in _changing()[1] for c in text)
