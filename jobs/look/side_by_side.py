"""One stored document as a table for human eyes.

One line of the table is one student token (or one byte, with --view bytes): its bytes in the text, the teacher tokens that
cover them, and both top-k, side by side where a teacher token begins at the same byte. Probabilities, not logarithms. A
space is shown as ␣.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.dataset.layout import load_plan
from engine.dataset.store import Out, open_store
from jobs.look.document_view import CONTROLS, DocumentView, document_view, tokens_of, visible
from jobs.look.options import View
from jobs.look.products import choose
from jobs.look.scored_parts import scored_parts
from jobs.look.stored_document import find_document
from schemas.errors import OutputError, RunFileError
from schemas.products import TEACHER
from schemas.target import (
    FLAG_ANEW,
    FLAG_BOUNDED,
    FLAG_BUDGET,
    FLAG_CONTEXT,
    FLAG_END,
    FLAG_EXACT,
    FLAG_GIVEN,
    FLAG_NO_MASS,
)

FLAG_WORDS = {
    FLAG_EXACT: "exact",
    FLAG_BOUNDED: "bounded",
    FLAG_BUDGET: "budget",
    FLAG_GIVEN: "given",
    FLAG_NO_MASS: "no mass",
    FLAG_END: "end",
    FLAG_CONTEXT: "context",
    FLAG_ANEW: "read anew",
}
_SHOWN = 12
_BEFORE = 2
"""Positions shown where nobody asks for some: so many, from so many before the first scored one on."""
_PIPE_WIDTH = 130  # columns where the output is not a terminal


def show_document(
    out: Out,
    *,
    doc: str | None,
    rows: str,
    top: int,
    student: str | None,
    view: View | None,
    stream: TextIO,
    near: Sequence[Path] = (),
) -> None:
    """Print one document. rows: from:to, or "" for those from the first scored one on. `near`: more folders in which the
    tokenizers' relative paths may start."""
    window, store = _window(rows), open_store(out)  # refused before anything is read
    plan = load_plan(store)
    product = choose(store, list(plan.products), student, view, first=True)
    if plan.products[product].codec == "hidden":
        raise OutputError(
            f"{store}: hidden states are no distributions to look at; `targetsmith cat --view hidden` prints them"
        )
    row = find_document(store, plan, product, doc)
    if rows and not range(*window.indices(positions := len(row["token_ids"]))):
        raise RunFileError(
            f"--rows {rows!r}: none of the rows of {row['doc_id']!r}; it has {positions:,}, 0 to {positions - 1:,}"
        )
    if not rows and any(row["scored"]):
        first = max(0, row["scored"].index(True) - _BEFORE)
        window = slice(first, first + _SHOWN)
    ours = document_view(row, plan.products[product], tokens_of(store, product, plan.products[product], near))
    theirs = None
    if TEACHER in plan.products and product != TEACHER:
        of_teacher = find_document(store, plan, TEACHER, str(row["doc_row"]))
        theirs = document_view(
            of_teacher, plan.products[TEACHER], tokens_of(store, TEACHER, plan.products[TEACHER], near)
        )
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(
        f"[bold]{escape(row['doc_id'].translate(CONTROLS))}[/]  document {row['doc_row']} of the corpus"
        f"{', of ' + escape(row['source']) if row.get('source') else ''}, {_title(product, ours)}"
    )
    console.print(_table(ours, theirs, window, top))
    console.print(_legend(ours, window), markup=False)
    for line in scored_parts(ours):
        console.print(line, markup=False)


def _title(product: str, view: DocumentView) -> str:
    """'student small (fast)', 'bytes', 'teacher (own)'; with the semantics where it is not the usual one."""
    name = product.replace("/", " ", 1)
    words = [view.facts.regime] if view.facts.regime != product else []
    words += [view.facts.semantics] if view.facts.semantics != "canonical-context" else []
    words += [f"{view.facts.draws} draws"] if view.facts.codec == "sample" else []
    return f"{name} ({', '.join(words)})" if words else name


def _table(ours: DocumentView, theirs: DocumentView | None, window: slice, top: int) -> Table:
    """The positions of `window`. theirs: the teacher's own tokens of the same document."""
    table = Table(show_lines=True, title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("text", overflow="fold")
    if theirs:
        table.add_column("teacher tokens", overflow="fold")
        table.add_column("teacher's top-k", no_wrap=True)
    titles = {"own": "teacher's top-k", "bytes": "next byte's top-k"}
    usual = "student's top-k" if ours.facts.codec == "topk" else "drawn (share)"
    table.add_column(titles.get(ours.facts.regime, usual), no_wrap=True)
    known = {"gold p": "gold_logp", "tail": "tail_logp"} if ours.facts.codec == "topk" else {"gold p": "gold_logp"}
    for heading in (*known, "width"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("flags")
    row = ours.row
    for i in range(*window.indices(len(row["token_ids"]))):
        start, end = ours.starts_T[i], row["byte_end"][i]
        piece = ours.token(row["token_ids"][i])
        if ours.tokens is None and row["text"] and end > start:
            piece = visible(row["text"].encode()[start:end]) or piece
        cells = [str(i), f"{start}-{end}", escape(piece)]
        if theirs:
            is_end = bool(row["flags"][i] & FLAG_END)
            cover = _covering(theirs, start, end, is_end)
            beside = next((j for j in cover if theirs.starts_T[j] == start), None)
            cells.append(escape(" | ".join(theirs.token(theirs.row["token_ids"][j]) for j in cover)))
            inside = "[dim]inside a teacher token[/]" if cover else ""  # a template's own tokens cover no text
            cells.append(inside if beside is None else theirs.best(beside, top))
        cells.append(ours.best(i, top))
        if row["scored"][i]:
            cells += [f"{np.exp(row[name][i]):.4f}" for name in known.values()]
            cells.append(f"{row['err'][i]:.1e}")
        else:
            cells += [""] * (len(known) + 1)
        cells.append("\n".join(word for bit, word in FLAG_WORDS.items() if row["flags"][i] & bit))
        table.add_row(*cells)
    return table


def _legend(view: DocumentView, window: slice) -> str:
    """What stands below the table: how many positions are shown, and means over all scored ones."""
    row = view.row
    scored = np.array(row["scored"], bool)
    total = len(scored)
    shown = len(range(*window.indices(total)))
    lines = [f"{shown} of {total} positions shown (--rows from:to), {scored.sum()} scored"]
    if scored.any():
        width = np.array(row["err"])[scored].mean()
        if view.facts.codec == "topk":
            stored = 1 - np.exp(np.array(row["tail_logp"])[scored])
            lines[0] += f"; mean stored mass {stored.mean():.6f}"
        lines[0] += f", mean certified width {width:.2e}"
        shares = {name: np.array(row[f"{name}_mass"])[scored].mean() for name in ("noncanonical", "pruned")}
        lines.append(
            f"mean non-canonical mass {shares['noncanonical']:.2e} (the teacher's, on tokens that no text has there)"
        )
        if shares["pruned"]:
            lines[-1] += f"; mean pruned mass at most {shares['pruned']:.2e}"
    if view.tokens is None:
        lines.append("The tokenizer was not found, so tokens are shown as #id: run this in the folder of the run file.")
    return "\n".join(lines)


def _covering(view: DocumentView, start: int, end: int, is_end: bool) -> list[int]:
    """Positions of the teacher's tokens that share a byte with start..end; for the end token, the teacher's own."""
    flags, ends = view.row["flags"], view.row["byte_end"]
    if is_end:
        return [j for j, flag in enumerate(flags) if flag & FLAG_END and ends[j] == end]
    return [j for j, first in enumerate(view.starts_T) if first < end and ends[j] > start and not flags[j] & FLAG_END]


def _window(rows: str) -> slice:
    """`--rows from:to` as a slice; "" for the first few. Raises RunFileError."""
    if not rows:
        return slice(0, _SHOWN)
    first, colon, last = rows.partition(":")
    try:
        window = slice(int(first) if first else None, int(last) if last else None)
    except ValueError:
        colon = ""
        window = slice(None)
    if not colon:
        raise RunFileError(f"--rows {rows!r}: wanted from:to, two numbers as in 0:12, either may be left out")
    return window
