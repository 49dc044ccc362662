"""targetsmith verify OUT: is what lies there what was written, and does it keep docs/format.md? Nothing is changed.

    structure and rows    always; needs nothing but the output
    --rescore N           N documents again by the live teacher, beside the stored rows (engine/rescore.py)
    --oracle N            N short documents without any tolerance: is the certified width true?

Findings go to standard output, one line each, progress to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from engine.findings import Finding, Report
from engine.rescore import Comparison, open_rescorer
from engine.store import Out
from engine.verify import verify as verify_output
from schemas.errors import RunFileError
from schemas.runfile import load_run

SHOWN_FINDINGS = 200
_EVERY_SECONDS = 10.0


def verify(
    out: Out,
    *,
    run_file: Path | None,
    rescore: int,
    oracle: int,
    seed: int,
    tolerance: float,
    complete: bool,
    as_json: bool,
    stream: TextIO,
    notes: TextIO,
) -> bool:
    """Check and print; whether all is sound. Raises TargetsmithError when there is nothing that can be checked."""
    if (rescore or oracle) and run_file is None:
        raise RunFileError("--rescore and --oracle need the teacher: name the run file by --run RUN.toml")
    report = verify_output(out, complete=complete, progress=_progress(notes))
    comparisons: list[Comparison] = []
    if run_file is not None and (rescore or oracle):
        damaged = {finding.file for finding in report.findings}
        rescorer = open_rescorer(out, load_run(run_file), seed=seed, damaged=damaged)
        report.notes += rescorer.notes
        if rescore:
            comparisons += rescorer.rescore(rescore, tolerance)
        if oracle:
            comparisons += rescorer.oracle(oracle)
    findings = [finding for comparison in comparisons for finding in comparison.findings]
    report.extend(findings)
    if as_json:
        compared = [comparison.to_json() for comparison in comparisons]
        stream.write(json.dumps({**report.to_json(), "compared": compared}, ensure_ascii=False) + "\n")
    else:
        _print(report, comparisons, stream)
    return report.sound


def _print(report: Report, comparisons: list[Comparison], stream: TextIO) -> None:
    state = "finished" if report.finished else "not finished"
    stream.write(
        f"{report.out}: run {report.fingerprint[:12]}, {state}, {report.sealed:,} of {report.units:,} units sealed\n"
    )
    rate = report.positions / report.seconds * 60 if report.seconds else 0.0
    stream.write(
        f"read {report.files:,} files, {report.bytes / 1e6:,.1f} MB: {report.documents:,} documents, {report.quarantined:,} in "
        f"quarantine, {report.positions:,} positions of all products, in {report.seconds:.1f} s ({rate:,.0f} positions/min)\n"
    )
    for comparison in comparisons:
        stream.writelines(f"{line}\n" for line in comparison.lines())
    stream.writelines(f"note: {note}\n" for note in report.notes)
    findings: list[Finding] = report.findings
    stream.writelines(f"{finding}\n" for finding in findings[:SHOWN_FINDINGS])
    if len(findings) > SHOWN_FINDINGS:
        stream.write(f"... and {len(findings) - SHOWN_FINDINGS:,} more findings; --json has all\n")
    stream.write(f"{len(findings):,} findings\n" if findings else "sound: nothing found\n")


def _progress(notes: TextIO) -> Callable[[Report], None]:
    began = said = time.monotonic()

    def tell(report: Report) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _EVERY_SECONDS:
            said = now
            notes.write(
                f"targetsmith: {report.files:,} files, {report.positions:,} positions, {len(report.findings):,} findings, "
                f"{now - began:.0f} s\n"
            )

    return tell


if __name__ == "__main__":
    from jobs.cli import main

    main(["verify", *sys.argv[1:]])
