"""targetsmith diff A B: how far two outputs are from each other. The differences: engine/figures/compare.py; the tables:
jobs/look/difference_tables.py."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import OutArgument, SeedOption, StudentOption, ViewOption

EXAMPLE = "targetsmith diff out other --student small"


def diff(
    a: OutArgument,
    b: Annotated[
        str, typer.Argument(metavar="B", help="The output beside it; the same one compares two of its products.")
    ],
    student: StudentOption = None,
    view: ViewOption = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="PRODUCT",
            help="Product of B, as in data/: teacher, bytes, student/NAME or NAME. Not given: the same.",
        ),
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="So many documents of A at most, drawn by the seed.")] = 500,
    seed: SeedOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as one JSON object.")] = False,
) -> None:
    """Compare two outputs, or two products.

    Position by position by bytes: total variation, KL both ways, the likeliest token, bits per byte, the documents that differ
    most. For teachers, regimes, codecs, versions.
    """
    from jobs.look.difference_tables import compare_outputs, print_comparison

    comparison = compare_outputs(a, b, student=student, view=view, to=to, documents=documents, seed=seed)
    if as_json:
        print(comparison.model_dump_json())
    else:
        print_comparison(comparison, sys.stdout)


if __name__ == "__main__":
    main_of("diff")
