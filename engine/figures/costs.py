"""What a text costs by each product, in bits: the true tokens' probabilities multiplied up. The same text must cost the same by
every tokenizer, so differences are a finding.

Exact regimes with `canonical-masked` agree but for rounding. Elsewhere open mass that was placed, mass on tokens that no text
has, specials in the rows of beam and fast, and pruned contexts move it a little. A product that has the same bytes scored and a
clearly different cost has targets of something else than its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from engine.figures.models import Cost, Difference
from engine.figures.rows import Rows

FINDING_BITS_PER_BYTE = 0.02
FINDING_SHARE = 0.05
"""A difference is a finding where it is above this share of the cost and above FINDING_BITS_PER_BYTE. A target_error of 0.002
a token, usual non-canonical mass and rounding stay far below both."""
_SHOWN_DOCUMENTS = 10


@dataclass(frozen=True, slots=True)
class CostOfDocument:
    """One document by one product. `scored`: first and last byte that a scored token covers, bytes covered, end rows: two
    products with the same have scored the same text."""

    doc_id: str
    bits: float  # over positions with a finite cost
    tokens: int  # scored, end rows left out
    impossible: int
    scored: tuple[int, int, int, int]

    @property
    def text_bytes(self) -> int:
        return self.scored[2]


def costs_of(rows: Rows) -> dict[int, CostOfDocument]:
    """doc_row -> its cost, of each document of a row group."""
    bits_N, ends_N = rows.bits_N, rows.is_end_N
    found = {}
    for document, (doc_row, doc_id) in enumerate(zip(rows.doc_rows, rows.doc_ids, strict=True)):
        here = rows.positions(document)
        scored, end, bits = rows.scored_N[here], ends_N[here], bits_N[here]
        inside = scored & ~end
        start, stop = rows.start_N[here][inside], rows.end_N[here][inside]
        finite = np.isfinite(bits)
        found[doc_row] = CostOfDocument(
            doc_id=doc_id,
            bits=float(bits[finite].sum()),
            tokens=int(inside.sum()),
            impossible=int((~finite).sum()),
            scored=(
                int(start.min()) if len(start) else 0,
                int(stop.max(initial=0)),
                int((stop - start).sum()),
                int((scored & end).sum()),
            ),
        )
    return found


def add_cost(costs: Iterable[CostOfDocument]) -> Cost | None:
    """The sum over documents; None where there are none."""
    listed = list(costs)
    if not listed:
        return None
    bits = sum(cost.bits for cost in listed)
    text_bytes, tokens = sum(cost.text_bytes for cost in listed), sum(cost.tokens for cost in listed)
    return Cost(
        bits=bits,
        text_bytes=text_bytes,
        tokens=tokens,
        bits_per_byte=bits / text_bytes if text_bytes else None,
        tokens_per_byte=tokens / text_bytes if text_bytes else None,
        impossible=sum(cost.impossible for cost in listed),
    )


def difference_of(
    product: str, ours: Mapping[int, CostOfDocument], against: str, theirs: Mapping[int, CostOfDocument]
) -> Difference:
    """The same documents by two products: what each says that their text costs."""
    both = ours.keys() & theirs.keys()
    same = sorted(
        row
        for row in both
        if ours[row].scored == theirs[row].scored and not ours[row].impossible and not theirs[row].impossible
    )
    text_bytes = sum(ours[row].text_bytes for row in same)
    mine, other = (sum(costs[row].bits for row in same) for costs in (ours, theirs))
    each = {row: (ours[row].bits - theirs[row].bits) / max(1, ours[row].text_bytes) for row in same}
    worst = sorted(same, key=lambda row: (-abs(each[row]), row))[:_SHOWN_DOCUMENTS]
    per_byte = (
        (mine / text_bytes, other / text_bytes, (mine - other) / text_bytes) if text_bytes else (None, None, None)
    )
    apart = abs(mine - other)
    return Difference(
        product=product,
        against=against,
        documents=len(same),
        left_out=len(both) - len(same),
        text_bytes=text_bytes,
        bits_per_byte=per_byte[0],
        against_bits_per_byte=per_byte[1],
        difference_bits_per_byte=per_byte[2],
        finding=apart > FINDING_BITS_PER_BYTE * text_bytes and apart > FINDING_SHARE * other,
        largest=tuple((row, ours[row].doc_id, each[row]) for row in worst),
    )
