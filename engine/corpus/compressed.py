"""The bytes of a corpus file, decompressed as they are read: .gz, .zst, .xz, .bz2. One that is cut off is never just short.

stream + codec -> a stream of bytes, which raises one of DAMAGE where the file ends too early or is not what its suffix says
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from typing import IO, TYPE_CHECKING, cast

import zstandard

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CODECS = (".gz", ".zst", ".xz", ".bz2")
CHUNK_BYTES = 1 << 20
ZST_BYTES = (32, 4096)
"""Compressed bytes decompressed at a time, least and most: few where much comes of them (4 bytes may hold 128 KiB), so that
little lies in memory."""
READ_AHEAD = 1 << 16
"""Decompressed bytes; what is read ahead is lost when the file turns out damaged, and the place reached with it."""
LARGEST_WINDOW = 1 << 31
"""Bytes that a .zst file may make the decompressor remember: `zstd --long=31`. Only what its frames ask for is taken."""

DAMAGE = (OSError, EOFError, zlib.error, zstandard.ZstdError, lzma.LZMAError)
"""What these streams raise for damaged bytes."""


def open_bytes(stream: IO[bytes], codec: str) -> IO[bytes]:
    """The decompressed bytes of a file as a buffered stream. stream: its bytes as they lie there, to be closed by the caller.
    codec: one of CODECS, or ""."""
    if codec == ".gz":
        return cast(IO[bytes], gzip.open(stream, "rb"))
    if codec == ".xz":
        return cast(IO[bytes], lzma.open(stream, "rb"))
    if codec == ".bz2":
        return cast(IO[bytes], bz2.open(stream, "rb"))
    if codec == ".zst":
        return io.BufferedReader(_ZstandardFile(stream), READ_AHEAD)
    return stream


def open_seekable(stream: IO[bytes], codec: str) -> IO[bytes]:
    """The same, for readers that begin at the end: a compressed file, or one that cannot seek, is first unpacked into an unnamed
    temporary one."""
    if not codec and stream.seekable():
        return stream
    unpacked = tempfile.TemporaryFile()
    with open_bytes(stream, codec) as packed:
        shutil.copyfileobj(packed, unpacked, CHUNK_BYTES)
    unpacked.seek(0)
    return unpacked


class _ZstandardFile(io.RawIOBase):
    """Frame behind frame of a .zst file, decompressed. `zstandard.stream_reader` ends without an error where a frame is cut off;
    here the end of the file inside a frame raises EOFError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None  # the frame that is being read
        self._ahead = b""  # compressed, behind the last frame
        self._step = ZST_BYTES[0]
        self._made = memoryview(b"")  # decompressed, not yet handed out

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        wanted = memoryview(buffer).cast("B")
        while not self._made and self._more():
            pass
        count = min(len(wanted), len(self._made))
        wanted[:count], self._made = self._made[:count], self._made[count:]
        return count

    def _more(self) -> bool:
        """Decompress a little more; False at the end of the file, where no frame is open. Raises EOFError, ZstdError."""
        data = self._ahead or self._file.read(self._step)
        self._ahead = b""
        if not data:
            if self._frame is not None:
                raise EOFError(f"the file ends after {self._file.tell():,} bytes, in the middle of a zstd frame")
            return False
        if self._frame is None:
            self._frame = self._decompressor.decompressobj(write_size=READ_AHEAD)
        self._made = memoryview(self._frame.decompress(data))
        least, most = ZST_BYTES
        self._step = max(least, self._step // 2) if len(self._made) > READ_AHEAD else min(most, self._step * 2)
        if self._frame.eof:
            self._ahead, self._frame = self._frame.unused_data, None
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
