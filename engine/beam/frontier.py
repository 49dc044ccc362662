"""Which open leaves of a document are split by the teacher's own next tokens, and what becomes of their mass.

In: the open leaves of every boundary, and sketches of next-token rows as they become known. Out: `Boundary.extra`, masses that
replace those of the leaves that were split (`Boundary.skip`). One `Frontier` holds the open leaves of one document and one
student; `BeamSearch.search` takes all frontiers of a group through rounds.

Leaves whose context is evaluated already (the document's own path, or for another student or boundary) are split for nothing;
the others cost one teacher evaluation each, heaviest first, until every boundary is known to `tolerance` or the document's
budget is spent. What is left open is closed by the mean row of its last token, where a calibration sample has one
(engine/beam/calibration.py), else as if a boundary followed; it counts as open all the same.

Letters: n boundaries of a document, m open leaves of a frontier, E entries of a boundary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from engine.alignment.boundaries import Boundary, Extra
from engine.alignment.strings import BoundaryStrings, StringRules, Strings
from engine.beam.leaves import Use
from engine.beam.sketch import RowSketch
from schemas.errors import IdentityError

LEAST_MASS = 1e-13  # of a boundary: below this nothing is split, whatever the budget; it stays open
LEAST_CLOSED = 1e-2  # of a boundary: lighter leaves are closed as if a boundary followed, which costs little
LEAST_FOLLOWED = 0.04  # of a leaf: lighter parts of it are not followed from one mean row to the next
MOST_FOLLOWED = 4  # tokens
FIRST_TURN = 0.5  # evaluations for each boundary in the first turn, and in the second; then twice as many in each
LEVELS = 64  # of mass for each factor of two: what differs by less is chosen in the order of the text, not by rounding
_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Spending:
    """tolerance: certified width at which a boundary is done. per_token: evaluations for each student token of a document.
    least: share of a boundary below which a leaf is not looked at by itself."""

    tolerance: float
    per_token: float
    least: float


Known = Callable[[int], dict[int, float]]


@dataclass(slots=True)
class OpenLeaf:
    """An open leaf: `token` behind `parent` (a context, or a node made before). prob: relative to the weight of context
    `node`; mass: share of boundary k; s: bytes behind the boundary."""

    k: int
    node: int
    parent: int
    token: int
    prob: float
    mass: float
    s: bytes


@dataclass(slots=True)
class _Split:
    """Entries of one boundary as they come."""

    node: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    mass: list[float] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)


def _place(item: OpenLeaf) -> tuple[int, int, bytes, int, int]:
    return item.k, item.node, item.s, item.token, item.parent


class Frontier:
    """Open leaves of one document for one student."""

    def __init__(
        self,
        product: str,
        outcomes: StringRules,
        spending: Spending,
        boundaries: list[Boundary],
        text: bytes,
    ) -> None:
        self.product, self.outcomes, self.spending = product, outcomes, spending
        self.boundaries, self.text = boundaries, text
        self.items: list[OpenLeaf] = []
        self.open = np.zeros(len(boundaries))  # [n] share of each boundary whose token is not certain
        self.gone = np.zeros(len(boundaries))  # [n] share that splits have shown to have no token there
        self.splits: dict[int, _Split] = {}
        for boundary in boundaries:  # a group that failed is scored again in parts
            boundary.skip, boundary.extra = {}, None
        self.left = 0.0
        self.begun = 0  # boundaries with mass

    def begin(self, k: int, uses: list[tuple[Use, float, int]], pruned: float, known: Known) -> None:
        """uses of boundary k with their relative weights and the byte at which each context ends; pruned: mass bound on
        the scale of the weights; known: of a context, the next tokens behind which it is evaluated anyway, and their
        probabilities."""
        total = sum(w * max(u.valid, u.open) for u, w, _ in uses)  # open leaves count also where closing finds no token
        if not total > 0:
            return
        self.left += self.spending.per_token
        self.begun += 1
        self.open[k] = (sum(w * u.open for u, w, _ in uses) + pruned) / (total + pruned)
        place = self.boundaries[k].place
        for use, weight, end in uses:
            scale = weight / (total + pruned)
            listed = dict(zip(use.tokens.tolist(), use.prob.tolist(), strict=True))
            behind = self._behind(k, end, known(use.node))
            for token, prob in (listed | behind).items():
                if prob * scale > self.spending.least or token in behind:
                    s = self.outcomes.pieces[token][place - end :]
                    self.items.append(OpenLeaf(k, use.node, use.node, token, prob, prob * scale, s))

    def _behind(self, k: int, end: int, known: dict[int, float]) -> dict[int, float]:
        """Those of the known next tokens that are open leaves of boundary k."""
        z = self.boundaries[k].place - end
        pieces = self.outcomes.pieces
        tokens = [
            t for t, p in known.items() if p > 0 and len(pieces[t]) > z and pieces[t][:z] == self.text[end : end + z]
        ]
        if not tokens:
            return {}
        _, open_ = self._gate(k).answers([pieces[t][z:] for t in tokens])
        return {t: known[t] for t, o in zip(tokens, open_.tolist(), strict=True) if o}

    def choose(self, turn: int, fits: Callable[[OpenLeaf], bool]) -> list[OpenLeaf]:
        """Heaviest items of boundaries that are not certain enough, the first of them to be paid first. fits: whether the
        teacher's window has room for one more token.

        How many in which turn does not depend on the budget: what a smaller budget pays, a larger one pays too, so that
        no width grows with it.
        """
        enough = self.spending.tolerance * (1 - self.gone)
        wide = self.open > enough
        candidates = [i for i in self.items if wide[i.k] and i.mass > LEAST_MASS and fits(i)]
        if not candidates or self.left < 1:
            return []
        candidates.sort(key=_place)  # rows list near ties in an order that hangs on the batch
        k, mass = np.array([i.k for i in candidates]), np.array([i.mass for i in candidates])
        level = np.rint(np.log2(mass) * LEVELS)
        order = np.lexsort((-level, k))
        before = np.cumsum(mass[order]) - mass[order]
        begin = np.flatnonzero(np.diff(k[order], prepend=-1))
        before -= np.repeat(before[begin], np.diff(np.append(begin, len(order))))
        needed = order[self.open[k[order]] - before > enough[k[order]]]
        most = math.ceil(self.begun * FIRST_TURN * 2 ** max(0, turn - 1))
        best = needed[np.argsort(-level[needed], kind="stable")[:most]]
        return [candidates[i] for i in best]

    def split(self, item: OpenLeaf, row: RowSketch, node: int, known: dict[int, float]) -> list[OpenLeaf]:
        """Replace a leaf by the next tokens in `row` (of the context `node` that it leads to). Returns the items among them."""
        gate = self._gate(item.k)
        if item.node == item.parent:
            self.boundaries[item.k].skip.setdefault(item.node, []).append(item.token)
        closing = gate.strings.closing(item.s)
        closed = float(row.heads[self.product] @ closing) + row.special
        unsure = not gate.strings.final(item.s)  # then no head closes it, and of an end only the place is known
        scale = item.mass / item.prob
        heavy = row.prob * item.mass > self.spending.least
        heavy &= ~closing[self.outcomes.heads.of_token[row.ids]] & self.outcomes.is_text[row.ids]
        tokens, prob = row.ids[heavy], row.prob[heavy]
        if known:
            more = [
                t
                for t, p in known.items()
                if p > 0 and t not in tokens and not closing[self.outcomes.heads.of_token[t]]
            ]
            tokens = np.append(tokens, np.array(more, np.int64))
            prob = np.append(prob, np.array([known[t] for t in more]))
        strings = [item.s, *(item.s + self.outcomes.pieces[t] for t in tokens.tolist())]
        first, open_ = gate.answers(strings)
        rest = 1.0 - closed - float(prob.sum())
        if not rest > -_SLACK:
            raise IdentityError(f"{self.product}: {closed!r} closed + {prob.sum()!r} listed > 1 behind {item.s!r}")
        out = self.splits.setdefault(item.k, _Split())
        out.node += [item.node] * 2
        out.first += [int(first[0])] * 2
        out.mass += [item.prob * closed, item.prob * max(rest, 0.0)]
        out.open += [unsure, True]
        made = []
        still = item.prob * (max(rest, 0.0) + closed * unsure) * scale
        for token, p, s, v, o in zip(
            tokens.tolist(), prob.tolist(), strings[1:], first[1:].tolist(), open_[1:].tolist(), strict=True
        ):
            if o and item.prob * p > 0:
                made.append(OpenLeaf(item.k, item.node, node, token, item.prob * p, item.mass * p, s))
                still += item.mass * p
            else:
                out.node.append(item.node)
                out.first.append(v)
                out.mass.append(item.prob * p)
                out.open.append(o)
        self.open[item.k] += still - item.mass
        nothing = float(prob[(first[1:] < 0) & ~open_[1:]].sum()) + (closed if first[0] < 0 and not unsure else 0.0)
        self.gone[item.k] += item.mass * nothing
        return made

    def _gate(self, k: int) -> BoundaryStrings:
        gate = self.boundaries[k].gate
        assert gate is not None, "boundaries made for the beam have gates"
        return gate

    def finish(self, mean: Callable[[int], RowSketch | None]) -> None:
        """Close what is left open, by the mean row of its last token or as if a boundary followed; hand the boundaries
        their extras."""
        by_boundary: dict[int, list[OpenLeaf]] = {}
        for item in self.items:
            by_boundary.setdefault(item.k, []).append(item)
        for k, items in by_boundary.items():
            self._close(k, items, mean)
        self.items = []
        for k, out in self.splits.items():
            if not out.node:
                continue
            arrays = (np.array(out.node), np.array(out.first), np.array(out.mass), np.array(out.open, bool))
            self.boundaries[k].extra = Extra(*arrays)

    def _close(self, k: int, items: list[OpenLeaf], mean: Callable[[int], RowSketch | None]) -> None:
        """What stands for the open leaves of one boundary: strings that count as closed, with their shares of each leaf."""
        gate, strings = self._gate(k), []
        out = self.splits.setdefault(k, _Split())
        for item in items:
            if item.mass > LEAST_CLOSED and mean(item.token) is not None:
                parts, shares = self._spread(gate.strings, item.s, item.token, mean)
                if item.node == item.parent:
                    self.boundaries[k].skip.setdefault(item.node, []).append(item.token)
            elif item.node == item.parent:
                continue  # a leaf of a context is closed by its rule
            else:
                parts, shares = [item.s], [1.0]
            strings += parts
            out.node += [item.node] * len(parts)
            out.mass += [item.prob * share for share in shares]
        if strings:
            out.first += gate.answers(strings)[0].tolist()
            out.open += [True] * len(strings)

    def _spread(
        self, table: Strings, s: bytes, token: int, mean: Callable[[int], RowSketch | None]
    ) -> tuple[list[bytes], list[float]]:
        """(strings, shares) of an open leaf that goes on as its last token usually does, token by token while a part is
        heavy. It depends on the kind of boundary only, so it is remembered there."""
        made = table.spread.get((s, token))
        if made is not None:
            return made
        strings, shares, queue, outcomes = [], [], [(s, token, 1.0, 0)], self.outcomes
        while queue:
            s_now, last, share, depth = queue.pop()
            row = mean(last) if share > LEAST_FOLLOWED and depth < MOST_FOLLOWED else None
            listed = 0.0
            if row is not None:
                closing = table.closing(s_now)
                heavy = (row.prob * share > LEAST_FOLLOWED / 2) & outcomes.is_text[row.ids]
                heavy &= ~closing[outcomes.heads.of_token[row.ids]]
                listed = float(row.prob[heavy].sum())
                parts = zip(row.ids[heavy].tolist(), row.prob[heavy].tolist(), strict=True)
                queue += [(s_now + outcomes.pieces[t], t, share * p, depth + 1) for t, p in parts]
            strings.append(s_now)
            shares.append(share * (1 - listed))  # what closes s, and what is not listed: both get the answer of s
        made = table.spread[s, token] = (strings, shares)
        return made
