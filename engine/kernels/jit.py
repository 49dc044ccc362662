"""How compiled functions are declared: a decorator around numba, and a folder that keeps the machine code between processes.

In: a Python function of the subset that numba compiles, with the types of its arguments. Out: the same function as machine
code. It is compiled at its first call, or for all of them by `python -m engine.kernels.jit`, and kept on disk.

numba keeps the code of a function beside a hash of *its own file*. A function that calls one of another file holds a copy of
that function's code, and would go on using an old one after an update. So the folder's name holds a hash of all files with
compiled functions (those named `*kernels.py`) and of those whose types and constants they hold (this package, and what is named
`*_arrays.py`): any change starts a new folder. Where the files lie does not matter: Ray copies a job's working folder to a new
place at every change of a run file, and numba's own folders, one per place, would have each such job compile all again.

Compiled functions hold no reference to Python objects and release the interpreter's lock, so that threads run beside them.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock
from llvmlite import binding

_ENGINE = Path(__file__).resolve().parents[1]


def kernel_files() -> list[Path]:
    """All files on which machine code depends."""
    here = Path(__file__).resolve().parent
    return sorted({*_ENGINE.rglob("*kernels.py"), *_ENGINE.rglob("*_arrays.py"), *here.glob("*.py")})


def cache_home() -> Path:
    """The folder for what can be made again: TARGETSMITH_CACHE, else `targetsmith` in the user's cache folder."""
    named = os.environ.get("TARGETSMITH_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "targetsmith"


def _code_folder() -> Path:
    machine = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    digest = hashlib.sha256(f"{numba.__version__} {sys.version} {machine}".encode())
    for file in kernel_files():
        digest.update(file.read_bytes())
    return cache_home() / f"code-{digest.hexdigest()[:16]}"


CODE_FOLDER = _code_folder()


_COMPLETE = "complete"
"""A file of this name in the folder: all functions are compiled."""


def is_compiled() -> bool:
    """Whether machine code of all of these functions is in the folder: some process has been through with `compile_all`."""
    return (CODE_FOLDER / _COMPLETE).is_file()


def _keeps_code() -> bool:
    """Whether the folder serves: it is complete, or can be written."""
    try:
        CODE_FOLDER.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=CODE_FOLDER).close()
    except OSError as error:
        if not is_compiled():
            warnings.warn(
                f"compiled functions: {CODE_FOLDER} cannot be written ({error}); want a folder with some 10 MB of room. Every "
                "process compiles them anew, a minute each time; name another folder with TARGETSMITH_CACHE",
                stacklevel=2,
            )
            return False
    return True


_KEEPS_CODE = _keeps_code()


class Place:
    """Where numba keeps a function of ours (it asks what its documented option CACHE_LOCATOR_CLASSES names): in one folder for
    all copies of the project on a machine. The folder's name stands for the contents of the files."""

    def __init__(self, folder: Path, line: int) -> None:
        self.folder = folder
        self.line = line

    @classmethod
    def from_function(cls, function: Any, file: str) -> Place:
        return cls(CODE_FOLDER / Path(file).resolve().parent.name, function.__code__.co_firstlineno)

    def ensure_cache_path(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(self.folder)

    def get_source_stamp(self) -> str:
        return CODE_FOLDER.name

    def get_disambiguator(self) -> str:
        return str(self.line)


@contextmanager
def _in_our_folder() -> Iterator[None]:
    """numba asks for the place when a function is declared. The option is one of the process, so it is set back."""
    options = importlib.import_module("numba.core.config").__dict__
    others = options["CACHE_LOCATOR_CLASSES"]
    options["CACHE_LOCATOR_CLASSES"] = f"{Place.__module__}.{Place.__qualname__}"
    try:
        yield
    finally:
        options["CACHE_LOCATOR_CLASSES"] = others


_DECLARED: list[tuple[Any, tuple[Any, ...]]] = []
_COMPILING = threading.RLock()
_STATE = {
    "done": 0,
    "busy": False,
}  # so many of them are compiled; whether some are being compiled, by whoever has the lock


def kernel(
    *types: Any, also: tuple[Any, ...] = (), inline: bool = False, allocates: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Declare a compiled function with numba types of its arguments. also: a second list of types that it is compiled for.
    inline: put its code into every caller; a call hands over each array of a tuple, which costs more than a short function does.
    allocates: it makes arrays of its own. All others are compiled without counts of references: numba would count every
    array of every tuple that is handed on, and a function that does little else then takes ten times as long. Arguments are
    kept alive by the caller.

    It would compile again for others; a test forbids that. So a constant in a call is written np.int64(0), not 0.
    """

    def declare(function: Callable[..., Any]) -> Any:
        counts: dict[str, Any] = {} if allocates else {"_nrt": False}
        with _in_our_folder():
            compiled = numba.njit(nogil=True, cache=_KEEPS_CODE, inline="always" if inline else "never", **counts)(
                function
            )
        _DECLARED.extend((compiled, each) for each in (types, also) if each)
        compile_one = compiled.compile

        def compile_in_order(sig: Any) -> Any:
            """numba compiles in passing what a function calls, with its caller's options. So those called come first."""
            compile_declared()
            return compile_one(sig)

        compiled.compile = compile_in_order
        return compiled

    return declare


def compile_declared(progress: Callable[[int, int], None] | None = None) -> None:
    """Compile all functions that are declared and not compiled yet, or read them from the folder: at the first call of any, in
    the order in which they were declared. progress: told (done, all)."""
    with _COMPILING:
        if _STATE["busy"]:
            return
        _STATE["busy"] = True
        try:
            while _STATE["done"] < len(_DECLARED):
                function, types = _DECLARED[_STATE["done"]]
                function.compile(types)
                _STATE["done"] += 1
                if progress:
                    progress(_STATE["done"], len(_DECLARED))
        finally:
            _STATE["busy"] = False


def declared() -> list[tuple[Any, tuple[Any, ...]]]:
    """All compiled functions of the modules imported so far, each with the types that it was declared for."""
    return list(_DECLARED)


def compile_all(progress: Callable[[int, int], None] | None = None) -> int:
    """Compile every function of every `*kernels.py`, or read it from the folder. Returns how many there are. progress: as for
    `compile_declared`. Of several processes that want what is not there one compiles and the others wait."""
    for file in sorted(_ENGINE.rglob("*kernels.py")):
        importlib.import_module(".".join(["engine", *file.relative_to(_ENGINE).with_suffix("").parts]))
    if is_compiled() or not _KEEPS_CODE:
        compile_declared(progress)
    else:
        with FileLock(f"{CODE_FOLDER}.lock"):
            compile_declared(progress)
        (CODE_FOLDER / _COMPLETE).touch()
    return len(_DECLARED)


if __name__ == "__main__":
    from engine.kernels import jit  # not this copy of the module, which has no functions

    print(f"{jit.compile_all()} compiled functions in {jit.CODE_FOLDER}")
