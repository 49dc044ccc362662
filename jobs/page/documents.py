"""The documents of a page: which are shown, and their tokens, top-k and costs as JSON values.

Those with the worst positions come first, then some drawn by the seed, as long as there is room. Of a long document a window is
shown: around its worst position, or its beginning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.dataset.parquet import Shard
from engine.dataset.token_tables import TokenTable
from engine.figures import Figures
from engine.figures.rows import Rows, read_rows
from engine.figures.sample import Output, choose_shards
from engine.figures.texts import token_name
from schemas.target import PAD_ID

ROOM_BYTES = 3_000_000
"""Most bytes of all documents as JSON, so that a page stays below 5 MB."""
WINDOW_BYTES = 1_500
SHOWN_TOKENS = 6
_DRAWN = 60
_WORST = 6
_COST_DIGITS, _WIDTH_DIGITS = 3, 3


@dataclass
class _Strings:
    """Each token's text once; documents name it by its number."""

    known: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        return self.known.setdefault(text, len(self.known))


def documents_of(
    output: Output,
    figures: Figures,
    tokens_of: Callable[[str], TokenTable | None],
    *,
    most_positions: int,
    room_bytes: int = ROOM_BYTES,
) -> dict[str, Any]:
    """{"strings": texts of tokens, "documents": [...]}, in the order of the corpus. The shape of a document: `_document`."""
    worst = _worst(figures)
    products = [name for name, facts in output.plan.products.items() if facts.codec != "hidden"]
    shards = choose_shards(output.shards, most_positions, figures.seed)
    drawn = _drawn(output, [shard.unit for shard in shards], figures.seed)
    wanted = {**worst, **{row: None for row in drawn if row not in worst}}
    found: dict[int, dict[str, Rows]] = {}
    tables = {name: tokens_of(name) for name in products}
    for product in products:
        for row, rows in _read(output, product, shards, wanted.keys()):
            found.setdefault(row, {})[product] = rows
    strings, documents, used = _Strings(), [], 0
    for doc_row, place in wanted.items():
        if (of := found.get(doc_row)) is None or (text := _text(of, tables)) is None:
            continue
        document = _document(doc_row, text, of, place, tables, strings)
        used += len(json.dumps(document))
        if documents and used + 12 * len(strings.known) > room_bytes:
            break
        documents.append(document)
    documents.sort(key=lambda document: document["row"])
    return {"strings": list(strings.known), "documents": documents}


def _worst(figures: Figures) -> dict[int, int | None]:
    """doc_row -> byte of a position that is worth seeing, the worst of all products in turn."""
    found: dict[int, int | None] = {}
    lists = [
        places[:_WORST] for one in figures.products.values() for places in (one.widest, one.most_surprising) if places
    ]
    for nth in range(_WORST):
        for places in lists:
            if nth < len(places):
                found.setdefault(places[nth].doc_row, places[nth].start_bytes)
    return found


def _drawn(output: Output, units: list[int], seed: int) -> list[int]:
    """Numbers of documents of these units, in an order drawn by the seed. Some may be in quarantine."""
    sizes = np.array([output.plan.units[unit].n_rows for unit in units], np.int64)
    if not sizes.sum():
        return []
    rng = np.random.default_rng(seed)
    picks = (
        rng.permutation(int(sizes.sum())) if sizes.sum() < 10 * _DRAWN else rng.integers(sizes.sum(), size=3 * _DRAWN)
    )
    ends = np.cumsum(sizes)
    rows = []
    for pick in picks[: 3 * _DRAWN].tolist():
        at = int(np.searchsorted(ends, pick, side="right"))
        rows.append(output.plan.units[units[at]].doc_row + pick - int(ends[at] - sizes[at]))
    return list(dict.fromkeys(rows))[:_DRAWN]


def _read(output: Output, product: str, shards: Any, wanted: Collection[int]) -> Iterable[tuple[int, Rows]]:
    """(doc_row, the document) of those that are there."""
    numbers = np.array(sorted(wanted), np.int64)

    def has_one(shard: Shard, group: int) -> bool:
        known = shard.statistics(group, "doc_row")
        return known is None or bool(((numbers >= known[0]) & (numbers <= known[1])).any())

    for rows in read_rows(output.store, output.plan, product, shards, has_one):
        for n, doc_row in enumerate(rows.doc_rows):
            if doc_row in wanted:
                yield doc_row, rows.alone(n)


def _text(of: dict[str, Rows], tables: dict[str, TokenTable | None]) -> str | None:
    """The text of a document; where the run stores none, out of its tokens, if they have exactly its bytes."""
    for product, rows in of.items():
        if rows.texts[0]:
            return rows.texts[0]
        if (tokens := tables[product]) is None:
            continue
        size = int(rows.end_N.max(initial=0))
        data = b"".join(tokens.pieces[token] or b"" for token in rows.token_ids_N.tolist())
        for whole in (data, data[1:] if data[:1] == b" " else data):  # some tokenizers put a space before a text
            if len(whole) == size:
                try:
                    return whole.decode()
                except UnicodeDecodeError:
                    continue
    return None


def _document(
    doc_row: int,
    text: str,
    of: dict[str, Rows],
    place: int | None,
    tables: dict[str, TokenTable | None],
    strings: _Strings,
) -> dict[str, Any]:
    """row, id, text (the window), from (its first byte), bytes (of the whole text), products: name -> `_tokens`."""
    data = text.encode()
    first = 0 if place is None or len(data) <= WINDOW_BYTES else min(max(0, place - WINDOW_BYTES // 2), len(data))
    while first and data[first] & 0xC0 == 0x80:
        first -= 1
    last = min(len(data), first + WINDOW_BYTES)
    while last < len(data) and data[last] & 0xC0 == 0x80:
        last -= 1
    return {
        "row": doc_row,
        "id": next(iter(of.values())).doc_ids[0],
        "text": data[first:last].decode(),
        "from": first,
        "bytes": len(data),
        "products": {product: _tokens(rows, tables[product], first, last, strings) for product, rows in of.items()},
    }


def _tokens(rows: Rows, tokens: TokenTable | None, first: int, last: int, strings: _Strings) -> dict[str, Any]:
    """One product of a document, a list a column, an entry a token of the window that has bytes or is scored.

    n: number of the position; s, e: bytes of the window where it begins and ends; t: its text (number of a string); b: bits that
    it costs, null for no probability; w: width; f: flags; p: likeliest tokens, [string, probability in millionths] one behind the
    other; d: mean width and mean finite cost of all scored positions of the document.
    """
    inside = (rows.start_N >= first) & (rows.end_N <= last)
    shown = np.flatnonzero(inside & (rows.scored_N | (rows.end_N > rows.start_N)))
    bits_N = rows.bits_N

    def name(token: int) -> int:
        return strings.number(token_name(tokens, token))

    def likeliest(n: int) -> list[int]:
        if rows.ids_NK is None or rows.logps_NK is None or not rows.scored_N[n]:
            return []
        best = zip(
            rows.ids_NK[n, :SHOWN_TOKENS].tolist(), np.exp(rows.logps_NK[n, :SHOWN_TOKENS]).tolist(), strict=True
        )
        return [number for token, p in best if token != PAD_ID for number in (name(token), round(p * 1_000_000))]

    return {
        "n": shown.tolist(),
        "s": (rows.start_N[shown] - first).tolist(),
        "e": (rows.end_N[shown] - first).tolist(),
        "t": [name(token) for token in rows.token_ids_N[shown].tolist()],
        "b": [round(b, _COST_DIGITS) + 0.0 if np.isfinite(b) else None for b in bits_N[shown].tolist()],
        "w": [float(f"{w:.{_WIDTH_DIGITS}g}") for w in rows.width_N[shown].tolist()],
        "f": rows.flags_N[shown].tolist(),
        "p": [likeliest(n) for n in shown.tolist()],
        "d": [_mean(rows.width_N[rows.scored_N]), _mean(bits_N[rows.scored_N & np.isfinite(bits_N)])],
    }


def _mean(values: np.ndarray) -> float:
    return float(f"{values.mean():.4g}") if len(values) else 0.0
