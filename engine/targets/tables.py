"""Rows of a group's positions in, one Arrow table for each product out, with a row for each document.

A document is scored whole, or in parts (engine/chat/segments.py); then its parts' rows are put back into the sequence of its
tokens, and what lies between them is context: unscored, FLAG_CONTEXT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.alignment.passage import Passage
from engine.chat.segments import TokenSequence, rows_of
from engine.corpus.document import Document
from engine.dataset.parquet import flat
from engine.targets.positions import TargetRows, taken
from engine.targets.teacher_rows import FILLS
from schemas.products import HIDDEN
from schemas.target import FLAG_ANEW, FLAG_CONTEXT, FLAG_END, ROLES, SHARE_COLUMNS


@dataclass(slots=True)
class Work:
    """A document ready to be scored. parts: its passages, in order. sequences: by product the whole document's tokens, where it
    is scored in parts; None where it is one passage. text: where a chat template has made it, None: the document's own.
    cut: whether something is left out before a part for want of room."""

    document: Document
    parts: list[Passage]
    sequences: dict[str, TokenSequence] | None = None
    text: str | None = None
    cut: bool = False

    @property
    def nodes(self) -> int:
        """Contexts in all."""
        return sum(len(part.tree.token) for part in self.parts)

    @property
    def bad(self) -> tuple[str, str] | None:
        """(reason, detail) of the first part that could not be scored, which of several it is included."""
        for i, part in enumerate(self.parts):
            if part.bad is not None:
                which = f"scored part {i + 1} of {len(self.parts)}: " if len(self.parts) > 1 else ""
                return part.bad[0], which + part.bad[1]
        return None


def first_parts(group: Sequence[Work]) -> list[int]:
    """Number of each document's first part among all parts of the group, and the end."""
    return [0, *np.cumsum([len(work.parts) for work in group]).tolist()]


def table_of(
    product: str,
    group: Sequence[Work],
    good: Sequence[int],
    rows: TargetRows,
    *,
    schema: pa.Schema,
    keep_text: bool,
    begin: int | None,
) -> pa.Table:
    """The good documents of a group as a table of the product's schema. rows: of all parts of the group, in order. begin:
    the token that begins a text, for the roles."""
    first = first_parts(group)
    ids, ends, at, anew = [], [], [], []
    for i in good:
        work = group[i]
        if work.sequences is None:
            side = work.parts[0].views[product]
            ids.append(side.ids)
            ends.append(side.ends)
            at.append(np.arange(rows.start[first[i]], rows.start[first[i] + 1]))
        else:
            sequence = work.sequences[product]
            ids.append(sequence.ids)
            ends.append(sequence.ends)
            anew += [sum(map(len, at)) + begin_anew for begin_anew in sequence.anew]
            at.append(rows_of(sequence, rows.start[first[i] : first[i + 1]]))
    empty = np.empty(0, np.int64)
    place = np.concatenate([empty, *at])
    token_ids = np.concatenate([empty, *ids])
    flags = taken(rows.flags, place, FLAG_CONTEXT)
    flags[anew] |= FLAG_ANEW
    flat: dict[str, np.ndarray] = {
        "token_ids": token_ids,
        "byte_end": np.concatenate([empty, *ends]),
        "scored": taken(rows.scored, place, False),
        "gold_logp": taken(rows.gold_logp, place, -np.inf),
        "err": taken(rows.err, place, 1.0),
        "flags": flags,
        "roles": roles_of(token_ids, flags, begin),
        **{name: taken(getattr(rows, name), place, 0.0) for name in SHARE_COLUMNS},
        **{name: taken(values, place, FILLS[name]) for name, values in rows.statistics.items()},
    }
    one = np.ones(len(place), np.int64)
    lists = {name: (values, one) for name, values in flat.items()} | rows.columns(place)
    stops = np.cumsum([0, *(len(a) for a in at)])
    columns: dict[str, Any] = {
        "doc_id": pa.array([group[i].document.doc_id for i in good], pa.string()),
        "doc_row": pa.array([group[i].document.doc_row for i in good], pa.int64()),
        "source": pa.array([group[i].document.part for i in good], pa.string()),
        "text": pa.array([_text_of(group[i]) if keep_text else "" for i in good], pa.string()),
    }
    for column in schema:
        if pa.types.is_list(column.type):
            values, sizes = lists[column.name]
            offsets = np.concatenate([[0], np.cumsum(sizes)])[stops]
            typed = pa.array(values.astype(column.type.value_type.to_pandas_dtype()))
            columns[column.name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), typed, type=column.type)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _text_of(work: Work) -> str:
    return work.document.text if work.text is None else work.text


def roles_of(token_ids: np.ndarray, flags: np.ndarray, begin: int | None) -> np.ndarray:
    """The role of each token, uint8 (schemas/target.py ROLES)."""
    context = (flags & FLAG_CONTEXT) != 0
    roles = np.where(context, ROLES["template"], ROLES["text"]).astype(np.uint8)
    if begin is not None:
        roles[context & (token_ids == begin)] = ROLES["begin"]
    roles[(flags & FLAG_END) != 0] = ROLES["end"]
    return roles


def add_sums(stats: dict[str, float], product: str, rows: TargetRows, good: list[int], table: pa.Table) -> None:
    """Add the sums of one product's rows (docs/format.md, section 5). good: numbers of the parts that are in its table."""
    at = np.concatenate([np.arange(rows.start[i], rows.start[i + 1]) for i in good]) if good else np.empty(0, np.int64)
    scored = at[rows.scored[at]]
    stats[f"{product}.documents"] += table.num_rows
    stats[f"{product}.positions"] += len(flat(table, "token_ids"))
    stats[f"{product}.scored"] += len(scored)
    if product == HIDDEN:
        return
    stats[f"{product}.stored_mass_sum"] += float(rows.stored_mass[scored].sum())
    for name in ("err", *SHARE_COLUMNS):
        stats[f"{product}.{name}_sum"] += float(getattr(rows, name)[scored].sum())
    gold = rows.gold_logp[scored]
    stats[f"{product}.gold_nats_sum"] -= float(gold[np.isfinite(gold)].sum())
    stats[f"{product}.gold_impossible"] += int(np.isneginf(gold).sum())
