"""Options that several commands share: which output, and which of its products."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

View = Literal["student", "teacher", "bytes", "hidden"]
Form = Literal[
    "axolotl", "distillkit", "megatron", "trl"
]  # engine.exchange.formats.FORMS, which takes seconds to import

OutArgument = Annotated[
    str, typer.Argument(metavar="OUT", help="Output of a run: a folder, or a URL such as s3://bucket/out.")
]
ViewOption = Annotated[
    View | None,
    typer.Option(help="Over the student's vocabulary, over the teacher's own, byte by byte, or hidden states (cat)."),
]
StudentOption = Annotated[str | None, typer.Option(help="Name of the student, where the run has several.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Which units or documents are taken, where not all are.")]
MostOption = Annotated[
    int,
    typer.Option(min=1, help="Read at most so many positions of each product: whole units, drawn by the seed."),
]
