"""targetsmith report OUT: an output as one HTML file, to be looked at and sent on. The page: jobs/page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import MostOption, OutArgument, SeedOption

EXAMPLE = "targetsmith report out -o report.html"


def report(
    out: OutArgument,
    page: Annotated[Path, typer.Option("--out", "-o", help="The file to write; one that is there is replaced.")] = Path(
        "report.html"
    ),
    most_positions: MostOption = 4_000_000,
    seed: SeedOption = 0,
) -> None:
    """Write an output as one HTML file.

    Figures, worst positions, quarantine, and documents token by token. It needs no network and is below 5 MB; documents and, of a
    large output, units are samples.
    """
    from jobs.page.write import write_page

    print(write_page(out, page, most_positions=most_positions, seed=seed), file=sys.stdout)


if __name__ == "__main__":
    main_of("report")
