"""What a run was made from, for its card: teacher, tokenizers and corpus by name, revision and hash; and the run file.

Names and revisions are the run file's, hashes are the plan's: where no run file is known, hashes are all there is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import tomli_w

from schemas.manifest import Manifest, Plan
from schemas.plan_inputs import PlannedFile, setting
from schemas.products import TEACHER
from schemas.redact import without_secrets
from schemas.runfile import RunConfig

SHOWN_FILES = 20


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that went into a run. revision: a commit of the Hub, or what the run file names; "" for local files."""

    what: str
    name: str
    revision: str
    content: str  # how its content is told: a hash, or where the hashes are


def inputs_of(plan: Plan, manifest: Manifest, run: RunConfig | None, pinned: RunConfig | None) -> list[Input]:
    """pinned: `run` with the commits of its Hub names (engine/plan/pin.py)."""
    hashes = setting(plan.semantic, "vocabularies")
    hashes = hashes if isinstance(hashes, dict) else {}
    if run is None or pinned is None:
        return [
            Input(f"tokenizer of {product}", facts.tokenizer, "", f"vocabulary {facts.tokenizer_hash}")
            for product, facts in manifest.products.items()
        ]
    teacher, commits = run.teacher, pinned.teacher
    found = [Input("teacher", without_secrets(teacher.model), commits.revision or "", "files below")]
    if teacher.adapter is not None:
        found.append(
            Input(
                "adapter of the teacher",
                without_secrets(teacher.adapter),
                commits.adapter_revision or "",
                "files below",
            )
        )
    for source, commit in zip(run.tokenizers, pinned.tokenizers, strict=True):
        what = "tokenizer of the teacher" if source.product == TEACHER else f"tokenizer of {source.product}"
        known = hashes.get(source.product) or "of no product"
        found.append(Input(what, without_secrets(source.name), commit.revision or "", f"vocabulary {known}"))
    for part in run.corpus.parts or (run.corpus,):
        what = f"corpus {part.source}" if part.source else "corpus"
        if part.dataset is None:
            found.append(Input(what, ", ".join(without_secrets(path) for path in part.paths), "", "files below"))
        else:
            named = ", ".join(filter(None, (part.dataset, part.name, part.split)))
            found.append(Input(what, without_secrets(named), part.revision or "main, not pinned", "sha256 below"))
    return found


def checksums(plan: Plan) -> str:
    """The files of teacher and corpus as `sha256sum` writes them, at most SHOWN_FILES of each; "" where the plan has none."""
    lines: list[str] = []
    for title, key in (("teacher", "teacher_files"), ("adapter", "adapter_files")):
        files = setting(plan.semantic, key)
        lines += _shown([(str(sha256), f"{title}/{name}") for name, sha256 in _sorted(files)], key)
    imported = setting(plan.semantic, "imported", "files")
    named = (
        [(str(file["sha256"]), f"imported/{file['name']}") for file in imported] if isinstance(imported, list) else []
    )
    lines += _shown(named, "imported.files")
    corpus = plan.corpus_files if plan.has_corpus and setting(plan.semantic, "corpus", "files") else ()
    lines += _shown([(file.sha256, _label(file)) for file in corpus], "corpus.files")
    return "\n".join(lines)


def run_file(run: RunConfig | None) -> str:
    """The run file as TOML, without the keys that change no result, and without secrets; "" where it is not known."""
    return without_secrets(tomli_w.dumps(run.given, multiline_strings=True)) if run is not None and run.given else ""


def _sorted(files: object) -> list[tuple[str, object]]:
    return sorted(files.items()) if isinstance(files, dict) else []


def _label(file: PlannedFile) -> str:
    """Names of files may hold anything."""
    text = without_secrets(f"corpus/{file.source}/{file.label}" if file.source else f"corpus/{file.label}")
    return text if text.isprintable() else json.dumps(text)


def _shown(files: list[tuple[str, str]], key: str) -> list[str]:
    lines = [f"{sha256}  {name}" for sha256, name in files[:SHOWN_FILES]]
    left = len(files) - SHOWN_FILES
    return lines + ([f"# {left:,} more: semantic.{key} in _engine/plan.json"] if left > 0 else [])
