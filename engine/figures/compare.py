"""Two outputs, or two products of one, position by position: for teachers, regimes, codecs, versions of this program.

Documents are found by their doc_id. Some are drawn from the first by a seed and looked for in the second, whose files are gone
through once; memory holds the drawn documents and one row group of the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.dataset.parquet import Shard
from engine.dataset.token_tables import TokenTable
from engine.figures.costs import CostOfDocument, costs_of, difference_of
from engine.figures.differences import Apart, by_first_byte, by_token, first_bytes, places_of
from engine.figures.models import Difference, Spread
from engine.figures.rows import Rows, read_rows
from engine.figures.sample import Output
from engine.figures.spreads import bits_edges, probability_edges, spread_of
from schemas.counts import counted
from schemas.errors import OutputError
from schemas.manifest import ProductFacts

DOCUMENTS = 500
_SHOWN_DOCUMENTS = 10
_ROUNDING_TV = 2e-3  # of two distributions that are stored to 2**-11


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DocumentApart(_Frozen):
    """One document in both."""

    doc_id: str
    positions: int
    mean_tv: float
    largest_tv: float
    largest_at_bytes: int = Field(description="where in the text that position begins")


class Comparison(_Frozen):
    """How far `other` is from `one`. Distributions are compared where both have a position at the same byte of the text."""

    one: str
    other: str
    one_facts: ProductFacts
    other_facts: ProductFacts
    by: str = Field(
        description="tokens: the same vocabulary; first bytes: other vocabularies; nothing: no distributions stored"
    )
    seed: int
    drawn: int = Field(description="documents drawn from `one`")
    found: int = Field(description="of these, those that `other` has, with the same text")
    other_text: int = Field(description="of these, those with the same doc_id and another text")
    positions: int = Field(description="positions at the same place in both")
    only_one: int = Field(description="scored positions of `one` at whose place `other` has none")
    only_other: int
    least_tv: Spread | None = Field(description="total variation is at least this; at most `most_tv`")
    most_tv: Spread | None
    kl: Spread | None = Field(description="bits, KL(one || other), where finite")
    kl_back: Spread | None = Field(description="bits, KL(other || one), where finite")
    infinite_kl: int
    infinite_kl_back: int
    same_top: float | None = Field(description="share of positions whose likeliest outcome is the same")
    beyond_width: int = Field(
        description="same vocabulary: positions whose total variation is above both certified widths together, so that they are "
        "no two estimates of the same thing"
    )
    same_bytes: bool = Field(description="every stored number of every compared position is the same")
    cost: Difference | None
    worst: tuple[DocumentApart, ...]


@dataclass
class _Gathered:
    aparts: list[Apart] = field(default_factory=list)
    documents: list[DocumentApart] = field(default_factory=list)
    costs: dict[int, CostOfDocument] = field(default_factory=dict)
    other_costs: dict[int, CostOfDocument] = field(default_factory=dict)
    found: int = 0
    other_text: int = 0
    positions: int = 0
    only_one: int = 0
    only_other: int = 0
    beyond_width: int = 0
    same: bool = True


@dataclass(frozen=True, slots=True)
class Side:
    """A product of an output, with its tokens; None where they are not known."""

    output: Output
    product: str
    tokens: TokenTable | None

    @property
    def facts(self) -> ProductFacts:
        return self.output.plan.products[self.product]

    @property
    def name(self) -> str:
        return f"{self.output.store}, {self.product}"


def compare(one: Side, other: Side, *, seed: int = 0, documents: int = DOCUMENTS) -> Comparison:
    """Draw documents of one side and compare them with the other.

    Raises OutputError for damaged files, hidden states, no document in common, and other vocabularies whose tokens are not known.
    """
    for side in (one, other):
        if side.facts.codec == "hidden":
            raise OutputError(
                f"{side.name}: hidden states are no distributions; name another product by --student or --view"
            )
    by = _outcomes(one, other)
    drawn = _draw(one, documents, seed)
    if not drawn:
        raise OutputError(f"{one.name}: no document is published; `targetsmith stats` tells why, by reason")
    sides = (one, other)
    first = [
        first_bytes(side.tokens) if by == "first bytes" and side.tokens else np.empty(0, np.int64) for side in sides
    ]
    made = _Gathered()
    waiting = {rows.doc_ids[0]: rows for rows in drawn}

    def has_one(shard: Shard, group: int) -> bool:
        names = shard.file.read_row_group(group, ["doc_id"]).column("doc_id").to_pylist() if waiting else []
        return not waiting.keys().isdisjoint(names)

    for rows in read_rows(other.output.store, other.output.plan, other.product, other.output.shards, has_one):
        for document, doc_id in enumerate(rows.doc_ids):
            if (mine := waiting.get(doc_id)) is None:
                continue
            if not _same_text(mine, rows, document):
                made.other_text += 1
                continue
            del waiting[doc_id]
            _compare_document(made, by, mine, first[0], rows.alone(document), first[1])
    if not made.found:
        also = f"; {made.other_text:,} have the same doc_id and another text" if made.other_text else ""
        raise OutputError(
            f"{other.name}: none of {counted(len(drawn), 'document')} of {one.name} is there{also}; name two outputs "
            f"of one corpus{'' if made.other_text else _by_name(one, other, drawn[0].doc_ids[0])}"
        )
    return _summary(made, one, other, by, seed, len(drawn))


def _by_name(one: Side, other: Side, name: str) -> str:
    """What to know of imports: their documents may have no names."""
    if "imported" not in (one.facts.regime, other.facts.regime):
        return ""
    return (
        f". Documents are found by their doc_id, such as {name!r}; an import of files that do not tell it calls them FILE#NUMBER "
        "(docs/exchange.md): import what `targetsmith export` of this version has written"
    )


def _outcomes(one: Side, other: Side) -> str:
    if one.facts.codec != "topk" or other.facts.codec != "topk":
        return "nothing"
    if one.facts.tokenizer_hash == other.facts.tokenizer_hash:
        return "tokens"
    for side in (one, other):
        if side.tokens is None:
            raise OutputError(
                f"{side.name}: its tokens are not in the output (made before 0.7.0), and its tokenizer "
                f"{side.facts.tokenizer!r} was not found; run this in the folder of the run file"
            )
    return "first bytes"


def _draw(side: Side, most: int, seed: int) -> list[Rows]:
    """So many documents, each as rows of its own: all, or drawn by the seed without replacement."""
    total = sum(file.rows for shard in side.output.shards if (file := shard.files[side.product]))
    rng = np.random.default_rng(seed)
    numbers = np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))
    found: dict[str, Rows] = {}
    seen = 0

    def has_one(shard: Shard, group: int) -> bool:
        nonlocal seen
        first, seen = seen, seen + shard.file.metadata.row_group(group).num_rows
        return bool(np.searchsorted(numbers, first) < np.searchsorted(numbers, seen))

    for rows in read_rows(side.output.store, side.output.plan, side.product, side.output.shards, has_one):
        first = seen - len(rows.doc_ids)
        for number in numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, seen)].tolist():
            n = number - first
            found.setdefault(rows.doc_ids[n], rows.alone(n))  # of documents with one name the first
    return list(found.values())


def _same_text(mine: Rows, rows: Rows, document: int) -> bool:
    """By the texts where both are stored, else by their lengths."""
    text, other = mine.texts[0], rows.texts[document]
    if text and other:
        return text == other
    return mine.end_N.max(initial=0) == rows.end_N[rows.positions(document)].max(initial=0)


def _compare_document(made: _Gathered, by: str, mine: Rows, first: Any, theirs: Rows, first2: Any) -> None:
    here, there = places_of(mine, 0), places_of(theirs, 0)
    both = [place for place in here if place in there]
    number = made.found  # both sides' costs by one number, as doc_rows may differ
    made.found += 1
    made.costs[number], made.other_costs[number] = (next(iter(costs_of(rows).values())) for rows in (mine, theirs))
    made.positions += len(both)
    made.only_one += len(here) - len(both)
    made.only_other += len(there) - len(both)
    if by == "first bytes":  # some tokenizers put a space before a text: byte 0 is not the same place for all
        both = [place for place in both if place[1] or place[2]]
    mine_P, other_P = (np.array([known[place] for place in both], np.int64) for known in (here, there))
    made.same &= _equal(mine, mine_P, theirs, other_P) and len(here) == len(both) == len(there)
    if by == "nothing" or not both:
        return
    if by == "tokens":
        apart = by_token(mine, mine_P, theirs, other_P)
    else:
        apart = by_first_byte(mine, mine_P, first, theirs, other_P, first2)
    made.aparts.append(apart)
    if by == "tokens":  # else each knows of its own last token that it ended here, and so what does not follow
        widths = mine.width_N[mine_P].astype(np.float64) + theirs.width_N[other_P]
        made.beyond_width += int((apart.least_tv_P > widths + _ROUNDING_TV).sum())
    worst = int(apart.least_tv_P.argmax())
    made.documents.append(
        DocumentApart(
            doc_id=mine.doc_ids[0],
            positions=len(both),
            mean_tv=float(apart.least_tv_P.mean()),
            largest_tv=float(apart.least_tv_P[worst]),
            largest_at_bytes=int(mine.start_N[mine_P[worst]]),
        )
    )


def _equal(mine: Rows, mine_P: Any, theirs: Rows, other_P: Any) -> bool:
    names = ("token_ids_N", "gold_logp_N", "width_N", "ids_NK", "logps_NK", "tail_logp_N")
    pairs = ((getattr(mine, name), getattr(theirs, name)) for name in names)
    return all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a[mine_P], b[other_P]))
        for a, b in pairs
    )


def _summary(made: _Gathered, one: Side, other: Side, by: str, seed: int, drawn: int) -> Comparison:
    def joined(name: str) -> Any:
        return np.concatenate([getattr(apart, name) for apart in made.aparts]) if made.aparts else np.empty(0)

    least, most, kl, back, same = (
        joined(name) for name in ("least_tv_P", "most_tv_P", "kl_P", "kl_back_P", "same_top_P")
    )
    finite, finite_back = kl[np.isfinite(kl)], back[np.isfinite(back)]
    worst = sorted(made.documents, key=lambda document: (-document.mean_tv, document.doc_id))[:_SHOWN_DOCUMENTS]
    imported = "imported" in (one.facts.regime, other.facts.regime)  # what its rows exclude is not known, so no cost is
    return Comparison(
        one=one.name,
        other=other.name,
        one_facts=one.facts,
        other_facts=other.facts,
        by=by,
        seed=seed,
        drawn=drawn,
        found=made.found,
        other_text=made.other_text,
        positions=made.positions,
        only_one=made.only_one,
        only_other=made.only_other,
        least_tv=spread_of(least, probability_edges(least)),
        most_tv=spread_of(most, probability_edges(most)),
        kl=spread_of(finite, bits_edges(finite)),
        kl_back=spread_of(finite_back, bits_edges(finite_back)),
        infinite_kl=len(kl) - len(finite),
        infinite_kl_back=len(back) - len(finite_back),
        same_top=float(same.mean()) if len(same) else None,
        beyond_width=made.beyond_width,
        same_bytes=made.same,
        cost=None if imported else difference_of(one.name, made.costs, other.name, made.other_costs),
        worst=tuple(worst),
    )
