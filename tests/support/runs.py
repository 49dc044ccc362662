"""Small real runs for tests: the demo's teacher and tokenizers over a few documents, scored in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

import engine.plan.vocabularies
import engine.scoring.stages
from engine.card.describe import describe
from engine.corpus.document import Document
from engine.corpus.scan import CorpusScan, scan_corpus
from engine.corpus.units import read_units, sample
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.dataset.layout import load_plan
from engine.dataset.store import PosixStore, open_store
from engine.plan.make_plan import ENGINE_VERSION, make_plan
from engine.plan.pin import pin
from engine.plan.retry import find_retry, read_retried, retry_plan
from engine.plan.token_files import publish_tokens
from jobs.pool.events import Death
from jobs.pool.unit_worker import UnitWorker, join_outcomes, publish
from schemas.manifest import Manifest
from schemas.runfile import RunConfig, load_run

ASSETS = Path(__file__).resolve().parents[2] / "jobs" / "demo_assets"

TEXTS = (
    "Anna has 3 apples and buys 4 more. 3 + 4 = 7. Anna has 7 apples.",
    "Łukasz pays £12 for 4 mirrors.\nHow much is one? 12 / 4 = 3.",
    "Question: 9 × 9?\nAnswer: 81\n#### 81",
    "A field is 15 m long and 8 m wide — its area is 120 m².",
    "one",
)


STUDENTS = {"sp": ASSETS / "student_sp", "bl": ASSETS / "student_bl"}


def write_run(
    folder: Path,
    *,
    texts: tuple[str, ...] = TEXTS,
    extra: str = "",
    targets: str = "top_k = 16",
    lines: str = "",
    students: dict[str, Path] = STUDENTS,
    output: str = "out",
) -> Path:
    """A run file in `folder` with its corpus: one line per text, then `lines` as they are. Two documents per unit."""
    corpus = "".join(json.dumps({"id": f"t{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    (folder / "corpus.jsonl").write_text(corpus + lines, encoding="utf-8")
    tables = "\n".join(
        f'[[student]]\nname = "{name}"\ntokenizer = {json.dumps(str(place))}' for name, place in students.items()
    )
    run_file = folder / "run.toml"
    run_file.write_text(
        f"""
output = {json.dumps(output)}
[teacher]
model = {json.dumps(str(ASSETS / "teacher"))}
[corpus]
paths = ["corpus.jsonl"]
id = "id"
unit_documents = 2
{tables}
[targets]
{targets}
{extra}
""",
        encoding="utf-8",
    )
    return run_file


def write_subset(folder: Path) -> Path:
    """A tokenizer in `folder`: the demo teacher's with the first third of its merges, ids as they come."""
    shutil.copytree(ASSETS / "teacher", folder, ignore=shutil.ignore_patterns("model*", "config.json", "gen*"))
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    model = spec["model"]
    late = model["merges"][len(model["merges"]) // 3 :]
    model["merges"] = model["merges"][: len(model["merges"]) // 3]
    gone = {"".join(pair.split(" ") if isinstance(pair, str) else pair) for pair in late}
    named = {token["content"] for token in spec["added_tokens"]}
    kept = [token for token in model["vocab"] if token not in gone or token in named]
    model["vocab"] = {token: number for number, token in enumerate(kept)}
    for token in spec["added_tokens"]:
        token["id"] = model["vocab"].setdefault(token["content"], len(model["vocab"]))
    file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    return folder


_DEMO = tuple(str(ASSETS / name) for name in ("teacher", "student_sp", "student_bl"))


def _once(make: Callable[..., Any], kept: Callable[..., bool]) -> Callable[..., Any]:
    """`make`, whose results for arguments that are `kept` are made once in this process."""
    made = cache(make)
    return lambda *args, **more: (made if kept(*args) else make)(*args, **more)


_ONCE = (
    (engine.plan.vocabularies, "load_vocabulary", lambda place, *_: place in _DEMO),
    (engine.scoring.stages, "build_segmenter", lambda vocabulary, *_: vocabulary.name in _DEMO),
    (engine.scoring.stages, "CanonicalNext", lambda segmenter, *_: segmenter.vocabulary.name in _DEMO),
)
_MADE = [(module, name, _once(getattr(module, name), kept)) for module, name, kept in _ONCE]


@contextmanager
def demo_tokenizers_once() -> Iterator[None]:
    """The demo's tokenizers are read once in this process, and what is learned of them stays learned: seconds a run."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, made in _MADE:
            patch.setattr(module, name, made)
        yield


def score_here(run_file: Path, died: Container[str] = ()) -> Path:
    """Score a run in this process, without Ray; returns its output, which is a local folder."""
    run = load_run(run_file)
    assert isinstance(run.output, Path)
    score_run(run, died)
    return run.output


def score_run(run: RunConfig, died: Container[str] = ()) -> Manifest:
    """Do all that is missing of a run in this process, without Ray. died: names of documents that are taken to kill their
    process whenever they are scored, so that the run has them in quarantine."""
    with demo_tokenizers_once():
        return _score_run(run, died)


def _score_run(run: RunConfig, died: Container[str]) -> Manifest:
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    missing = {unit.index for unit in plan.units} - set(open_output(run.output, plan))
    publish_tokens(open_store(run.output), run, plan)
    if missing:
        worker = UnitWorker(pin(run), plan, _learned(run, scan))
        for unit, documents in read_units(run.corpus, scan, missing):
            if any(document.doc_id in died for document in documents):
                alone = [Death("died") if d.doc_id in died else worker.score_alone(d) for d in documents]
                publish(run.output, plan, unit, join_outcomes(plan, list(zip(documents, alone, strict=True))))
            else:
                worker.score(unit, documents)
    return finish(run.output, plan, engine_version=ENGINE_VERSION, describe=partial(describe, run=run))


def retry_here(run_file: Path) -> Path:
    """`score --retry-quarantined` in this process, without Ray; returns its output, which is a local folder."""
    with demo_tokenizers_once():
        return _retry(load_run(run_file))


def _retry(run: RunConfig) -> Path:
    store, rows = find_retry(run.output)
    assert rows and isinstance(store, PosixStore)
    scan, base = scan_corpus(run.corpus, run.base_dir), load_plan(run.output)
    plan = retry_plan(make_plan(run, scan), base.fingerprint, scan, rows)
    run = run.model_copy(update={"output": store.root})
    open_output(run.output, plan)
    publish_tokens(store, run, plan)
    worker = UnitWorker(pin(run), plan, _learned(run, scan))
    for unit, documents in read_retried(run.corpus, scan, rows, range(len(plan.units))):
        worker.score(unit, documents)
    finish(run.output, plan, engine_version=ENGINE_VERSION, describe=partial(describe, run=run))
    return store.root


def _learned(run: RunConfig, scan: CorpusScan) -> list[Document]:
    return sample(run.corpus, scan, run.targets.calibration_documents)
