"""An output -> its page on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from engine.dataset.store import Out
from engine.figures import Figures, collect, open_published
from engine.figures.sample import Output
from jobs.look.document_view import tokens_of
from jobs.look.figure_tables import width_words
from jobs.page.charts import charts_of
from jobs.page.documents import WINDOW_BYTES, documents_of
from jobs.page.html import page_of
from schemas.counts import counted
from schemas.errors import OutputError


def write_page(out: Out, page: Path, *, most_positions: int, seed: int) -> str:
    """Write the file; returns a line that says what it is. OutputError: damaged, nothing ready, or it cannot be written."""
    if page.is_dir() or not page.absolute().parent.is_dir():
        raise OutputError(f"{page}: wanted a file in a folder that exists; name one by -o report.html")
    figures, data = page_data(open_published(out), most_positions=most_positions, seed=seed)
    text = page_of(data).encode()
    partly = page.with_name(f".{page.name}.{os.getpid()}.part")  # a page appears whole, or not at all
    try:
        partly.write_bytes(text)
        partly.replace(page)
    except OSError as error:
        partly.unlink(missing_ok=True)
        raise OutputError(f"{page}: cannot be written ({error.strerror}); name another place by -o") from error
    shown = f"{len(data['charts'])} charts, {len(data['browser']['documents']):,} of {counted(figures.documents, 'document')}"
    return f"{page}: {len(text) / 1e6:.1f} MB, {shown}; open it in a browser"


def page_data(output: Output, *, most_positions: int, seed: int, **room: Any) -> tuple[Figures, dict[str, Any]]:
    """What a page shows, as JSON values. room: `room_bytes` of `documents_of`."""

    def tokens(product: str) -> Any:
        return tokens_of(output.store, product, output.plan.products[product])

    figures = collect(output, seed=seed, most_positions=most_positions, tokens_of=tokens)
    browser = documents_of(output, figures, tokens, most_positions=most_positions, **room)
    shown = len(browser["documents"])
    beside = (
        "the teacher's tokens stand above them"
        if "teacher" in output.plan.products
        else "the run stores no teacher's view"
    )
    words = {
        "width": width_words(figures),
        "documents": f"{shown:,} of {counted(figures.documents, 'document')}: those with the worst positions, others "
        f"by seed {seed}. "
        f"Of a long one {WINDOW_BYTES:,} bytes are shown. Boxes are tokens of the chosen product, {beside}, aligned by bytes.",
        "none": "No document can be shown: none is published, or the run stores no texts and its tokens do not tell them.",
    }
    return figures, {
        "figures": figures.model_dump(mode="json"),
        "charts": charts_of(figures),
        "browser": browser,
        "words": words,
    }
