"""Which files a corpus has: globs -> paths and URLs, the names that doc ids give them, the sizes and hashes of files on disks."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from engine.corpus.remote import matches
from schemas.address import is_url, path_of, without_query
from schemas.errors import CorpusError
from schemas.redact import redacted


def list_files(patterns: Sequence[str], base_dir: Path) -> list[str]:
    """Absolute paths, and URLs, of the files that `patterns` name, sorted, each once. CorpusError: see `scan_corpus`."""
    found: set[str] = set()
    for given in patterns:
        if is_url(given):
            found |= set(matches(given))
            continue
        pattern = str(path_of(given)) if given.startswith("file://") else given
        whole = os.path.join(base_dir, os.path.expanduser(pattern))
        if os.path.isdir(whole):
            raise CorpusError(
                f"[corpus] paths {pattern!r}: got the folder {os.path.abspath(whole)}; wanted files. "
                f"{_instead(whole, pattern.rstrip('/'))}"
            )
        if os.path.exists(whole):  # also a file whose very name has "*" or "[" in it
            named = [whole]
        else:
            root = glob.escape(str(base_dir))
            named = glob.glob(os.path.join(root, os.path.expanduser(pattern)), recursive=True)
        files = {os.path.abspath(path) for path in named if not os.path.isdir(path)}
        if not files:
            raise CorpusError(
                f"[corpus] paths {pattern!r}: got no file; wanted at least one in {base_dir}. Correct the path; "
                f"relative ones start at the folder of the run file."
            )
        found |= files
    return sorted(found)


def _instead(folder: str, pattern: str) -> str:
    """What to write for a folder in `paths`."""
    there = set(os.listdir(folder))
    if there & {"dataset_dict.json", "state.json"}:  # what datasets' save_to_disk writes
        return f'It is one of save_to_disk: write dataset = "{pattern}" instead of paths.'
    return f'Write for example "{pattern}/*.jsonl".'


def labels(paths: Sequence[str], base_dir: Path) -> list[str]:
    """Names of the files in doc ids, all different; see CorpusFile. CorpusError for a name that is not UTF-8."""
    for path in paths:
        try:
            path.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CorpusError(f"{path!a}: got a file name that is not UTF-8; wanted UTF-8. Rename the file.") from error
    inside = {path: Path(os.path.relpath(path, base_dir)).as_posix() for path in paths if is_inside(path, base_dir)}
    outside = {path: Path(without_query(path)).parts for path in paths if path not in inside}
    # Every end of every path, counted: the shortest end that only one path has is its label.
    taken = set(inside.values())
    ends = Counter(parts[-n:] for parts in outside.values() for n in range(1, len(parts) + 1))
    chosen = dict(inside)
    for path, parts in outside.items():
        candidates = (Path(*parts[-n:]).as_posix() for n in range(1, len(parts) + 1) if ends[parts[-n:]] == 1)
        chosen[path] = next((label for label in candidates if label not in taken), Path(*parts).as_posix())
    named = [redacted(chosen[path]) for path in paths]  # labels are written to files
    if len(set(named)) < len(named):
        twice = next(label for label, count in Counter(named).items() if count > 1)
        raise CorpusError(
            f"[corpus] paths: got several files that are called {twice} once credentials and queries are left out; wanted "
            "names that differ. Rename the folders."
        )
    return named


def is_inside(path: str, base_dir: Path) -> bool:
    """Whether an absolute path lies below the folder of the run file."""
    return not is_url(path) and Path(path).is_relative_to(base_dir)


def raw_facts(path: str) -> tuple[int, str, int]:
    """Size, sha256 (hex) and st_mtime_ns of a file. CorpusError when it is empty or cannot be read."""
    try:
        with open(path, "rb") as stream:
            stamp = os.fstat(stream.fileno()).st_mtime_ns
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            n_bytes = stream.tell()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}). Allow it, or correct [corpus] paths.") from error
    if n_bytes == 0:
        raise CorpusError(f"{path}: got an empty file; wanted documents. Fill it, or take it out of [corpus] paths.")
    return n_bytes, sha256, stamp
