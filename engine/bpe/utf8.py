"""What is known of UTF-8 here and nowhere else: incomplete characters at the end of bytes, and the bytes that may complete them.

Tokens are bytes, so a token, or the text up to a boundary, can end inside a character: its first bytes are known, the rest is any
of several. All functions are pure; bytes in, bytes, numbers or characters out.
"""

from __future__ import annotations

import codecs
import unicodedata
from typing import overload

import numpy as np


def valid_utf8_prefix(data: bytes) -> int:
    """Length of `data` without an incomplete character at its end (the rest is at most 3 bytes).

    Bytes that are broken elsewhere than at the end count as valid up to the first of them.
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def character_length(lead: int) -> int:
    """Bytes of a character by its first byte, 1 to 4. The one place with this rule; `lead` is no continuation byte."""
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


@overload
def is_continuation(byte: int) -> bool: ...
@overload
def is_continuation(byte: np.ndarray) -> np.ndarray: ...
def is_continuation(byte: int | np.ndarray) -> bool | np.ndarray:
    """Whether a byte, or each of an array of bytes (uint8), is the second or a later one of a character."""
    return (byte & 0xC0) == 0x80


def characters_from(partial: bytes) -> list[str]:
    """All characters whose UTF-8 begins with `partial` (an incomplete character); where these are more than 4096, one of
    each Unicode category."""
    size = character_length(partial[0])
    code = partial[0] & (0x7F >> size)
    for byte in partial[1:]:
        code = code << 6 | byte & 0x3F
    rest = 6 * (size - len(partial))
    least, most = (0x80, 0x800, 0x10000)[size - 2], (0x7FF, 0xFFFF, 0x10FFFF)[size - 2]
    codes = range(max(code << rest, least), min(((code + 1) << rest) - 1, most) + 1)
    chars = [chr(c) for c in codes if not 0xD800 <= c < 0xE000]
    return chars if len(chars) <= 4096 else list({unicodedata.category(c): c for c in chars}.values())


def open_tail(data: bytes) -> bytes | None:
    """Bytes of the incomplete character at the end of `data`; None when no text begins with `data`."""
    if data.isascii():
        return b""
    tail = data[valid_utf8_prefix(data) :]
    try:
        codecs.utf_8_decode(tail, "strict", False)
    except UnicodeDecodeError:
        return None
    return None if tail[:1] == b"\xed" and tail[1:2] >= b"\xa0" else tail  # surrogates: Python waits for the third byte


def characters_beginning(begun: bytes) -> int:
    """How many characters have a UTF-8 that begins with, or is, these bytes (not empty); 0 when none."""
    if open_tail(begun) is None or len(begun) > 4:
        return 0
    if open_tail(begun) == b"":
        return int(len(begun.decode("utf-8")) == 1)
    free = character_length(begun[0]) - len(begun)
    if len(begun) > 1:
        return int(64**free)
    # overlong forms, surrogates and what lies behind U+10FFFF are no characters
    fewer: dict[int, int] = {0xE0: 2048, 0xED: 2048, 0xF0: 3 * 65536, 0xF4: 65536}
    return fewer.get(begun[0], int(64**free))


def successor(z: bytes) -> bytes:
    """The smallest byte string greater than all strings that start with z: in a sorted list those that do end before it.

    For z of 0xff only there is none; 64 bytes of 0xff stand for it (longer than any token).
    """
    trimmed = z.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\xff" * 64
