"""The documents of one product as JSON lines, one each, for other programs and for jq.

Row i of each list predicts token i given tokens < i. Log-probabilities are in nats, sorted, padding removed; minus
infinity is null (JSON has no infinities).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any, TextIO

import numpy as np
import torch

from engine.dataset.layout import load_plan, nothing_ready, unsealed_units
from engine.dataset.store import Out, open_store
from engine.reader.targets import PAD_ID, Document, Targets, TargetsError
from jobs.look.document_view import tokens_of
from jobs.look.options import View
from jobs.look.products import choose
from schemas.errors import OutputError, RunFileError
from schemas.redact import redacted


def write_documents(
    out: Out,
    *,
    student: str | None,
    view: View | None,
    limit: int | None,
    max_width: float | None,
    with_texts: bool = False,
    stream: TextIO,
    notes: TextIO,
) -> None:
    """Write the documents of one product to `stream`, in corpus order; of an unfinished run, those that are ready.

    with_texts: tokens as texts beside their ids.
    max_width: only the scored rows whose certified width is at most this; how many those are is said on `notes`.
    """
    if max_width is not None and not max_width >= 0:  # NaN too
        raise RunFileError(f"--max-width {max_width}: a width is a probability; give a number >= 0, such as 0.05")
    store = open_store(out)
    plan = load_plan(store)
    products = plan.products
    product = choose(store, list(products), student, view)
    tokens = tokens_of(store, product, products[product]) if with_texts else None
    if with_texts and tokens is None:
        raise OutputError(
            f"{store}: made before outputs had their tokens, and the tokenizer {products[product].tokenizer!r} was not found; "
            "run this in the folder of the run file, or without --text"
        )
    if len(unsealed_units(store, plan)) == len(plan.units):
        raise nothing_ready(store, plan)
    try:
        kept = left_out = 0
        targets = Targets(store.url, product, allow_partial=True, max_width=max_width)
        for document in islice(targets.documents(), limit):
            record = as_json(document)
            if tokens is not None:
                record = _with_texts(record, tokens.names)
            if max_width is not None:
                record = only_scored(record)
                kept, left_out = kept + len(record["rows"]), left_out + document.left_out
            stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        if max_width is not None:
            notes.write(
                f"targetsmith: {kept:,} of {kept + left_out:,} scored rows have a width of at most {max_width}\n"
            )
    except TargetsError as error:  # the reader stands alone and has an error of its own
        raise OutputError(redacted(str(error))) from error


def as_json(document: Document) -> dict[str, Any]:
    """The document as JSON values: the keys and meanings that docs/format.md promises."""
    whole = {
        "doc_id": document.doc_id,
        **({"source": document.source} if document.source else {}),
        "text": document.text,
        "token_ids": document.token_ids.tolist(),
        "byte_end": document.byte_end.tolist(),
        "scored": document.scored.tolist(),
    }
    extra = dict(document.extra)
    if "hidden" in extra:
        states = torch.tensor(extra["hidden"].view(np.int16)).view(torch.bfloat16)
        return {**whole, "hidden": states.tolist(), "flags": document.flags.tolist()}
    present = document.ids != PAD_ID
    stored = {"ids": [ids[here].tolist() for ids, here in zip(document.ids, present, strict=True)]}
    if "sample_sizes" in extra:
        sizes, counts = extra.pop("sample_sizes"), extra.pop("sample_counts")
        del extra["sample_ids"]
        stored["counts"] = [part.tolist() for part in np.split(counts, np.cumsum(sizes)[:-1])]
    else:
        stored["logps"] = [logps[here].tolist() for logps, here in zip(document.logps, present, strict=True)]
        stored["tail_logp"] = _finite(document.tail_logp)
    return {
        **whole,
        **stored,
        "gold_logp": _finite(document.gold_logp),
        "err": document.err.tolist(),
        "open_mass": document.open_mass.tolist(),
        "excluded_mass": document.excluded_mass.tolist(),
        "pruned_mass": document.pruned_mass.tolist(),
        "noncanonical_mass": document.noncanonical_mass.tolist(),
        "flags": document.flags.tolist(),
        **{name: _finite(values) for name, values in extra.items()},
    }


def _with_texts(record: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The same with the texts of token_ids, and of ids where there are any."""
    more: dict[str, Any] = {"token_texts": [names[token] for token in record["token_ids"]]}
    if "ids" in record:
        more["id_texts"] = [[names[token] for token in row] for row in record["ids"]]
    return {**record, **more}


def only_scored(record: dict[str, Any]) -> dict[str, Any]:
    """The same object with its scored rows only; `rows` says which they are, counted from 0."""
    rows = [row for row, scored in enumerate(record["scored"]) if scored]
    picked = {key: [value[r] for r in rows] if isinstance(value, list) else value for key, value in record.items()}
    return {**picked, "rows": rows}


def _finite(logps: np.ndarray) -> list[float | None]:
    return [None if value == -np.inf else value for value in logps.tolist()]
