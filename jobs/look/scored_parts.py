"""Which parts of a stored document are scored, and what a model has read before each: a line a part, for human eyes.

A conversation, a prompt with its completion, and a text with special tokens are scored in parts; all else of them is context.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jobs.look.document_view import DocumentView, visible
from schemas.target import FLAG_ANEW, FLAG_CONTEXT

_BEFORE, _SCORED, _MOST = 40, 56, 40  # characters shown of what stands before and of what is scored; parts


def scored_parts(view: DocumentView) -> list[str]:
    """A line for each scored part of a document that has context, [] for a document that is scored whole."""
    flags = np.array(view.row["flags"])
    context = (flags & FLAG_CONTEXT) != 0
    if not context.any():
        return []
    lines = ["Scored parts: rows, what the model has read before (its end), what is scored:"]
    parts = list(_runs(~context, (flags & FLAG_ANEW) != 0))
    for begin, stop in parts[:_MOST]:
        start = max([0, *(np.flatnonzero(flags[: begin + 1] & FLAG_ANEW).tolist())])
        before, said = (_text(view, *bounds) for bounds in ((start, begin), (begin, stop)))
        anew = f"(read anew from row {start}) " if flags[start] & FLAG_ANEW else ""
        dots = "..." if len(before) > _BEFORE else ""
        more = "..." if len(said) > _SCORED else ""
        lines.append(f"  {begin}-{stop - 1}  {anew}{dots}{before[-_BEFORE:]} -> {said[:_SCORED]}{more}")
    if len(parts) > _MOST:
        lines.append(f"  and {len(parts) - _MOST} more")
    if (flags[1:] & FLAG_ANEW).any():
        lines.append(
            "Read anew: from there on, what stands before is written otherwise, as the model saw it, or its oldest has no room."
        )
    return lines


def _runs(asked: np.ndarray, anew: np.ndarray) -> Iterator[tuple[int, int]]:
    """Neighbouring rows that are asked for, as (first, behind the last); a row that is read anew begins a run."""
    begin: int | None = None
    for i, here in enumerate([*asked.tolist(), False]):
        if begin is not None and (not here or anew[i]):
            yield begin, i
            begin = None
        if here and begin is None:
            begin = i


def _text(view: DocumentView, begin: int, stop: int) -> str:
    """Tokens in visible characters; those that hold parts of a character are put together."""
    out, waiting = [], b""
    for token in view.row["token_ids"][begin:stop]:
        piece = view.bytes_of(token)
        if piece is not None:
            waiting += piece
            continue
        out += [visible(waiting), view.token(token)]
        waiting = b""
    return "".join([*out, visible(waiting)])
