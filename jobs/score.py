"""targetsmith score RUN.toml: a corpus becomes finished shards, then a summary. The work: jobs/run/job.py.

Progress goes to standard error, the summary to standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import main_of


def score(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file (docs/runfile.md).")],
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: HOST:PORT or auto; 'local' for this machine. Overrides [ray] address."),
    ] = None,
    retry_quarantined: Annotated[
        bool,
        typer.Option(
            "--retry-quarantined", help="Score what a finished run has in quarantine again, into OUT-retry-N."
        ),
    ] = False,
) -> None:
    """Score a corpus, then print a summary.

    Does all that is missing of the run; after a kill the same command goes on. Ends with 3 when nothing was scored, or more than
    half of the documents are in quarantine.
    """
    from jobs.run import budget, job  # here, as in every verb: torch and Ray take seconds, `--help` must not
    from jobs.run.summary import print_summary
    from schemas.runfile import load_run

    run = load_run(run_file)
    outcome = job.retry_quarantined(run, address) if retry_quarantined else job.score(run, address)
    if outcome is None:
        print(f"{run.output}: nothing is in quarantine any more, nothing to retry")
    else:
        print_summary(outcome, sys.stdout)
        if not retry_quarantined:  # its documents are known to be bad
            budget.check_finished(outcome.store, outcome.manifest)
        print(
            f"look at a document: targetsmith show {outcome.store}; check the files: targetsmith verify {outcome.store}"
        )


if __name__ == "__main__":
    main_of("score")
