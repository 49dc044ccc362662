"""targetsmith score RUN.toml: a corpus becomes finished shards, then a summary. The work: jobs/run/job.py.

Progress goes to standard error, the summary to standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import main_of

EXAMPLE = "targetsmith score run.toml --address auto"


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
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Progress as JSON, an object a line.")] = False,
) -> None:
    """Score a corpus, then print a summary.

    Does all that is missing of the run; after a kill the same command goes on. Ends with 3 when nothing was scored, or more than
    half of the documents are in quarantine.
    """
    from jobs.run import budget, job  # here, as in every verb: torch and Ray take seconds, `--help` must not
    from jobs.run.summary import as_json as summary_as_json
    from jobs.run.summary import print_summary
    from schemas.runfile import load_run

    run, begin = load_run(run_file), job.retry_quarantined if retry_quarantined else job.score
    outcome = begin(run, address, log_json=log_json)
    if outcome is None:
        told = f"{run.output}: nothing is in quarantine any more, nothing to retry"
        print(json.dumps({"output": str(run.output), "message": told}) if as_json else told)
        return
    if as_json:
        print(summary_as_json(outcome))
    else:
        print_summary(outcome, sys.stdout)
    budget.check_finished(outcome.store, outcome.manifest, retry=retry_quarantined)
    if not as_json:
        out = outcome.store
        print(f"look at a document: targetsmith show {out}; check the files: targetsmith verify {out}")


if __name__ == "__main__":
    main_of("score")
