"""A new folder that appears whole, or not at all: files are written beside it, seen to be on the disk, and the folder renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from engine.dataset.posix import publish_folder
from schemas.address import is_url
from schemas.errors import OutputError


@contextmanager
def destination(dest: str) -> Iterator[Path]:
    """The folder to write into; it becomes `dest` when the `with` ends without an error, and is removed otherwise.

    A killed process leaves `.<name>.<hex>.part` beside it. Raises OutputError: `dest` is a URL, there is something already, or it
    cannot be written.
    """
    if is_url(dest):
        raise OutputError(f"{dest}: other programs' files are written to a disk; name a folder, and copy it there")
    folder = Path(dest)
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise OutputError(f"{folder}: something lies there already; nothing was written: name a new folder")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder}: there is no folder {folder.absolute().parent} to put it in; make it first")
    part = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir()
        yield part
        publish_folder(part, folder)
    except (OSError, pa.ArrowException) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OutputError(
            f"{folder}: cannot be written ({told}); make room, or name another folder: nothing was left there"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(folder: Path, name: str, text: str) -> None:
    """A small file of a destination. Raises OSError."""
    with open(os.path.join(folder, name), "x", encoding="utf-8") as file:
        file.write(text)
