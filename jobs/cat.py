"""targetsmith cat OUT: the targets as JSON lines, one document each, for other programs and for jq.

Row i of each list predicts token i given tokens < i. Log-probabilities are in nats, sorted, padding removed; minus
infinity is null (JSON has no infinities).
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from engine.stream import PAD_ID, Document, Targets, TargetsError
from schemas.errors import OutputError


def cat(
    out: Path, *, student: str | None, view: Literal["student", "teacher"], limit: int | None, stream: TextIO
) -> None:
    """Write the documents of one product to `stream`, in corpus order; of an unfinished run, those that are ready."""
    product = "teacher" if view == "teacher" else f"student/{student}" if student else None
    try:
        for document in islice(Targets(out, product, allow_partial=True).documents(), limit):
            stream.write(json.dumps(as_json(document), ensure_ascii=False, allow_nan=False) + "\n")
    except TargetsError as error:  # the reader stands alone and has an error of its own
        raise OutputError(str(error)) from error


def as_json(document: Document) -> dict[str, Any]:
    """The document as JSON values: the keys and meanings that docs/format.md promises."""
    present = document.ids != PAD_ID
    return {
        "doc_id": document.doc_id,
        "text": document.text,
        "token_ids": document.token_ids.tolist(),
        "byte_end": document.byte_end.tolist(),
        "scored": document.scored.tolist(),
        "ids": [ids[here].tolist() for ids, here in zip(document.ids, present, strict=True)],
        "logps": [logps[here].tolist() for logps, here in zip(document.logps, present, strict=True)],
        "tail_logp": _finite(document.tail_logp),
        "gold_logp": _finite(document.gold_logp),
        "err": document.err.tolist(),
        "flags": document.flags.tolist(),
    }


def _finite(logps: np.ndarray) -> list[float | None]:
    return [None if value == -np.inf else value for value in logps.tolist()]


if __name__ == "__main__":
    from jobs.cli import main

    main(["cat", *sys.argv[1:]])
