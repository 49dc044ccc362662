"""Texts in other encodings than UTF-8 -> UTF-8, as they are read; a byte order mark of UTF-16 or UTF-32 tells it."""

from __future__ import annotations

import codecs
import io
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

UTF8 = "utf-8"
_MARKS = (  # those of UTF-32 first: they begin like those of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_READ_BYTES = 1 << 16


def marked_encoding(head: bytes) -> str | None:
    """The encoding that the first four bytes of a text are the byte order mark of; None without one, and for UTF-8."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def in_utf8(stream: IO[bytes], encoding: str) -> IO[bytes]:
    """The text of a stream as UTF-8. encoding: as the run file names it; a byte order mark has the last word. Reading raises
    UnicodeError where the bytes are not of the encoding; UTF-8 is passed on unchecked, for its reader to check each record."""
    head: bytes = cast(Any, stream).peek(4)[:4]  # all streams of compressed.py can
    found = marked_encoding(head) or encoding
    return stream if codecs.lookup(found).name == UTF8 else io.BufferedReader(_Recoded(stream, found), _READ_BYTES)


class _Recoded(io.RawIOBase):
    """Decoded and encoded anew, a little at a time."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream = stream
        self._decoder, self._made, self._done = codecs.getincrementaldecoder(encoding)(), b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while not self._made and not self._done:
            data = self._stream.read(_READ_BYTES)
            self._done = not data
            self._made = self._decoder.decode(data, final=self._done).encode("utf-8", "surrogatepass")
        count = min(len(view), len(self._made))
        view[:count], self._made = self._made[:count], self._made[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()
