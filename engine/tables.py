"""Stage 9d: rows of a group -> one table per product, one row per document.

A document is scored whole, or in parts (engine/lines.py); then its parts' rows are put back into the line of its tokens,
and what lies between them is context: unscored, FLAG_CONTEXT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.corpus import Document
from engine.emit import Prepared
from engine.lines import Line, rows_of
from engine.positions import Rows
from schemas.target import FLAG_CONTEXT, PAD_ID, ROW_SCHEMA

# What stands at a position that is not asked to be scored: no distribution, all of it is tail.
_CONTEXT_FILLS = {"gold_logp": -np.inf, "err": 1.0, "flags": FLAG_CONTEXT, "ids": PAD_ID, "logps": -np.inf}


@dataclass(slots=True)
class Work:
    """A document ready to be scored. lines: per product when it is scored in parts, else None and there is one part."""

    document: Document
    parts: list[Prepared]
    lines: dict[str, Line] | None = None

    @property
    def nodes(self) -> int:
        """Contexts in all."""
        return sum(len(part.tree.token) for part in self.parts)

    @property
    def bad(self) -> tuple[str, str] | None:
        """(reason, detail) of the first part that could not be scored."""
        return next((part.bad for part in self.parts if part.bad is not None), None)


def first_parts(group: Sequence[Work]) -> list[int]:
    """Number of each document's first part among all parts of the group, and the end."""
    return [0, *np.cumsum([len(work.parts) for work in group]).tolist()]


def table_of(product: str, group: Sequence[Work], good: Sequence[int], rows: Rows, *, keep_text: bool) -> pa.Table:
    """The good documents of a group as a table of ROW_SCHEMA. rows: of all parts of the group, in order."""
    first = first_parts(group)
    ids, ends, at = [], [], []
    for i in good:
        work = group[i]
        if work.lines is None:
            side = work.parts[0].sides[product]
            ids.append(side.ids)
            ends.append(side.ends)
            at.append(np.arange(rows.start[first[i]], rows.start[first[i] + 1]))
        else:
            line = work.lines[product]
            ids.append(line.ids)
            ends.append(line.ends)
            at.append(rows_of(line, rows.start[first[i] : first[i + 1]]))
    empty = np.empty(0, np.int64)
    place = np.concatenate([empty, *at])
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in at])]).astype(np.int32)

    def taken(name: str) -> np.ndarray:
        values = getattr(rows, name)
        out = np.full((len(place), *values.shape[1:]), _CONTEXT_FILLS.get(name, 0), values.dtype)
        out[place >= 0] = values[place[place >= 0]]
        return out

    flat: dict[str, np.ndarray] = {
        "token_ids": np.concatenate([empty, *ids]).astype(np.int32),
        "byte_end": np.concatenate([empty, *ends]).astype(np.int32),
        "scored": taken("scored"),
        "topk_ids": taken("ids").reshape(-1),
        "topk_logps": taken("logps").reshape(-1).astype(np.float32),
        "flags": taken("flags"),
    }
    for name in ("tail_logp", "gold_logp", "err", "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
        flat[name] = taken(name).astype(np.float32)
    columns: dict[str, Any] = {
        "doc_id": pa.array([group[i].document.doc_id for i in good], pa.string()),
        "doc_row": pa.array([group[i].document.doc_row for i in good], pa.int64()),
        "text": pa.array([group[i].document.text if keep_text else "" for i in good], pa.string()),
    }
    for name, values in flat.items():
        width = rows.ids.shape[1] if name.startswith("topk") else 1
        kind = ROW_SCHEMA.field(name).type
        columns[name] = pa.ListArray.from_arrays(
            pa.array(offsets * width), pa.array(values, kind.value_type), type=kind
        )
    return pa.Table.from_arrays([columns[name] for name in ROW_SCHEMA.names], schema=ROW_SCHEMA)
