"""targetsmith demo: the embedded model and corpus through the real job, then one document and the summary.

The assets (jobs/demo_assets) were made by examples/make_demo.py: a small model really trained on arithmetic word
problems, and two student tokenizers of different kinds. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jobs.score import score
from jobs.show import show
from jobs.summary import print_summary
from schemas.runfile import load_run

ASSETS = Path(__file__).parent / "demo_assets"
SHOWN_ROWS = "0:10"


def demo(out: Path) -> None:
    """Score into `out`, print a document of the first student and the summary of all."""
    run = load_run(ASSETS / "run.toml").model_copy(update={"output": out.absolute()})
    outcome = score(run, "local")
    show(out, doc=None, rows=SHOWN_ROWS, top=3, student=None, view=None, stream=sys.stdout, near=[ASSETS])
    print_summary(outcome, sys.stdout)
    print(f"Next: targetsmith show {out} --doc 7, targetsmith cat {out} --student {run.student[0].name} --limit 1")


if __name__ == "__main__":
    from jobs.cli import main

    main(["demo", *sys.argv[1:]])
