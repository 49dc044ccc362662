"""The command line: one command per verb. `targetsmith <verb>` and `python -m jobs.<verb>` are the same.

Exit codes: 0 all done, 1 something failed, 2 the run file or the command line is wrong, 3 too many bad documents,
130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from schemas.errors import TargetsmithError
from schemas.redact import without_secrets

# The verbs are imported inside their commands: torch, ray and transformers take seconds, `--help` should not.


class _Guard(TyperGroup):
    """Runs a command; every error meant for people becomes its message and its exit code."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except TargetsmithError as error:
            print(without_secrets(f"targetsmith: {error}"), file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            print("targetsmith: interrupted; what is published stays, resume by running again", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `targetsmith cat OUT | head`: the reader has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0 if ctx.invoked_subcommand in ("cat", "show") else 1) from None


app = typer.Typer(
    cls=_Guard,
    help=(
        "A teacher language model's next-token distributions over a student's vocabulary, offline, into Parquet. "
        "Exit codes: 0 done, 1 failed, 2 wrong run file or command line, 3 too many bad documents."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Out = Annotated[str, typer.Argument(metavar="OUT", help="Output of a run: a folder, or a URL such as s3://bucket/out.")]
View = Annotated[
    Literal["student", "teacher", "bytes", "hidden"] | None,
    typer.Option(help="Over the student's vocabulary, over the teacher's own, byte by byte, or hidden states (cat)."),
]
Student = Annotated[str | None, typer.Option(help="Name of the student, where the run has several.")]


@app.command()
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
    """Score a corpus: do all that is missing of the run, then print a summary."""
    from jobs import score as verb
    from jobs.summary import print_summary
    from schemas.runfile import load_run

    run = load_run(run_file)
    outcome = verb.retry_quarantined(run, address) if retry_quarantined else verb.score(run, address)
    if outcome is None:
        print(f"{run.output}: nothing is in quarantine any more, nothing to retry")
    else:
        print_summary(outcome, sys.stdout)


@app.command()
def show(
    out: Out,
    doc: Annotated[str, typer.Option(help="Which document: its doc_id, or its number in the corpus from 0.")] = "",
    rows: Annotated[str, typer.Option(help="Which positions, from:to, as Python slices count them.")] = "0:12",
    top: Annotated[int, typer.Option(min=1, help="How many tokens of each top-k.")] = 5,
    student: Student = None,
    view: View = None,
) -> None:
    """Show one document for human eyes: bytes, both tokenizations, both distributions side by side."""
    from jobs import show as verb

    verb.show(out, doc=doc or None, rows=rows, top=top, student=student, view=view, stream=sys.stdout)


@app.command()
def cat(
    out: Out,
    student: Student = None,
    view: View = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many documents.")] = None,
    max_width: Annotated[
        float | None, typer.Option(help="Only rows with a certified width of at most this; 0: only exact rows.")
    ] = None,
) -> None:
    """Print the targets as JSON lines, one document each."""
    from jobs import cat as verb

    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 wherever it goes
        sys.stdout.reconfigure(encoding="utf-8")
    verb.cat(out, student=student, view=view, limit=limit, max_width=max_width, stream=sys.stdout, notes=sys.stderr)


@app.command()
def verify(
    out: Out,
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
    """Check an output, from the plan to every row; exit code 1 and a list when anything is wrong."""
    from jobs import verify as verb

    sound = verb.verify(
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder; a finished or interrupted one is resumed.")] = Path(
        "demo_out"
    ),
) -> None:
    """Score the embedded demo corpus through local Ray, then show a document and the summary."""
    from jobs import demo as verb

    verb.demo(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script and of `python -m jobs.<verb>`. Exits; never returns."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="targetsmith")
    except Exception:  # a bug: Python's own traceback would print every secret that a message holds
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
