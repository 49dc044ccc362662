"""How BPE makes each token: its merge tree, the time of each merge, and whether a merge would cross the seam of two tokens.

In: merges by rank. Out: `Derivations`, filled while a merge list is read (bpe/merges.py) and walked along seams after that.

Time. BPE takes the lowest rank first and the leftmost on ties. The clock shows the highest rank taken so far: a merge
fires at its own rank, or *late*, at the clock of its younger part (some converted vocabularies list a token before its
part). A node of a merge tree lives from its *birth* (the clock of its merge; -1 for a symbol) to its *death* (the birth
of its parent; `NEVER` for a root). Clocks decide all but ties that involve a late merge; those few are played through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEVER = np.iinfo(np.int64).max
SYMBOL = -1
_NO_MERGE = 1 << 62


@dataclass(frozen=True)
class Derivations:
    """Merge trees as plain lists, while they are built and for the walks along seams. Names as in `MergeTable`."""

    left: list[int]
    right: list[int]
    birth: list[int]
    late: list[bool]
    rank: dict[tuple[int, int], int]
    merges: list[tuple[int, int, int]]

    def seam_holds(self, a: int, b: int, death: int, *, late: bool) -> bool | None:
        """Walk the seam back in time from two roots that both die at `death` (`late`: by a late merge). True iff BPE
        never merges across it before; None where a late merge ties with another event, so that clocks cannot tell.

        At one clock the left side's merges come before those across the seam, and these before the right side's. Lemma 3: only
        pairs of nodes that live at the same time are visited, so the younger of the two is undone each time, O(depth).
        """
        birth, rank = self.birth, self.rank
        own = (a, b) if death != NEVER else None  # the merge that ends both roots; it is no obstacle to itself
        death_a, late_a, death_b, late_b = death, late, death, late
        while True:
            crossing = rank.get((a, b)) if (a, b) != own else None
            if crossing is not None:
                fires = max(crossing, birth[a], birth[b])
                if fires <= death_a and fires <= death_b:  # both live; at a's death only ties of late merges matter
                    slow = fires != crossing
                    if (fires == death_a and (slow or late_a)) or (fires == death_b and (slow or late_b)):
                        return None
                    if fires < death_a:
                        return False
            if birth[a] == SYMBOL and birth[b] == SYMBOL:
                return True  # the beginning of time, and nothing has crossed
            if birth[a] > birth[b]:
                death_a, late_a, a = birth[a], self.late[a], self.right[a]
            else:
                death_b, late_b, b = birth[b], self.late[b], self.left[b]

    def leaves(self, token: int) -> list[int]:
        """The symbols that a token is made of."""
        out, stack = [], [token]
        while stack:
            node = stack.pop()
            if self.left[node] < 0:
                out.append(node)
            else:
                stack += [self.right[node], self.left[node]]
        return out

    def play(self, tokens: list[int]) -> tuple[list[int], tuple[int, int] | None]:
        """BPE itself, one merge at a time: (what is left, the last pair that was merged)."""
        last = None
        while len(tokens) > 1:
            ranks = [self.rank.get(pair, _NO_MERGE) for pair in zip(tokens, tokens[1:], strict=False)]
            at = ranks.index(best := min(ranks))
            if best == _NO_MERGE:
                break
            last = (tokens[at], tokens[at + 1])
            tokens = [*tokens[:at], self.merges[best][2], *tokens[at + 2 :]]
        return tokens, last

    def derive(self, token: int, splits: list[tuple[int, int, int]]) -> None:
        """Record the split (a, b, rank) by which BPE makes `token`, if there is one. Its parts are done already."""
        for a, b, rank in splits:
            if self.birth[a] == NEVER or self.birth[b] == NEVER:
                continue
            clock = max(rank, self.birth[a], self.birth[b])
            holds = self.seam_holds(a, b, clock, late=clock != rank)
            if holds is None:
                holds = self.play([*self.leaves(a), *self.leaves(b)]) == ([token], (a, b))
            if holds:
                self.left[token], self.right[token] = a, b
                self.birth[token], self.late[token] = clock, clock != rank
                return
