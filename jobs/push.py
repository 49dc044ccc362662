"""targetsmith push OUT hf://datasets/ORG/NAME: a finished output into a repository of the Hub. The work: engine/card."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.app import main_of
from jobs.look.options import OutArgument

EXAMPLE = "targetsmith push out hf://datasets/your-name/small-targets"


def push(
    out: OutArgument,
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="hf://datasets/ORG/NAME; it is made where there is none.")
    ],
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="Make a new repository public; else it is private. One that is there stays as it is."
        ),
    ] = False,
) -> None:
    """Publish a finished output on the Hugging Face Hub.

    Stopped at any moment, the same command goes on: what is there is not sent again. The token is the one that huggingface_hub
    finds: HF_TOKEN, or that of `hf auth login`.
    """
    from huggingface_hub.utils import disable_progress_bars

    from engine.card.hub import repository_of
    from engine.card.publish import publish
    from schemas.counts import counted

    if not sys.stderr.isatty():
        disable_progress_bars()
    done = publish(out, repository_of(address), public=public, say=lambda text: print(text, file=sys.stderr))
    for name in done.replaced:
        print(f"replaced {name}, which was another there", file=sys.stderr)
    if public and done.private:
        print("note: the repository is private, as it was before; change that on its page", file=sys.stderr)
    print(
        f"{done.url}: {counted(done.files, 'file')}, {done.sent:,} of them ({done.sent_bytes:,} bytes) sent now; "
        + ("private" if done.private else "public")
    )


if __name__ == "__main__":
    main_of("push")
