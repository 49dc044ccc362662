"""targetsmith import FORM SRC OUT: what another program stored, as an output. The forms: engine/exchange."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import Form

EXAMPLE = "targetsmith import distillkit captured out --tokenizer Qwen/Qwen3-8B"


def import_(
    form: Annotated[Form, typer.Argument(metavar="FORM", help="The program that has written it.")],
    src: Annotated[str, typer.Argument(metavar="SRC", help="Folder with the files of that program, or one of them.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The output: a new folder, or one to go on with.")],
    tokenizer: Annotated[
        str, typer.Option(help="The tokenizer that the ids are of: a folder or Hub id. None of the forms says it.")
    ],
    product: Annotated[
        str | None,
        typer.Option(help="Its name in OUT: teacher or student/NAME. Not given: as it was exported, else teacher."),
    ] = None,
) -> None:
    """Read what another program stored as an output.

    Then show, stats, diff, report, verify and trainers read it. It certifies nothing: its widths are 1.
    """
    from engine.bpe.vocabulary import load_vocabulary
    from engine.exchange.formats import form_of
    from engine.exchange.incoming import import_all, open_incoming
    from schemas.counts import counted

    source = form_of(form).open_source(src)
    incoming = open_incoming(form, source, load_vocabulary(tokenizer), tokenizer, product)

    def progress(done: int, units: int) -> None:
        print(f"targetsmith: {done:,} of {counted(units, 'unit')}", file=sys.stderr)

    manifest = import_all(incoming, out, progress)
    total, stats = manifest.totals[incoming.product], manifest.stats
    scored = int(stats.get(f"{incoming.product}.scored", 0))
    unknown = int(stats.get(f"{incoming.product}.gold_impossible", 0))
    print(
        f"{out}: {incoming.product} from {form}: {counted(total.rows, 'document')}, "
        f"{total.positions:,} positions, {scored:,} scored, top "
        f"{source.top_k}; {manifest.quarantined:,} in quarantine"
    )
    print(f"not known: {unknown:,} true tokens' log-probabilities (stored as -inf)")
    print("not known: widths (stored as 1: no certificate), shares of mass (stored as 0), texts")
    print(f"Next: targetsmith show {out}, targetsmith stats {out}, targetsmith verify {out}")


if __name__ == "__main__":
    main_of("import")
