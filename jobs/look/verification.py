"""The report on an output: is it what was written, and does it keep docs/format.md? Nothing is changed.

    structure and rows    always; needs nothing but the output
    --run RUN.toml        the corpus that it names, beside the plan and every stored document (engine/verify/corpus.py)
    --rescore N           N documents again by the live teacher, beside the stored rows (engine/verify/rescore.py)
    --oracle N            N short documents without any tolerance: is the certified width true?

Findings go to standard output, one line each, progress to standard error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from engine.dataset.layout import PLAN
from engine.dataset.store import Out
from engine.verify.corpus import compare_corpus
from engine.verify.findings import Finding, Report, printable
from engine.verify.output import verify
from engine.verify.rescore import Comparison, open_rescorer
from schemas.counts import counted
from schemas.errors import RunFileError, TargetsmithError
from schemas.runfile import RunConfig, load_run

SHOWN_FINDINGS = 200
_EVERY_SECONDS = 10.0


def verify_and_print(
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
    run = None if run_file is None else load_run(run_file)
    report = verify(out, complete=complete, progress=_progress(notes))
    comparisons: list[Comparison] = []
    if run is not None:
        damaged = {finding.file for finding in report.findings}
        if PLAN in damaged:
            report.notes.append("the plan is damaged, so neither corpus nor teacher were compared")
        else:
            _corpus(out, run, damaged, report, needed=not (rescore or oracle))
        if (rescore or oracle) and PLAN not in damaged:
            comparisons = _teacher(out, run, damaged, report, rescore, oracle, seed, tolerance)
    findings = [finding for comparison in comparisons for finding in comparison.findings]
    report.extend(findings)
    if as_json:
        compared = [comparison.to_json() for comparison in comparisons]
        stream.write(json.dumps({**report.to_json(), "compared": compared}) + "\n")  # ASCII: any name can be printed
    else:
        _print(report, comparisons, stream)
    return report.sound


def _corpus(out: Out, run: RunConfig, damaged: set[str], report: Report, *, needed: bool) -> None:
    """The corpus beside the output. needed: nothing else was asked for; else it may be gone."""
    try:
        told, wrong = compare_corpus(out, run, damaged=damaged)
    except TargetsmithError as error:
        if needed and report.sound:
            raise
        report.notes.append(f"the corpus was not compared: {_one_line(error)}")
    else:
        report.notes.append(told)
        report.extend(wrong)


def _teacher(
    out: Out, run: RunConfig, damaged: set[str], report: Report, rescore: int, oracle: int, seed: int, tolerance: float
) -> list[Comparison]:
    """Documents beside the live teacher. Where that cannot be done, findings that are there already are reported."""
    made: list[Comparison] = []
    try:
        rescorer = open_rescorer(out, run, seed=seed, damaged=damaged)
        if rescore:
            made += rescorer.rescore(rescore, tolerance)
        if oracle:
            made += rescorer.oracle(oracle)
    except TargetsmithError as error:
        if report.sound:
            raise
        report.notes.append(f"not compared with the teacher: {_one_line(error)}")
    return made


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines())


def _print(report: Report, comparisons: list[Comparison], stream: TextIO) -> None:
    state = "finished" if report.finished else "not finished"
    stream.write(
        f"{printable(report.out)}: run {report.fingerprint[:12]}, {state}, "
        f"{report.sealed:,} of {counted(report.units, 'unit')} sealed\n"
    )
    rate = report.positions / report.seconds * 60 if report.seconds else 0.0
    stream.write(
        f"read {counted(report.files, 'file')}, {report.bytes / 1e6:,.1f} MB: "
        f"{counted(report.documents, 'document')}, {report.quarantined:,} in "
        f"quarantine, {report.positions:,} positions of all products, in {report.seconds:.1f} s ({rate:,.0f} positions/min)\n"
    )
    for comparison in comparisons:
        stream.writelines(f"{line}\n" for line in comparison.lines())
    stream.writelines(f"note: {printable(note)}\n" for note in report.notes)
    findings: list[Finding] = report.findings
    stream.writelines(f"{finding}\n" for finding in findings[:SHOWN_FINDINGS])
    if len(findings) > SHOWN_FINDINGS:
        stream.write(f"... and {counted(len(findings) - SHOWN_FINDINGS, 'more finding')}; --json has all\n")
    if findings:
        stream.write(
            f"{counted(len(findings), 'finding')}; a damaged file is copied again, or removed and made anew, "
            'a lost one likewise: docs/operations.md, "Verify"\n'
        )
    else:
        stream.write("sound: nothing found\n" if report.sealed else "sound, but nothing is published yet\n")


def _progress(notes: TextIO) -> Callable[[Report], None]:
    began = said = time.monotonic()

    def tell(report: Report) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _EVERY_SECONDS:
            said = now
            notes.write(
                f"targetsmith: {counted(report.files, 'file')}, {counted(report.positions, 'position')}, "
                f"{counted(len(report.findings), 'finding')}, "
                f"{now - began:.0f} s\n"
            )

    return tell
