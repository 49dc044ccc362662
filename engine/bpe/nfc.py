"""What NFC may compose."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


@lru_cache(maxsize=1)
def _composing() -> frozenset[str]:
    """Characters that NFC may merge with, or reorder before, the one in front of them."""
    found = set()
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        char = chr(code)
        decomposed = unicodedata.decomposition(char)
        if unicodedata.combining(char):
            found.add(char)
        elif decomposed and not decomposed.startswith("<"):
            found.add(char)  # NFC may replace it
            found.update(chr(int(c, 16)) for c in decomposed.split()[1:])
    found.update(chr(c) for c in range(0x1161, 0x11C3))  # Hangul vowels and finals
    return frozenset(found)


@lru_cache(maxsize=1)
def _joining() -> frozenset[str]:
    """Characters that NFC may merge with, or reorder before, the one in front of them, whatever they are themselves."""
    found = {c for c in map(chr, range(0x1161, 0x11C3))}
    for code in (c for c in range(0x110000) if not 0xD800 <= c < 0xE000):
        parts = unicodedata.decomposition(chr(code))
        if unicodedata.combining(chr(code)):
            found.add(chr(code))
        elif parts and not parts.startswith("<"):
            found.update(chr(int(c, 16)) for c in parts.split()[1:])
    return frozenset(found)


def is_composed(r: bytes) -> bool:
    """Whether NFC leaves r as it is, whatever stands before it. What follows may still change its last character."""
    text = r.decode("utf-8", "ignore")
    return text.isascii() or (unicodedata.is_normalized("NFC", text) and text[0] not in _joining())


def may_compose(r: bytes) -> bool:
    """Whether NFC may change r, or something in front of it."""
    text = r.decode("utf-8", "ignore")
    return not text.isascii() and any(c in _composing() for c in text)
