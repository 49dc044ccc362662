"""What a plan says about the inputs of its run, as typed values: the corpus files, the documents that are retried.

`Plan.semantic` is the JSON from which the fingerprint is made; whoever needs a value of it takes it from a property of Plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from schemas.errors import OutputError

RETRY = "retry"
"""Key of `semantic` that only the plan of a retry has (engine/plan/retry.py)."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the corpus, or a Hugging Face dataset as one file."""

    label: str  # its name in doc ids
    sha256: str  # hex, of the raw file, or of what its store says of its content; for a dataset, of texts, names and problems
    n_bytes: int  # of the raw file; for a dataset, 0
    n_rows: int  # records taken
    text_bytes: int  # UTF-8 bytes of the texts of these records
    unit_rows: tuple[int, ...]  # records of each unit, in order; they add up to n_rows
    unit_marks: tuple[tuple[int, int], ...] = ()  # (byte, line from 1) where each unit begins: of lines on a store
    source: str = ""  # of a mixture: the name of its [[corpus]] table
    share: tuple[int, int, int] | None = (
        None  # of a weighted mixture: records taken of the source, records of the source, and
    )
    # which of them is the file's first

    def as_json(self) -> dict[str, Any]:
        """As a plan has it: without what a corpus of one table on a disk does not have."""
        given = asdict(self)
        return {f.name: given[f.name] for f in fields(self) if f.default is MISSING or given[f.name] != f.default}


@dataclass(frozen=True, slots=True)
class Retry:
    """What is scored again. `of`: fingerprint of the run whose documents these are. rows: of the corpus, rising."""

    of: str
    rows: list[int]


def retry_of(semantic: Mapping[str, Any]) -> Retry | None:
    """The documents of a retry; None for any other run. OutputError when it is not in that form."""
    if RETRY not in semantic:
        return None
    said = semantic[RETRY]
    if not isinstance(said, dict) or said.keys() != {"of", "rows"} or not isinstance(said["rows"], list):
        raise _damaged("semantic.retry", said, 'an object with "of" and a list "rows"')
    return Retry(said["of"], said["rows"])


def corpus_files_of(semantic: Mapping[str, Any]) -> tuple[PlannedFile, ...]:
    """The corpus files of a plan, in order. OutputError when there are none or they are not in that form."""
    names = {field.name for field in fields(PlannedFile) if field.default is MISSING}
    more = {field.name for field in fields(PlannedFile)} - names
    files = setting(semantic, "corpus", "files")
    if not isinstance(files, list):
        raise _damaged("semantic.corpus.files", files, "a list of objects")
    found = []
    for file in files:
        if not isinstance(file, dict) or file.keys() - more != names or not isinstance(file["unit_rows"], list):
            raise _damaged("semantic.corpus.files", file, f"objects with {', '.join(sorted(names))}")
        found.append(PlannedFile(**{key: _as_tuple(value) for key, value in file.items()}))
    return tuple(found)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def setting(semantic: Mapping[str, Any], *keys: str) -> Any:
    """The value behind these keys, one inside the other; None where one of them is absent."""
    value: Any = semantic
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _damaged(where: str, got: Any, wanted: str) -> OutputError:
    return OutputError(
        f"plan.json, {where}: got {str(got)[:60]!r}, wanted {wanted}; nobody but `targetsmith score` writes that file: restore "
        "it from a copy"
    )
