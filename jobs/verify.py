"""targetsmith verify OUT: is what lies there what was written? Nothing is changed. The work: jobs/look/verification.py.

Findings go to standard output, one line each, progress to standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import OutArgument

EXAMPLE = "targetsmith verify out --run run.toml"


def verify(
    out: OutArgument,
    run_file: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN.toml",
            help="The run file: its corpus is compared; --rescore and --oracle need it, too.",
        ),
    ] = None,
    rescore: Annotated[int, typer.Option(min=0, help="So many documents are scored again and compared.")] = 0,
    oracle: Annotated[
        int, typer.Option(min=0, help="So many short documents are scored without tolerance: do the widths hold?")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Which documents are taken for --rescore and --oracle.")] = 0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="--rescore: nats by which a log-probability may differ.")
    ] = 0.011,
    complete: Annotated[bool, typer.Option("--complete", help="An unfinished run is a finding.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Check an output, down to every row.

    Exit code 1 and a list of findings when anything is wrong.
    """
    from jobs.look.verification import verify_and_print

    sound = verify_and_print(
        out,
        run_file=run_file,
        rescore=rescore,
        oracle=oracle,
        seed=seed,
        tolerance=tolerance,
        complete=complete,
        as_json=as_json,
        stream=sys.stdout,
        notes=sys.stderr,
    )
    if not sound:
        raise typer.Exit(1)


if __name__ == "__main__":
    main_of("verify")
