"""targetsmith demo: the embedded model and corpus through the real job, then one document and the summary.

The assets (jobs/demo_assets) were made by examples/make_demo.py: a small model really trained on arithmetic word
problems, and two student tokenizers of different kinds. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.app import main_of

if TYPE_CHECKING:
    from schemas.runfile import RunConfig

ASSETS = Path(__file__).parent / "demo_assets"
SHOWN_ROWS = "0:10"

EXAMPLE = "targetsmith demo --out demo_out"


def demo(
    out: Annotated[Path, typer.Option(help="Output folder; a finished or interrupted one is resumed.")] = Path(
        "demo_out"
    ),
) -> None:
    """Score the embedded demo corpus.

    Through Ray on this machine; then shows one document and prints the summary.
    """
    from jobs.look.side_by_side import show_document
    from jobs.run.job import score
    from jobs.run.summary import print_summary

    run = demo_run(out)
    outcome = score(run, "local")
    show_document(out, doc=None, rows=SHOWN_ROWS, top=3, student=None, view=None, stream=sys.stdout)
    print_summary(outcome, sys.stdout)
    print(
        f"Next: targetsmith show {out} --doc 7, targetsmith report {out} (a page for the browser), targetsmith cat {out} "
        f"--student {run.student[0].name} --limit 1"
    )


def demo_run(out: Path) -> RunConfig:
    """The embedded run with absolute paths: they go into the output, so that `show` finds the tokenizers from any folder."""
    from engine.plan.pin import pin
    from schemas.runfile import load_run

    return pin(load_run(ASSETS / "run.toml").model_copy(update={"output": out.absolute()}))


if __name__ == "__main__":
    main_of("demo")
