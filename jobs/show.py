"""targetsmith show OUT: one document for human eyes. Or where an output is least certain.

The tables: jobs/look/side_by_side.py, jobs/look/widest.py.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import OutArgument, StudentOption, ViewOption

EXAMPLE = "targetsmith show out --doc 7 --student small --top 5"


def show(
    out: OutArgument,
    doc: Annotated[str, typer.Option(help="Which document: its doc_id, or its number in the corpus from 0.")] = "",
    rows: Annotated[
        str,
        typer.Option(help="Which positions, from:to, as Python slices count them. Not given: the first scored ones."),
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="How many tokens of each top-k.")] = 5,
    widest: Annotated[
        int, typer.Option(min=0, help="Instead: positions by width, and so many documents that are widest on average.")
    ] = 0,
    student: StudentOption = None,
    view: ViewOption = None,
) -> None:
    """Show one document for human eyes.

    Its bytes, both tokenizations and both distributions side by side.
    """
    from jobs.look.side_by_side import show_document
    from jobs.look.widest import show_widest

    if widest:
        return show_widest(out, count=widest, student=student, view=view, stream=sys.stdout)
    show_document(out, doc=doc or None, rows=rows, top=top, student=student, view=view, stream=sys.stdout)


if __name__ == "__main__":
    main_of("show")
