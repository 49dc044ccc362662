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
_SLACK = 1e-6  # shares of a row add up to 1 as near as this; known ones are exponentials of differences of logs


@dataclass(frozen=True, slots=True)
class Spending:
    """What a search may cost, and when it is enough.

    tolerance: certified width (`err`, definition 9) at which a boundary is done. per_token: teacher evaluations for each student
    token of a document. least: share of a boundary's mass below which a leaf is not listed by itself (section 5).
    """

    tolerance: float
    per_token: float
    least: float


Known = Callable[[int], dict[int, float]]
"""A context -> the next tokens behind which the teacher is evaluated anyway, with their probabilities."""


@dataclass(slots=True)
class OpenLeaf:
    """A leaf (c, t_1 .. t_m) of definition 13 whose student token is not certain yet.

    k: its boundary. node: the context c. parent: where t_m stands behind, c itself or a node made for t_1 .. t_(m-1); token: t_m.
    prob: p(t_1 | c) .. p(t_m | ..), relative to the weight of c. mass: share of boundary k's mass. s: its string, what its tokens
    bring behind the boundary.
    """

    k: int
    node: int
    parent: int
    token: int
    prob: float
    mass: float
    s: bytes


@dataclass(slots=True)
class _Split:
    """What the splits of one boundary have made so far, entry by entry: mass of context `node` (relative to its weight) that
    begins student token `first` (-1: none), and whether that is still open."""

    node: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    mass: list[float] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)


def _text_order(leaf: OpenLeaf) -> tuple[int, int, bytes, int, int]:
    return leaf.k, leaf.node, leaf.s, leaf.token, leaf.parent


class Frontier:
    """The open leaves of one document for one student: a frontier of definition 13 at each of its n boundaries.

    By lemma 16 the targets and their certificate can be read off any frontier, so that splitting may stop anywhere.

    leaves: those still open. open: float64 [n], share of each boundary's mass whose student token is not certain, pruned mass
    included; nothing: float64 [n], share that splits have shown to have no boundary there. budget_left: evaluations that the
    document may still pay for this student. boundaries_with_mass: how many of the n have any.
    """

    def __init__(
        self,
        product: str,
        string_rules: StringRules,
        spending: Spending,
        boundaries: list[Boundary],
        text: bytes,
    ) -> None:
        self.product, self.string_rules, self.spending = product, string_rules, spending
        self.boundaries, self.text = boundaries, text
        self.leaves: list[OpenLeaf] = []
        self.open = np.zeros(len(boundaries))
        self.nothing = np.zeros(len(boundaries))
        self.splits: dict[int, _Split] = {}
        for boundary in boundaries:  # a group that failed is scored again in parts
            boundary.skip, boundary.extra = {}, None
        self.budget_left = 0.0
        self.boundaries_with_mass = 0

    def begin(self, k: int, uses: list[tuple[Use, float, int]], pruned: float, known: Known) -> None:
        """Take up the open leaves of boundary k.

        uses: (what a context brings there, its weight, the byte at which it ends); pruned: bound of the mass in contexts that
        were not evaluated, on the scale of the weights.
        """
        total = sum(w * max(u.valid, u.open) for u, w, _ in uses)  # open leaves count also where closing finds no token
        if not total > 0:
            return
        self.budget_left += self.spending.per_token
        self.boundaries_with_mass += 1
        self.open[k] = (sum(w * u.open for u, w, _ in uses) + pruned) / (total + pruned)
        place = self.boundaries[k].place
        for use, weight, end in uses:
            scale = weight / (total + pruned)
            listed = dict(zip(use.tokens.tolist(), use.prob.tolist(), strict=True))
            behind = self._behind(k, end, known(use.node))
            for token, prob in (listed | behind).items():
                if prob * scale > self.spending.least or token in behind:
                    s = self.string_rules.pieces[token][place - end :]
                    self.leaves.append(OpenLeaf(k, use.node, use.node, token, prob, prob * scale, s))

    def _behind(self, k: int, end: int, known: dict[int, float]) -> dict[int, float]:
        """Those of the known next tokens that are open leaves of boundary k."""
        z = self.boundaries[k].place - end
        pieces = self.string_rules.pieces
        tokens = [
            t for t, p in known.items() if p > 0 and len(pieces[t]) > z and pieces[t][:z] == self.text[end : end + z]
        ]
        if not tokens:
            return {}
        _, open_ = self._strings_at(k).answers([pieces[t][z:] for t in tokens])
        return {t: known[t] for t, o in zip(tokens, open_.tolist(), strict=True) if o}

    def choose(self, turn: int, fits: Callable[[OpenLeaf], bool]) -> list[OpenLeaf]:
        """The leaves that this turn should split, the first of them to be paid first: of boundaries that are wider than the
        tolerance the heaviest, as many as would bring each below it if all of them were decided. fits: whether the teacher's
        window has room for one more token.

        Lemma 20 (nested budgets): how many in which turn does not depend on the budget. What a smaller budget pays a larger one
        pays too, so no width grows with it.
        """
        # err is open mass over mass that may still begin a token: what begins none has left the denominator (definition 9)
        enough = self.spending.tolerance * (1 - self.nothing)
        wide = self.open > enough
        candidates = [i for i in self.leaves if wide[i.k] and i.mass > LEAST_MASS and fits(i)]
        if not candidates or self.budget_left < 1:
            return []
        candidates.sort(key=_text_order)  # rows list near ties in an order that hangs on the batch
        k, mass = np.array([i.k for i in candidates]), np.array([i.mass for i in candidates])
        level = np.rint(np.log2(mass) * LEVELS)
        order = np.lexsort((-level, k))  # boundary by boundary, the heaviest first
        # before: mass of the heavier candidates of the same boundary, which would be decided first
        before = np.cumsum(mass[order]) - mass[order]
        begin = np.flatnonzero(np.diff(k[order], prepend=-1))
        before -= np.repeat(before[begin], np.diff(np.append(begin, len(order))))
        needed = order[self.open[k[order]] - before > enough[k[order]]]
        most = math.ceil(self.boundaries_with_mass * FIRST_TURN * 2 ** max(0, turn - 1))
        best = needed[np.argsort(-level[needed], kind="stable")[:most]]
        return [candidates[i] for i in best]

    def split(self, leaf: OpenLeaf, row: RowSketch, node: int, known: dict[int, float]) -> list[OpenLeaf]:
        """Put a leaf's continuations in its place (definition 13). Returns those of them that are open leaves.

        row: the teacher's next tokens behind the leaf; node: of the context that it leads to; known: next tokens behind which
        the teacher is evaluated anyway. The leaf's mass is divided into three (section 5): *closed*, specials and the tokens
        whose heads show the end of the string s to be a certain cut (lemma 17): decided, with the answer of s; *listed*, heavy
        tokens asked one by one: decided, excluded, or a new open leaf; and the *rest*: open, with the answer of s. By lemma 16
        masses and certificate stay right; by lemma 18 the width does not grow.
        """
        behind = self._strings_at(leaf.k)
        if leaf.node == leaf.parent:
            self.boundaries[leaf.k].skip.setdefault(leaf.node, []).append(leaf.token)
        closing = behind.strings.closing(leaf.s)
        closed = float(row.heads[self.product] @ closing) + row.special  # lemma 17; a special ends the text behind s
        unsure = not behind.strings.final(leaf.s)  # then no head closes it, and of an end only the place is known
        scale = leaf.mass / leaf.prob
        heavy = row.prob * leaf.mass > self.spending.least
        heavy &= ~closing[self.string_rules.heads.of_token[row.ids]] & self.string_rules.is_text[row.ids]
        tokens, prob = row.ids[heavy], row.prob[heavy]
        if known:
            more = [
                t
                for t, p in known.items()
                if p > 0 and t not in tokens and not closing[self.string_rules.heads.of_token[t]]
            ]
            tokens = np.append(tokens, np.array(more, np.int64))
            prob = np.append(prob, np.array([known[t] for t in more]))
        strings = [leaf.s, *(leaf.s + self.string_rules.pieces[t] for t in tokens.tolist())]
        first, open_ = behind.answers(strings)
        rest = 1.0 - closed - float(prob.sum())
        if not rest > -_SLACK:
            raise IdentityError(f"{self.product}: {closed!r} closed + {prob.sum()!r} listed > 1 behind {leaf.s!r}")
        # Where all of the row is closed or listed nothing is left, and the difference of these sums is rounding, of either sign.
        # That is all that a value below 0 can be here: what is further from 0 than _SLACK was raised.
        rest = 0.0 if rest < 0 else rest
        out = self.splits.setdefault(leaf.k, _Split())
        # two entries for what is not listed: closed (decided if s has an answer of its own), and the rest (open)
        out.node += [leaf.node] * 2
        out.first += [int(first[0])] * 2
        out.mass += [leaf.prob * closed, leaf.prob * rest]
        out.open += [unsure, True]
        made = []
        still = leaf.prob * (rest + closed * unsure) * scale  # share of the boundary that stays open
        for token, p, s, v, o in zip(
            tokens.tolist(), prob.tolist(), strings[1:], first[1:].tolist(), open_[1:].tolist(), strict=True
        ):
            if o and leaf.prob * p > 0:
                made.append(OpenLeaf(leaf.k, leaf.node, node, token, leaf.prob * p, leaf.mass * p, s))
                still += leaf.mass * p
            else:
                out.node.append(leaf.node)
                out.first.append(v)
                out.mass.append(leaf.prob * p)
                out.open.append(o)
        self.open[leaf.k] += still - leaf.mass
        nothing = float(prob[(first[1:] < 0) & ~open_[1:]].sum()) + (closed if first[0] < 0 and not unsure else 0.0)
        self.nothing[leaf.k] += leaf.mass * nothing
        return made

    def _strings_at(self, k: int) -> BoundaryStrings:
        strings = self.boundaries[k].strings
        assert strings is not None, "boundaries made for the beam have strings"
        return strings

    def finish(self, mean: Callable[[int], RowSketch | None]) -> None:
        """Close what is left open, by the mean row of its last token or as if a boundary followed; hand the boundaries what the
        splits made (`Boundary.extra`). Lemma 19: however open mass is closed, the certificate holds, since all of it counts
        as open."""
        by_boundary: dict[int, list[OpenLeaf]] = {}
        for leaf in self.leaves:
            by_boundary.setdefault(leaf.k, []).append(leaf)
        for k, leaves in by_boundary.items():
            self._close(k, leaves, mean)
        self.leaves = []
        for k, out in self.splits.items():
            if not out.node:
                continue
            arrays = (np.array(out.node), np.array(out.first), np.array(out.mass), np.array(out.open, bool))
            self.boundaries[k].extra = Extra(*arrays)

    def _close(self, k: int, leaves: list[OpenLeaf], mean: Callable[[int], RowSketch | None]) -> None:
        """What stands for the open leaves of one boundary: strings that count as closed, with their shares of each leaf."""
        behind, strings = self._strings_at(k), []
        out = self.splits.setdefault(k, _Split())
        for leaf in leaves:
            if leaf.mass > LEAST_CLOSED and mean(leaf.token) is not None:
                parts, shares = self._spread(behind.strings, leaf.s, leaf.token, mean)
                if leaf.node == leaf.parent:
                    self.boundaries[k].skip.setdefault(leaf.node, []).append(leaf.token)
            elif leaf.node == leaf.parent:
                continue  # a leaf of a context is closed by its rule
            else:
                parts, shares = [leaf.s], [1.0]
            strings += parts
            out.node += [leaf.node] * len(parts)
            out.mass += [leaf.prob * share for share in shares]
        if strings:
            out.first += behind.answers(strings)[0].tolist()
            out.open += [True] * len(strings)

    def _spread(
        self, table: Strings, s: bytes, token: int, mean: Callable[[int], RowSketch | None]
    ) -> tuple[list[bytes], list[float]]:
        """(strings, shares) of an open leaf that goes on as its last token usually does, token by token while a part is
        heavy. The shares add up to 1. It depends on the kind of boundary only, so it is remembered there."""
        made = table.spread.get((s, token))
        if made is not None:
            return made
        strings, shares, queue, string_rules = [], [], [(s, token, 1.0, 0)], self.string_rules
        while queue:
            s_now, last, share, depth = queue.pop()
            row = mean(last) if share > LEAST_FOLLOWED and depth < MOST_FOLLOWED else None
            listed = 0.0
            if row is not None:
                closing = table.closing(s_now)
                heavy = (row.prob * share > LEAST_FOLLOWED / 2) & string_rules.is_text[row.ids]
                heavy &= ~closing[string_rules.heads.of_token[row.ids]]
                listed = float(row.prob[heavy].sum())
                parts = zip(row.ids[heavy].tolist(), row.prob[heavy].tolist(), strict=True)
                queue += [(s_now + string_rules.pieces[t], t, share * p, depth + 1) for t, p in parts]
            strings.append(s_now)
            shares.append(share * (1 - listed))  # what closes s, and what is not listed: both get the answer of s
        made = table.spread[s, token] = (strings, shares)
        return made
