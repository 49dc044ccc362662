"""targetsmith cat OUT: the targets as JSON lines, for other programs and for jq. The keys: jobs/look/json_lines.py."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import OutArgument, StudentOption, ViewOption

EXAMPLE = "targetsmith cat out --student small --text --limit 3 | jq ."


def cat(
    out: OutArgument,
    student: StudentOption = None,
    view: ViewOption = None,
    text: Annotated[
        bool, typer.Option("--text", help="Tokens as texts beside their ids: token_texts, id_texts.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many documents.")] = None,
    max_width: Annotated[
        float | None, typer.Option(help="Only rows with a certified width of at most this; 0: only exact rows.")
    ] = None,
) -> None:
    """Print the targets as JSON lines.

    One document each, in the order of the corpus.
    """
    from jobs.look.json_lines import write_documents

    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 wherever it goes
        sys.stdout.reconfigure(encoding="utf-8")
    write_documents(
        out,
        student=student,
        view=view,
        limit=limit,
        max_width=max_width,
        with_texts=text,
        stream=sys.stdout,
        notes=sys.stderr,
    )


if __name__ == "__main__":
    main_of("cat")
