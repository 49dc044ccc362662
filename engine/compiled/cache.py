"""Compiled pairs in files: made once on a machine, read by all its processes in less than two seconds.

In: two tokenizers and a folder. Out: a `CompiledPair` whose arrays are pages of files, so that the processes of a machine
share them. The pair's folder is named by all that the arrays depend on: both tokenizers' contents, the code that makes them,
and the versions of the libraries that it asks. It appears whole, under its name, or not at all. One process makes it while
others that want it wait for a lock, which the system takes back when its holder dies. Every file is checked when it is read;
what is damaged is made again.

A pair's folder holds `pair.json` (what the files are, their lengths and checksums), one .npy file for each array, and
`states/`: a small .json file for each pending part that was met, and the arrays of states by content, since most states share
them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from filelock import FileLock, Timeout

from engine.alignment.openness import Openness
from engine.bpe.flatten import table_of
from engine.bpe.merges import MergeTable
from engine.bpe.pretokenizer import Splitter, build_splitter
from engine.bpe.segmenter import Segmenter
from engine.bpe.vocabulary import Vocabulary
from engine.compiled.answers import Answers, Progress, silent
from engine.compiled.pair import CompiledPair, compile_pair
from engine.compiled.state import STATE_ARRAYS, State, digest_of
from engine.compiled.suffixes import Suffixes
from engine.kernels.flat import FlatTokenizer
from engine.kernels.jit import cache_home

FORMAT = 6
_MOST_STATE_BYTES = 250_000_000  # of saved states of one pair; further ones live in memory only
_WAIT_S = 3.0
_CODE = (
    "kernels",
    "bpe",
    "alignment",
    "compiled",
)  # what is not asked for here does not matter, but the list is simple


def open_pair(
    teacher: Vocabulary,
    student: Vocabulary,
    *,
    folder: Path | None = None,
    merges: tuple[MergeTable, MergeTable] | None = None,
    splitter: Splitter | None = None,
    progress: Progress = silent,
) -> CompiledPair:
    """The pair from its files, made and kept there when there are none.

    folder: of all pairs; None: `cache_home()`, which TARGETSMITH_CACHE names. merges, splitter, progress: as for
    `compile_pair`. Where the folder cannot be written the pair is made all the same, with a warning that the next process
    will make it again.
    """
    home = (folder or cache_home()) / f"pair-{FORMAT}-{key_of(teacher, student)}"
    splitter = splitter or build_splitter(student)
    known = _read(home, student, merges, splitter)
    if known is not None:
        return known
    made = None
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with _locked(home, progress):
            known = _read(home, student, merges, splitter)  # another process may have made it meanwhile
            if known is not None:
                return known
            made = compile_pair(teacher, student, merges=merges, splitter=splitter, progress=progress)
            _write(home, made)
            return _read(home, student, merges, splitter) or made
    except OSError as error:
        warnings.warn(
            f"compiled pair: {home} cannot be written ({error}); want a folder with some 300 MB of room. It is made in memory, "
            "again in every process; name another folder with TARGETSMITH_CACHE",
            stacklevel=2,
        )
        return made or compile_pair(teacher, student, merges=merges, splitter=splitter, progress=progress)


@contextmanager
def _locked(home: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a pair; while another process holds it, say so every few seconds."""
    lock = FileLock(f"{home}.lock")
    while True:
        try:
            lock.acquire(timeout=_WAIT_S)
            break
        except Timeout:
            progress(0, 1, "another process compiles this pair")
    try:
        yield
    finally:
        lock.release()


def key_of(teacher: Vocabulary, student: Vocabulary) -> str:
    """The name of a pair's folder: a hash of all that its arrays depend on."""
    digest = hashlib.sha256()
    versions = (np.__version__, tokenizers.__version__, unicodedata.unidata_version)
    for part in (teacher.content_hash, student.content_hash, *versions):
        digest.update(f"{part}\n".encode())
    engine = Path(__file__).resolve().parents[1]
    for file in sorted(f for package in _CODE for f in (engine / package).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


# ==== a pair


def _arrays(pair: CompiledPair) -> dict[str, np.ndarray]:
    """All arrays of a pair by name."""
    found = {"columns": pair.columns}
    for part, flat in (("teacher", pair.teacher), ("student", pair.student)):
        found |= {f"{part}.{name}": value for name, value in flat._asdict().items() if isinstance(value, np.ndarray)}
    found |= {f"suffixes.{f.name}": getattr(pair.suffixes, f.name) for f in fields(Suffixes)}
    for lead, answers in pair.answers.items():
        found |= {
            f"answers{lead.hex()}.{f.name}": getattr(answers, f.name) for f in fields(Answers) if f.name != "classes"
        }
    return found


def _write(home: Path, pair: CompiledPair) -> None:
    """Write a pair beside its place, then move it there. Called under the lock."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
    try:
        files: dict[str, list[Any]] = {}
        written: dict[int, str] = {}  # arrays that are one object are one file
        for name, array in _arrays(pair).items():
            same = written.setdefault(id(array), name)
            if same == name:
                file = temporary / f"{name}.npy"
                _save(file, array)
                files[name] = [file.name, file.stat().st_size, _checksum(file)]
            else:
                files[name] = files[same]
        meta = {
            "format": FORMAT,
            "teacher": pair.teacher_name,
            "student": pair.vocabulary.name,
            "by_characters": [pair.teacher.by_characters, pair.student.by_characters],
            "classes": {lead.hex(): answers.classes for lead, answers in pair.answers.items()},
            "files": files,
        }
        (temporary / "states").mkdir()
        temporary.chmod(0o755)  # a folder for one's own eyes until now
        _put(temporary / "pair.json", json.dumps(meta).encode())
        if home.exists():  # damaged: it was not readable a moment ago, and nobody else holds the lock
            os.rename(home, temporary / "damaged")
        os.rename(temporary, home)
        shutil.rmtree(home / "damaged", ignore_errors=True)
        _sync(home.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(
    home: Path, student: Vocabulary, merges: tuple[MergeTable, MergeTable] | None, splitter: Splitter
) -> CompiledPair | None:
    """The pair in this folder, None when there is none or a file is not what it was."""
    try:
        meta = json.loads((home / "pair.json").read_bytes())
        arrays: dict[str, np.ndarray] = {}
        for name, (file, size, checksum) in meta["files"].items():
            path = home / file
            if path.stat().st_size != size or _checksum(path) != checksum:
                return None
            arrays[name] = _load(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    flats = [
        FlatTokenizer(
            **{f: arrays[f"{part}.{f}"] for f in FlatTokenizer._fields if f != "by_characters"},
            by_characters=by_characters,
        )
        for part, by_characters in zip(("teacher", "student"), meta["by_characters"], strict=True)
    ]
    answers = {}
    for lead, classes in meta["classes"].items():
        parts = {f.name: arrays[f"answers{lead}.{f.name}"] for f in fields(Answers) if f.name != "classes"}
        answers[bytes.fromhex(lead)] = Answers(**parts, classes=tuple((int(mask), str(own)) for mask, own in classes))
    return CompiledPair(
        teacher=flats[0],
        student=flats[1],
        suffixes=Suffixes(**{f.name: arrays[f"suffixes.{f.name}"] for f in fields(Suffixes)}),
        columns=arrays["columns"],
        answers=answers,
        vocabulary=student,
        teacher_name=meta["teacher"],
        splitter=splitter,
        openness=Openness(Segmenter(student, merges[1] if merges else table_of(flats[1], student), splitter)),
        kept=StateFiles(home / "states"),
    )


# ==== states


@dataclass
class StateFiles:
    """The states of one pair in a folder. Writers of one state write the same bytes, so that none waits for another."""

    folder: Path
    room: int | None = None  # bytes that may still be written; counted at the first state that is saved

    def load(self, pair: CompiledPair, left: str, lead: bytes, partial: bytes) -> State | None:
        """The state, None when it is not kept or damaged."""
        described = _described(pair.splitter, left)
        try:
            meta = json.loads(self._file(described, lead, partial).read_bytes())
            if (meta["left"], meta["lead"], meta["partial"]) != (described, lead.hex(), partial.hex()):
                return None
            arrays = {}
            for name in STATE_ARRAYS:
                arrays[name] = _load(self.folder / f"{meta[name]}.npy")
                if digest_of(arrays[name]).hex() != meta[name]:
                    return None
            variants = tuple((tuple(inside), bool(seam)) for inside, seam in meta["variants"])
            return pair.shared(
                State(
                    **arrays,
                    variants=variants,
                    simple=bool(meta["simple"]),
                    units=int(meta["units"]),
                    partial=len(partial),
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, pair: CompiledPair, left: str, lead: bytes, partial: bytes, state: State) -> None:
        """Keep a state. A folder that cannot be written, or is full, is let be: states can be made again."""
        try:
            if self.room is None:
                self.room = _MOST_STATE_BYTES - sum(f.stat().st_size for f in self.folder.iterdir())
            described = _described(pair.splitter, left)
            meta: dict[str, Any] = {
                "left": described,
                "lead": lead.hex(),
                "partial": partial.hex(),
                "variants": state.variants,
                "simple": state.simple,
                "units": state.units,
            }
            for name in STATE_ARRAYS:
                array = getattr(state, name)
                meta[name] = digest_of(array).hex()
                file = self.folder / f"{meta[name]}.npy"
                if file.exists() and file.stat().st_size > array.nbytes:
                    continue
                if array.nbytes > self.room:
                    return
                self.room -= array.nbytes
                with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as temporary:
                    np.save(temporary, array)
                os.replace(temporary.name, file)
            _put(self._file(described, lead, partial), json.dumps(meta).encode())
        except OSError:
            self.room = 0

    def _file(self, described: Any, lead: bytes, partial: bytes) -> Path:
        name = hashlib.sha256(json.dumps([described, lead.hex(), partial.hex()]).encode()).hexdigest()[:32]
        return self.folder / f"{name}.json"


def _described(splitter: Splitter, left: str) -> Any:
    """The classes of a pending part in a way that is the same in every process."""
    return left if splitter.byte_units else [list(splitter.describe(unit)) for unit in left]


# ==== files


def _load(path: Path) -> np.ndarray:
    """An array whose memory is the file's pages. Copied where it is written to, which never happens: compiled functions are
    compiled for arrays that may be written."""
    try:
        return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except ValueError:  # an empty array has no pages
        return np.load(path, allow_pickle=False)


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _put(path: Path, data: bytes) -> None:
    """Write a small file whole."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as temporary:
        temporary.write(data)
        temporary.flush()
        os.fsync(temporary.fileno())
    os.replace(temporary.name, path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> int:
    """CRC-32 of a file: it finds torn and damaged files, at a gigabyte a second."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found = zlib.crc32(block, found)
    return found
