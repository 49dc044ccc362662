"""Small real runs for tests: the demo's teacher and tokenizers over a few documents, scored in this process."""

from __future__ import annotations

import json
from pathlib import Path

from engine.corpus import read_units, scan_corpus
from engine.finish import finish
from engine.plan import ENGINE_VERSION, make_plan, pin
from engine.shards import open_output
from jobs.worker import UnitWorker
from schemas.runfile import load_run

ASSETS = Path(__file__).resolve().parent.parent / "jobs" / "demo_assets"

TEXTS = (
    "Anna has 3 apples and buys 4 more. 3 + 4 = 7. Anna has 7 apples.",
    "Łukasz pays £12 for 4 mirrors.\nHow much is one? 12 / 4 = 3.",
    "Question: 9 × 9?\nAnswer: 81\n#### 81",
    "A field is 15 m long and 8 m wide — its area is 120 m².",
    "one",
)


def write_run(
    folder: Path, *, texts: tuple[str, ...] = TEXTS, extra: str = "", targets: str = "top_k = 16", lines: str = ""
) -> Path:
    """A run file in `folder` with its corpus: one line per text, then `lines` as they are. Two documents per unit."""
    corpus = "".join(json.dumps({"id": f"t{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    (folder / "corpus.jsonl").write_text(corpus + lines, encoding="utf-8")
    run_file = folder / "run.toml"
    run_file.write_text(
        f"""
output = "out"
[teacher]
model = {json.dumps(str(ASSETS / "teacher"))}
[corpus]
paths = ["corpus.jsonl"]
id = "id"
unit_documents = 2
[[student]]
name = "sp"
tokenizer = {json.dumps(str(ASSETS / "student_sp"))}
[[student]]
name = "bl"
tokenizer = {json.dumps(str(ASSETS / "student_bl"))}
[targets]
{targets}
{extra}
""",
        encoding="utf-8",
    )
    return run_file


def score_here(run_file: Path) -> Path:
    """Score a run in this process, without Ray; returns its output folder."""
    run = load_run(run_file)
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    worker = UnitWorker(pin(run), plan)
    for unit, documents in read_units(run.corpus, scan, range(len(plan.units))):
        worker.score(unit, documents)
    finish(run.output, plan, engine_version=ENGINE_VERSION)
    return run.output
