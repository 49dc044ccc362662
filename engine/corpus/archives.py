"""The samples of a .tar archive as objects, in the way of WebDataset: neighbouring members with the same name up to the first dot
are one record, whose columns are the endings of their names.

`a/7.txt`, `a/7.json` -> {"__key__": "a/7", "txt": ..., "text": ..., and what the JSON object holds}. Members that hold neither
text nor JSON (images, sounds) are passed over.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import IO

from engine.corpus.values import Problem, decode

TEXTS = ("txt", "text", "md", "markdown", "rst", "tex", "html", "cls")
"""Endings of members that are texts; each is a column of that name, the first of a sample also `text`."""


def samples(stream: IO[bytes]) -> Iterator[dict[str, object] | Problem]:
    """The samples of an archive, in its order, one in memory at a time. Raises tarfile.TarError."""
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        files = (member for member in archive if member.isfile())
        for key, members in groupby(files, key=lambda member: _named(member.name)[0]):
            sample, problem, is_known = dict[str, object]({"__key__": key}), None, False
            for member in members:
                ending = _named(member.name)[1]
                if ending not in (*TEXTS, "json"):
                    continue
                is_known, file = True, archive.extractfile(member)
                data = file.read() if file is not None else b""
                if ending != "json":
                    sample[ending] = data
                    sample.setdefault("text", data)
                    continue
                found = _object(data, member.name)
                problem = found if isinstance(found, Problem) else problem
                sample.update(found if isinstance(found, dict) else {})
            if is_known:
                yield problem or sample
    while stream.read(1 << 16):  # what is packed is checked to its end
        pass


def _named(path: str) -> tuple[str, str]:
    """(path up to the first dot of its last part, what follows in lower case)."""
    folder, slash, name = path.rpartition("/")
    stem, _, ending = name.partition(".")
    return folder + slash + stem, ending.lower()


def _object(data: bytes, name: str) -> dict[str, object] | Problem:
    text = decode(data)
    if isinstance(text, Problem):
        return Problem(text.reason, f"{name!a}: {text.detail}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Problem("malformed_json", f"{name!a}: {error}")
    return found if isinstance(found, dict) else Problem("malformed_json", f"{name!a} is no object")
