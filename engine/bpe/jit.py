"""How compiled functions are declared: a decorator around numba, and a folder that keeps the machine code between processes.

In: a Python function of the subset that numba compiles, with the types of its arguments. Out: the same function as machine
code. It is compiled at its first call, or for all of them by `python -m engine.bpe.jit`, and kept on disk.

numba keeps the code of a function beside a note of *its own file's* age. A function that calls one of another file holds a
copy of that function's code, and would go on using an old one after an update. So the folder's name holds a hash of all files
with compiled functions (those named `*kernels.py`): any change starts a new folder.

Compiled functions hold no reference to Python objects and release the interpreter's lock, so that threads run beside them.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_ENGINE = Path(__file__).resolve().parents[1]


def _kernel_files() -> list[Path]:
    return sorted([*_ENGINE.rglob("*kernels.py"), Path(__file__).resolve(), _ENGINE / "bpe" / "flat.py"])


def cache_home() -> Path:
    """The folder for what can be made again: TARGETSMITH_CACHE, else `targetsmith` in the user's cache folder."""
    named = os.environ.get("TARGETSMITH_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "targetsmith"


def _code_folder() -> Path:
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for file in _kernel_files():
        digest.update(file.read_bytes())
    return cache_home() / f"code-{digest.hexdigest()[:16]}"


CODE_FOLDER = os.environ.get("NUMBA_CACHE_DIR") or str(_code_folder())
importlib.import_module("numba.core.config").__dict__["CACHE_DIR"] = CODE_FOLDER

_DECLARED: list[tuple[Any, tuple[Any, ...]]] = []


def kernel(*types: Any, also: tuple[Any, ...] = (), inline: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Declare a compiled function with numba types of its arguments. also: a second list of types that it is compiled for.
    inline: put its code into every caller; a call hands over each array of a tuple, which costs more than a short function does.

    It would compile again for others; a test forbids that. So a constant in a call is written np.int64(0), not 0.
    """

    def declare(function: Callable[..., Any]) -> Any:
        compiled = numba.njit(nogil=True, cache=True, inline="always" if inline else "never")(function)
        _DECLARED.extend((compiled, each) for each in (types, also) if each)
        return compiled

    return declare


def declared() -> list[tuple[Any, tuple[Any, ...]]]:
    """All compiled functions of the modules imported so far, each with the types that it was declared for."""
    return list(_DECLARED)


def compile_all() -> int:
    """Compile every function of every `*kernels.py`, or read it from the folder. Returns how many there are."""
    for file in sorted(_ENGINE.rglob("*kernels.py")):
        importlib.import_module(".".join(["engine", *file.relative_to(_ENGINE).with_suffix("").parts]))
    for function, types in _DECLARED:
        function.compile(types)
    return len(_DECLARED)


if __name__ == "__main__":
    from engine.bpe import jit  # not this copy of the module, which has no functions

    print(f"{jit.compile_all()} compiled functions in {jit.CODE_FOLDER}")
