"""Parts of remote files, kept on a local disk: bounded in bytes, shared by all processes of a machine, safe to kill.

    Targets("s3://bucket/out", cache=RangeCache("/scratch/kd_cache", 50 * 2**30))

A piece is what was asked of a store at once: a row group of a shard, or its footer. Its name is the sha256 that the shard was
sealed with and the range in it, so that a piece is right whoever wrote it, and outputs, runs and trainers can share a folder.

How it stays whole. Writers take turns (a lock that the system gives back when its holder dies): room is made by removing the
pieces that were read longest ago, the new piece is written under a name of its own and then gets its real one. Whoever has the
lock and finds an unfinished piece knows that its writer is dead, and removes it. Readers take no lock: a piece is there whole,
or it is not there. A piece ends in its CRC-32; one that was damaged on the disk is not used but fetched again.
"""

from __future__ import annotations

import os
import warnings
import zlib
from pathlib import Path

from filelock import FileLock

_PIECE, _PART = ".piece", ".part"
_CRC_BYTES = 4


class RangeCache:
    """A folder of pieces with at most `limit_bytes` in all of them together, at any moment.

    folder  is made; on a local disk, and of one's own: what lies there is believed. Any number of caches with any limits may use
            it at a time; each keeps to its own limit when it writes

    hits, misses, damaged   pieces asked for by this process: found, not there, and there but damaged (a miss, too)
    Raises ValueError for a limit below 1.
    """

    def __init__(self, folder: str | Path, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes {limit_bytes}: wanted a number >= 1")
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self.hits = self.misses = self.damaged = 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> bytes | None:
        """The piece of that key; None: not here."""
        path = self.folder / (key + _PIECE)
        try:
            data = path.read_bytes()
        except OSError:  # removed by another process at this moment, too
            self.misses += 1
            return None
        body = data[:-_CRC_BYTES]
        if zlib.crc32(body).to_bytes(_CRC_BYTES, "little") != data[-_CRC_BYTES:]:
            self.damaged += 1
            self.misses += 1
            path.unlink(missing_ok=True)
            return None
        self.hits += 1
        try:
            os.utime(path)  # read just now: the last to be removed
        except OSError:
            pass  # it has been removed since, or belongs to another user: then its age is that of its writing
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keep a piece; what was read longest ago makes room. One larger than the limit is not kept.

        A folder that cannot be written (full, read-only) costs speed and nothing else: it is warned of, and reading goes on.
        """
        size = len(body) + _CRC_BYTES
        if size > self.limit_bytes:
            return
        try:
            with FileLock(self.folder / "lock"):
                if (self.folder / (key + _PIECE)).exists():
                    return  # another process was faster: the same bytes, as the key says
                self._make_room(size)
                part = self.folder / (key + _PART)
                part.write_bytes(body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little"))
                os.replace(part, self.folder / (key + _PIECE))
        except OSError as error:
            warnings.warn(f"{self.folder}: nothing can be kept here ({error}); reading goes on without", stacklevel=2)

    def held_bytes(self) -> int:
        """Bytes of all pieces, unfinished ones included."""
        return sum(size for _, size, _ in self._pieces((_PIECE, _PART)))

    def _make_room(self, size: int) -> None:
        """With the lock held: remove unfinished pieces, then the oldest until `size` more bytes fit."""
        for _, _, path in self._pieces((_PART,)):
            path.unlink(missing_ok=True)
        pieces = sorted(self._pieces((_PIECE,)))
        held = sum(piece_size for _, piece_size, _ in pieces)
        for _, piece_size, path in pieces:
            if held + size <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            held -= piece_size

    def _pieces(self, suffixes: tuple[str, ...]) -> list[tuple[int, int, Path]]:
        """(time of the last use, bytes, path)."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffixes):
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:
                        continue  # a reader has removed a damaged one
                    found.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        return found
