"""targetsmith vendor PACKAGE DEST: copies the reader or the losses, which need nothing else of the project, into a trainer.

Beside the copied files stands VENDORED: the version that they are of, and their checksums as `sha256sum -c VENDORED` takes them.
"""

from __future__ import annotations

import hashlib
import keyword
from pathlib import Path
from typing import Annotated, Literal

import typer

import engine
from jobs.app import main_of
from schemas.counts import counted
from schemas.errors import OutputError

VENDORED = "VENDORED"

Package = Literal["reader", "losses"]

EXAMPLE = "targetsmith vendor reader src/kd_reader"


def vendor(
    package: Annotated[Package, typer.Argument(metavar="PACKAGE", help="What is copied: reader or losses.")],
    dest: Annotated[
        Path,
        typer.Argument(metavar="DEST", help="A new folder, under the name that the copy is to have: src/kd_reader."),
    ],
) -> None:
    """Copy the reader or the losses into a trainer.

    Both stand alone: a folder of Python files that imports nothing of this project, under any name. An edited copy is never
    overwritten.
    """
    print(copy_package(package, dest))


def copy_package(package: Package, dest: Path) -> str:
    """Copy `engine/<package>` to `dest`, to be imported by the name that `dest` ends in. Returns a line: what was done.

    dest: a new or empty folder, or a copy that is still the same. Raises OutputError, and has written nothing then, where
    another file lies there, where a file differs (an edited copy, or one of another version), and where Python could not
    import a folder of that name.
    """
    name = dest.resolve().name
    if not name.isidentifier() or keyword.iskeyword(name):
        raise OutputError(f"{dest}: Python cannot import {name!r}; name a folder such as kd_{package}")
    files = _files(package)
    try:
        there = {path.name for path in dest.iterdir()} - {"__pycache__"} if dest.exists() else set()
        if foreign := sorted(there - files.keys()):
            raise OutputError(
                f"{dest / foreign[0]}: not a file of engine/{package}; nothing was written: name a new folder"
            )
        for file in sorted(there):
            if (dest / file).read_bytes() != files[file]:
                raise OutputError(
                    f"{dest / file}: differs from engine/{package} of this version (edited, or of another version); nothing "
                    "was written: move the folder away, or name a new one"
                )
        dest.mkdir(parents=True, exist_ok=True)
        for file in sorted(files.keys() - there):
            (dest / file).write_bytes(files[file])
    except OSError as error:
        raise OutputError(
            f"{dest}: cannot be written or read ({error.strerror or error}); name another folder"
        ) from error
    if there == files.keys():
        return f"{dest}: a copy of engine/{package} is there already, unchanged"
    return (
        f"{dest}: {counted(len(files) - 1, 'file')} of engine/{package} and {VENDORED}, their checksums; use it as "
        f"`import {name}`"
    )


def _files(package: Package) -> dict[str, bytes]:
    """Name -> content of all that is copied, VENDORED too."""
    from engine.plan.make_plan import ENGINE_VERSION

    files = {path.name: path.read_bytes() for path in sorted((Path(engine.__file__).parent / package).glob("*.py"))}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    return {**files, VENDORED: f"# engine/{package} of targetsmith {ENGINE_VERSION}\n{sums}".encode()}


if __name__ == "__main__":
    main_of("vendor")
