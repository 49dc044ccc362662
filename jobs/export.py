"""targetsmith export OUT --to FORM DEST: a product in the form that another program trains from. The forms: engine/exchange."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import Form, OutArgument

EXAMPLE = "targetsmith export out --to axolotl out_axolotl --product small"


def export(
    out: OutArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A new folder; it appears whole or not at all.")],
    to: Annotated[Form, typer.Option(help="The program that is to read it.")],
    product: Annotated[
        str | None,
        typer.Option(
            help="Product of OUT, as in data/: teacher, student/NAME or NAME. Not given: the only student or product."
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=2, help="distillkit, megatron: tokens (rows) of each sequence. Not given: those of the longest one."
        ),
    ] = None,
) -> None:
    """Write a product for another program.

    Axolotl, DistillKit, Megatron-LM, TRL. Says what the form loses.
    """
    from engine.exchange.formats import export as write
    from engine.exchange.formats import form_of, loads, losses
    from engine.exchange.outgoing import open_outgoing
    from engine.plan.make_plan import ENGINE_VERSION

    form = form_of(to)
    outgoing = open_outgoing(out, product)
    tally = write(outgoing, to, dest, length, ENGINE_VERSION)
    print(
        f"{dest}: {outgoing.product} for {form.program}: {tally.readings:,} sequences, {tally.scored:,} distributions"
    )
    print(f"kept: {form.keeps}")
    for line in losses(form, tally):
        print(f"lost: {line}")
    print(f"To load it:\n{loads(form, tally, dest)}", end="")


if __name__ == "__main__":
    main_of("export")
