"""Put-if-absent: a file appears under its final name whole, once and for ever, or not at all.

tmp (O_EXCL) -> write -> fsync(file) -> link(tmp, final) -> fsync(folder) -> unlink(tmp)

`link` is the atomic step: it fails when the name exists, so of any number of racing processes, machines and zombies
exactly one wins, and a reader never sees a part of a file. Staging lies on the same file system, never ends in .parquet
and never lies inside data/ (some readers pick up every *.parquet below a folder, hidden ones too).
Every operating-system error becomes an OutputError that names the path and, where room is the matter, the bytes.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.errors import OutputError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
_DURABLE: set[Path] = set()  # folders whose names this process has seen to
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}


def put_if_absent(path: Path, data: bytes, *, staging: Path) -> bool:
    """Publish `data` at `path` unless the name exists. True: this call published it. False: the name was taken.

    Either way, on return the file under `path` is complete and durable (file and folder entry are fsynced).
    `staging` is a folder on the same file system; folders are made as needed. Killed at any moment, the call leaves at
    most one `<uuid>.part` there. Raises OutputError; then `path` was not created by this call.
    """
    with output_errors(path, needed=len(data)):
        make_folder(path.parent)
        if os.path.lexists(path):
            if not path.is_file():
                raise OutputError(
                    f"{path}: a folder or broken link lies where a file is wanted; move it away and run again"
                )
            _fsync_folder(path.parent)  # the winner may not have come so far
            return False
        make_folder(staging)
        part = staging / f"{uuid.uuid4().hex}.part"
        try:
            _write_durably(part, data)
            won = _link(part, path)
            _fsync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    return won


def read_published(path: Path) -> bytes:
    """The bytes of a published file; OutputError when it is missing or unreadable."""
    with output_errors(path):
        return path.read_bytes()


def publish_folder(part: Path, folder: Path) -> None:
    """A folder of finished files appears under its final name, whole and durable; an empty one may lie there already. `part` is
    on the same file system. Raises OSError: another file or a folder with something in it is there, or the disk fails."""
    for path in sorted(part.rglob("*"), reverse=True):  # what a folder holds, then the folder
        _fsync_path(path)
    _fsync_path(part)
    part.rename(folder)
    _fsync_folder(folder.absolute().parent)


def make_folder(folder: Path) -> None:
    """mkdir -p, durable: the parent of each new folder is fsynced, once also that of one that is there: whoever made it may
    have been killed in between. Raises OSError."""
    if folder.is_dir():
        if folder not in _DURABLE:
            with suppress(OSError):  # a parent that this user may not open
                _fsync_folder(folder.parent)
            _DURABLE.add(folder)
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _fsync_folder(folder.parent)


@contextmanager
def output_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn OSError into OutputError: where, what was found, what to do. `needed` is the number of bytes to write."""
    try:
        yield
    except OSError as error:
        raise OutputError(_explain(path, error, needed)) from error


def _write_durably(part: Path, data: bytes) -> None:
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(part: Path, path: Path) -> bool:
    try:
        os.link(part, path)
    except FileExistsError:
        # NFS may say "exists" after its own success when the reply was lost: then our file has two names.
        return part.stat().st_nlink == 2
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise OutputError(
                f"{path}: this file system cannot make hard links ({error.strerror}), and without them two workers "
                "could overwrite each other; set `output` to a folder on a local or NFS file system"
            ) from error
        raise
    return True


def _fsync_folder(folder: Path) -> None:
    _fsync_path(folder, os.O_DIRECTORY)


def _fsync_path(path: Path, how: int = 0) -> None:
    handle = os.open(path, os.O_RDONLY | how)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(path: Path, error: OSError, needed: int | None) -> str:
    if error.errno in _NO_ROOM:
        wanted = f"{needed:,} bytes are needed" if needed is not None else "more room is needed"
        limit = " (a file size limit or quota of this process applies)" if error.errno != errno.ENOSPC else ""
        return (
            f"{path}: no room{limit}: {wanted}, {_free_bytes(path):,} bytes are free; "
            "make room and run again, all finished units are kept"
        )
    if error.errno in _NOT_ALLOWED:
        return (
            f"{path}: cannot be written or read ({error.strerror}); "
            "give this user access to the folder (or mount it writable), or take another folder for the output"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        there = next((part for part in path.parents if part.is_file()), path)
        return (
            f"{there}: a file lies where a folder is wanted; name another folder for the output, or move that file away"
        )
    if error.errno == errno.ENOENT and path.is_symlink():
        return f"{path}: a broken link lies where a file is wanted; move it away and run again"
    if error.errno == errno.ENOENT:
        return f"{path}: the file is missing; give the command that made the output again: it makes anew what it can"
    return f"{path}: {error.strerror or error}; check the disk or mount and run again, all finished units are kept"


def _free_bytes(path: Path) -> int:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    return shutil.disk_usage(folder).free
