"""targetsmith stats OUT: an output in numbers. The figures: engine/figures; the tables: jobs/look/figure_tables.py."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import MostOption, OutArgument, SeedOption

EXAMPLE = "targetsmith stats out --worst 10"


def stats(
    out: OutArgument,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst positions of each product.")] = 5,
    most_positions: MostOption = 4_000_000,
    seed: SeedOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as one JSON object.")] = False,
) -> None:
    """Print an output in numbers.

    Sizes, widths, masses, costs in bits per byte, the worst positions, the quarantine by reason. Of an unfinished run, what is
    published so far.
    """
    from jobs.look.figure_tables import figures_of, print_figures

    figures = figures_of(out, most_positions=most_positions, seed=seed)
    if as_json:
        print(figures.model_dump_json())
    else:
        print_figures(figures, worst=worst, stream=sys.stdout)


if __name__ == "__main__":
    main_of("stats")
