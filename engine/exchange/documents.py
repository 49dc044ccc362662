"""The readings of a record -> a row of an output; or why there can be none.

What the form does not tell is filled in by one rule for all, and the regime `imported` says so (docs/format.md): the width is
1, which is true of any distribution; the shares are 0; the tail is what is missing from 1; the true token's log-probability is
-inf where it is neither in the row nor given. T tokens of a document, K entries of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.dataset.invariants import SIGN_TOLERANCE, mass_tolerance
from engine.dataset.parquet import round_logps
from engine.dataset.token_tables import TokenTable
from engine.exchange.reading import Reading
from schemas.errors import BadDocument, CorpusError
from schemas.manifest import ProductFacts
from schemas.target import (
    FLAG_ANEW,
    FLAG_CONTEXT,
    FLAG_END,
    FLAG_GIVEN,
    FLAG_NO_MASS,
    PAD_ID,
    SHARE_COLUMNS,
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is needed of the tokens: facts of the product, bytes of text of each id [V], 0 for specials; what the tokenizer puts
    before a text that is none of it (`prefix_bytes`), and which ids begin with it."""

    facts: ProductFacts
    sizes_V: np.ndarray
    prefix_bytes: int
    prefixed_V: np.ndarray

    @classmethod
    def of(cls, facts: ProductFacts, table: TokenTable, prefix: bytes) -> Tokens:
        pieces = [piece or b"" for piece in table.pieces]
        begins = np.array([bool(prefix) and piece.startswith(prefix) for piece in pieces])
        return cls(facts, np.array([len(piece) for piece in pieces], np.int64), len(prefix), begins)

    def ends(self, token_ids_T: np.ndarray) -> np.ndarray:
        """Where each token ends in the text, bytes."""
        sizes_T = self.sizes_V[token_ids_T]
        first = int(np.argmax(sizes_T > 0))
        if self.prefixed_V[token_ids_T[first]]:
            sizes_T[first] -= self.prefix_bytes
        return np.cumsum(sizes_T).astype(np.int32)


def document_of(readings: Sequence[Reading], tokens: Tokens, doc_id: str, doc_row: int, place: str) -> dict[str, Any]:
    """Column -> value of a row. Raises BadDocument where the rows are no distributions, CorpusError for ids that the
    vocabulary does not have: then it is not the tokenizer that they are of."""
    facts = tokens.facts
    parts = [part for reading in readings if len(part := _without_begin(reading, facts.bos_id))]
    if not parts:
        raise BadDocument("too_short", "no token behind the begin token")
    anew_T = np.concatenate([np.arange(len(part)) == 0 for part in parts])
    token_ids, asked, scored, ids, logps, gold = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("token_ids_T", "asked_T", "scored_T", "ids_TK", "logps_TK", "gold_logp_T")
    )
    told = [part.tail_logp_T for part in parts]
    tail = None if any(values is None for values in told) else np.concatenate([v for v in told if v is not None])
    for name, values in (("input_ids", token_ids), ("ids of the rows", ids[ids != PAD_ID])):
        if values.size and not 0 <= values.min() <= values.max() < facts.vocab_size:
            raise CorpusError(
                f"{place}: {name} from {values.min()} to {values.max()}, and {facts.tokenizer} has {facts.vocab_size:,} ids; "
                "name the tokenizer of these files by --tokenizer"
            )
    logps, tail, gold = _distributions(token_ids, scored, ids, logps, gold, tail, facts.top_k)
    flags = np.where(asked, np.where(scored, 0, FLAG_NO_MASS), np.where(scored, 0, FLAG_CONTEXT)).astype(np.uint8)
    flags[anew_T & asked & ~scored] = FLAG_GIVEN
    if len(parts) > 1:
        flags[anew_T] |= FLAG_ANEW
    if facts.eos_id is not None:
        flags[(token_ids == facts.eos_id) & ((flags & FLAG_CONTEXT) == 0)] |= FLAG_END
    zero = np.zeros(len(token_ids), np.float32)
    return {
        "doc_id": doc_id,
        "doc_row": doc_row,
        "text": "",
        "token_ids": token_ids,
        "byte_end": tokens.ends(token_ids),
        "scored": scored,
        "topk_ids": np.where(scored[:, None], ids, PAD_ID).ravel(),
        "topk_logps": np.where(scored[:, None], logps, -np.inf).ravel(),
        "tail_logp": np.where(scored, tail, 0.0),
        "gold_logp": np.where(scored, gold, -np.inf),
        "err": scored.astype(np.float32),
        **dict.fromkeys(SHARE_COLUMNS, zero),
        "flags": flags,
    }


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of a product."""
    arrays = []
    for column in schema:
        values = [row[column.name] for row in rows]
        if not pa.types.is_list(column.type):
            arrays.append(pa.array(values, column.type))
            continue
        flat = pa.array(np.concatenate([np.empty(0, np.float32), *values]) if not values else np.concatenate(values))
        offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
        arrays.append(
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat.cast(column.type.value_type), type=column.type)
        )
    return pa.Table.from_arrays(arrays, schema=schema)


def _without_begin(reading: Reading, bos_id: int | None) -> Reading:
    """An output has no begin token before a text: the reader puts it there."""
    if bos_id is None or not len(reading) or reading.token_ids_T[0] != bos_id or reading.scored_T[0]:
        return reading
    return reading.part(slice(1, None))


def _distributions(
    token_ids: np.ndarray,
    scored: np.ndarray,
    ids: np.ndarray,
    logps: np.ndarray,
    gold: np.ndarray,
    tail: np.ndarray | None,
    top_k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logps [T, K] at stored precision, tail [T], gold [T]). Raises BadDocument for NaN, probabilities above 1 and ids
    that stand twice. Nothing is renormalised: a row that sums to more than 1 by more than rounding is no distribution."""
    if np.isnan(logps).any() or np.isnan(gold).any() or (tail is not None and np.isnan(tail).any()):
        raise BadDocument("nonfinite_logprob", "NaN among the log-probabilities")
    _refuse(scored & (logps[:, 0] > SIGN_TOLERANCE), "a log-probability of {:.4g}", logps[:, 0])
    ranked = np.sort(ids, axis=1)
    twice = ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != PAD_ID)).any(1)
    _refuse(scored & twice, "an id stands twice in a row", logps[:, 0])
    logps = round_logps(logps)
    mass = np.exp(logps.astype(np.float64)).sum(1)
    hit = ids == token_ids[:, None]
    inside = hit.any(1)
    gold = np.where(inside, logps[np.arange(len(hit)), hit.argmax(1)], gold)
    if tail is None:  # what is missing from 1, and no less than what the true token has of it
        with np.errstate(divide="ignore"):
            rest = np.maximum(np.log1p(-np.minimum(mass, 1.0)), np.where(inside, -np.inf, gold))
        tail = rest.astype(np.float32)
    total = mass + np.exp(round_logps(tail).astype(np.float64))
    _refuse(scored & ~(np.abs(total - 1) <= mass_tolerance(top_k)), "a row and its tail sum to {:.6f}", total)
    return logps, tail, gold


def _refuse(bad_T: np.ndarray, words: str, values_T: np.ndarray) -> None:
    if bad_T.any():
        at = int(np.argmax(bad_T))
        more = f" ({int(bad_T.sum()):,} such positions)" if bad_T.sum() > 1 else ""
        raise BadDocument("identity", f"position {at}: {words.format(values_T[at])}{more}; nothing is renormalised")
