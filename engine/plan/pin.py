"""A run file as actors get it: absolute paths, and of each Hub name the commit that the plan was made from.

run file + what is in the cache of the Hub -> run file
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from engine.bpe.tokenizer_files import TOKENIZER_PATTERNS
from engine.chat.template_files import template_text
from engine.plan.adapter_files import ADAPTER_FILES
from engine.plan.teacher_place import HUB_FILES
from schemas.address import gguf_parts
from schemas.runfile import RunConfig


def pin(run: RunConfig) -> RunConfig:
    """The run as actors should see it: local paths absolute, Hub names with the commit that the plan was made from.

    Actors start hours apart and on other machines; a branch of the Hub may have moved by then. Call after `make_plan`,
    which has fetched everything and has reported what cannot be had.
    """
    model, revision = _pinned(run, run.teacher.model, run.teacher.revision, HUB_FILES)
    given = template_text(run, run.teacher.chat_template, "[teacher]")
    teacher = {"model": model, "revision": revision, "chat_template": given}
    if run.teacher.tokenizer is not None:
        name, revision = _pinned(run, run.teacher.tokenizer, run.teacher.tokenizer_revision, TOKENIZER_PATTERNS)
        teacher |= {"tokenizer": name, "tokenizer_revision": revision}
    if run.teacher.adapter is not None:
        name, revision = _pinned(run, run.teacher.adapter, run.teacher.adapter_revision, ADAPTER_FILES)
        teacher |= {"adapter": name, "adapter_revision": revision}
    students = []
    for student in run.student:
        tokenizer, revision = _pinned(run, student.tokenizer, student.revision, TOKENIZER_PATTERNS)
        given = template_text(run, student.chat_template, f"[[student]] {student.name}")
        pinned = {"tokenizer": tokenizer, "revision": revision, "chat_template": given}
        students.append(student.model_copy(update=pinned))
    return run.model_copy(update={"teacher": run.teacher.model_copy(update=teacher), "student": tuple(students)})


def _pinned(run: RunConfig, name: str, revision: str | None, patterns: list[str]) -> tuple[str, str | None]:
    """(absolute path or Hub id, commit) of a model or tokenizer. patterns: its files in the Hub's repository."""
    place = run.locate(name)
    if Path(place).exists():
        return place, revision
    repository, file = gguf_parts(name)
    return name, Path(
        snapshot_download(repository, revision=revision, allow_patterns=[file] if file else patterns)
    ).name
