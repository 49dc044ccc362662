"""targetsmith plan RUN.toml: what a run will take and give, before it is begun. The work: jobs/run/planning.py.

Progress goes to standard error, the plan to standard output. Nothing is written to the run's output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import main_of

EXAMPLE = "targetsmith plan run.toml --gpus 8 --gpu h100 --price 2.5"


def plan(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file (docs/runfile.md).")],
    sample: Annotated[
        int,
        typer.Option(min=0, help="Documents that are scored on this machine to measure; 0: only what tokenizers tell."),
    ] = 64,
    student: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokenizer of a student (folder, file or Hub id) instead of the run file's; again for several."
        ),
    ] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of the cluster; not given: this machine.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Their kind, such as a100: a speed worked out instead of the one measured here.")
    ] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option(min=0, help="Teacher tokens a second of one actor there, where you know it.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a GPU for an hour (of an actor, without GPUs), in any currency.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """What a run will take and give.

    Documents, tokens, regimes and why, evaluations, expected error, bytes, memory, hours, price, and what will go to quarantine.
    """
    from jobs.run.planning import Asked, plan_run
    from jobs.run.planning_text import as_text
    from schemas.runfile import load_run

    told = plan_run(load_run(run_file), Asked(sample, tuple(student or ()), gpus, gpu, tokens_per_s, price), sys.stderr)
    print(told.to_json() if as_json else as_text(told))


if __name__ == "__main__":
    main_of("plan")
