"""Which next tokens no text can have behind a context, and how much probability the teacher gives them.

In: the nodes of a context tree. Out: for each node c the ids t for which `c t` is no context, whatever follows
(docs/design.md, definition 10 and lemma 11); the teacher's mass on them is *non-canonical*. Semantics `canonical-masked` takes
it out at each step.

A node is reduced to a `State`: class string of its pending part, bytes of the character it ends in, which ways of cutting
agree with its tokens, its last token. For each state every id does one of three things (contexts/next_tokens.py): NEVER, ALWAYS
(a cut lies between), PAIR (no cut: by lemma 2 the pair with the last token decides).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.folding import Runs, unfold
from engine.bpe.pending import CutText, PendingPart, cut_text, starts_of_units
from engine.bpe.segmenter import Segmenter
from engine.bpe.spelling import LONG_BYTES, Spelling
from engine.bpe.utf8 import successor, valid_utf8_prefix
from engine.contexts.illegal import NOTHING, IllegalLists, IllegalTokens
from engine.contexts.next_tokens import PAIR, NextTokensBook, State, Table
from engine.contexts.tree import NO_NODE, ContextTree
from engine.kernels.flat import FlatTokenizer
from schemas.errors import IdentityError

_MOST_STATES = 200_000


@dataclass(frozen=True, slots=True)
class Pending:
    """A document's units, what is pending at each byte where a context ends, and how its contexts are spelt."""

    text: CutText
    parts: dict[int, PendingPart]
    spelling: Spelling


class CanonicalNext:
    """Answers for one teacher vocabulary; remembers what depends on pre-tokens only. Not thread-safe."""

    def __init__(self, segmenter: Segmenter, flat: FlatTokenizer | None = None) -> None:
        """flat: the same tokenizer as arrays, where it is at hand; else it is made at the first question."""
        self.segmenter, self.flat = segmenter, flat
        self.vocabulary, self.merges, self.splitter = segmenter.vocabulary, segmenter.merges, segmenter.splitter
        self.book = NextTokensBook(segmenter)
        self._specials = np.array(sorted(self.vocabulary.specials), dtype=np.int32)
        self._states: BoundedCache[tuple[str, bytes, tuple[int, ...], bool], State] = BoundedCache(_MOST_STATES)
        self._illegal = IllegalTokens(segmenter, flat)
        self._numbers: BoundedCache[State, int] = BoundedCache(_MOST_STATES)

    # ==== nodes -> states

    def _parts(self, tree: ContextTree, data: bytes) -> tuple[CutText, dict[int, PendingPart]]:
        text = cut_text(self.splitter, data)
        places = sorted(set(tree.end[tree.given :].tolist()))
        return text, dict(zip(places, text.parts(places), strict=True))

    def pending(self, tree: ContextTree, data: bytes) -> Pending:
        """For `state_behind`. data: prefix + text, as for the tree."""
        text, found = self._parts(tree, data)
        ends, parents, tokens = (np.asarray(x).tolist() for x in (tree.end, tree.parent, tree.token))
        return Pending(text, found, Spelling(self.segmenter, data, tokens, parents, ends))

    def states(self, tree: ContextTree, data: bytes) -> list[State | None]:
        """One per node; None before `tree.given`. data: prefix + text, as for the tree. Raises BadDocument("too_long")."""
        ends, parents, tokens = (np.asarray(x).tolist() for x in (tree.end, tree.parent, tree.token))
        text, pending = self._parts(tree, data)
        prefix = len(self.vocabulary.prefix_bytes)
        spelling = Spelling(self.segmenter, data, tokens, parents, ends)
        out: list[State | None] = [None] * tree.given
        for node in range(tree.given, len(ends)):
            end = ends[node]
            part = pending[end]
            if end - part.begin > LONG_BYTES and not self.splitter.byte_units:

                def byte_of(cuts: tuple[int, ...], part: PendingPart = part) -> list[int]:
                    return [int(text.byte_of[u]) for u in text.true_units(part.left, cuts, part.start, part.unit)]

                out.append(self._long_state(part, int(text.byte_of[part.unit]), byte_of, spelling, node))
                continue
            path, at = [], node  # c_P of lemma 11: the tokens behind the last certain cut
            while at != NO_NODE and ends[at] > part.begin:
                path.append(tokens[at])
                at = parents[at]
            if part.begin and (at == NO_NODE or ends[at] != part.begin):
                raise IdentityError(f"canonical: no token of node {node} ends at the certain cut {part.begin}")
            bare = end <= prefix and prefix > 0  # nothing of the text yet, perhaps its prefix space
            key = (text.units[part.start : part.unit], data[part.begin : end], tuple(path[::-1]), bare)
            known = self._states.get(key)
            if known is None:
                known = self._states[key] = self._state(*key)
            out.append(known)
        return out

    def state_behind(self, tree: ContextTree, pending: Pending, node: int, tokens: list[int]) -> State:
        """The state of a context that hangs off the tree: `tokens`, which are not those of the text, behind `node`."""
        # As in `states`, with bytes that are not the document's: the pending part at `node` and what the tokens add to it. A
        # cut that was pending may be certain now; what lies before it is left out, with its tokens.
        part = pending.parts[int(tree.end[node])]
        if int(tree.end[node]) - part.begin > LONG_BYTES and not self.splitter.byte_units:
            return self._long_state_behind(pending, part, node, tokens)
        begin, at, path = part.begin, node, list(tokens)
        while at != NO_NODE and tree.end[at] > begin:
            path.insert(0, int(tree.token[at]))
            at = int(tree.parent[at])
        text, size = pending.text, int(tree.end[node]) - begin
        data = text.data[begin : begin + size] + b"".join(self.vocabulary.token_bytes[t] or b"" for t in tokens)
        units = int(text.unit_at[begin])
        before = text.units[units - 1] if units else None
        whole = len(data) if self.splitter.byte_units else valid_utf8_prefix(data)
        behind = cut_text(self.splitter, data[:whole], before=before)
        start, unit, now = behind.pendings([0, whole])[1]
        place = 0
        while path and place < now:
            place += len(self.vocabulary.token_bytes[path.pop(0)] or b"")
        if place != now:
            raise IdentityError(f"canonical: no token ends at the certain cut {begin + now} behind node {node}")
        return self._state(behind.units[start:unit], data[now:], tuple(path), False)

    def _state(self, units: str, pending: bytes, tokens: tuple[int, ...], bare: bool) -> State:
        """A context as its pending part: classes of its whole units, bytes, tokens (lemma 11: P and c_P)."""
        partial = pending[valid_utf8_prefix(pending) :]
        last = tokens[-1] if tokens else -1
        ends = not partial and not (bare and pending)  # the prefix alone is no encoding: the empty text has no tokens
        if self.splitter.byte_units:
            return State(self.splitter.reduce(units), partial, (), last, ends, bare, ())
        left = self.splitter.fold(units)
        runs = Runs(self.splitter, np.frombuffer(units.encode("utf-32-le"), np.uint32))

        def agrees(cuts: tuple[int, ...], seam: bool) -> bool:
            cuts = unfold(self.splitter, left, cuts, 0, len(units), runs)
            return self.segmenter.agrees(pending, partial, cuts, seam, tokens)

        table = self.book.table(left, partial)
        # lemma 11, (2): of each way to cut P, whether the pieces inside P and the part of the last one are encoded to c_P
        agree = tuple(agrees(*variant) for variant in table.variants)
        # definition 10: a special keeps c canonical where c is the encoding of its bytes as a whole text
        ends = ends and agrees(tuple(c for c in self.splitter.pieces(left) if c < len(left)), True)
        begun = [
            pending[len(pending.decode("utf-8")[: unfold(self.splitter, left, cuts[-1:], 0, len(units), runs)[0]].encode()) :]
            if cuts
            else pending
            for cuts, _ in table.variants
        ] if self.segmenter.whole_words and pending and not partial else []  # fmt: skip
        return State(left, partial, agree, last, ends, bare, self._closed(table, agree, begun))

    def _long_state(
        self,
        part: PendingPart,
        whole: int,
        byte_of: Callable[[tuple[int, ...]], list[int]],
        spelling: Spelling,
        node: int,
    ) -> State:
        """The same for a node behind a long pending part, in time that does not grow with it; not at the beginning of a text.
        whole: byte up to which its characters are whole. byte_of: units of `part.left` -> bytes."""
        end, token = spelling.end[node], spelling.token[node]
        if part.begin and spelling.ancestor(node, part.begin) is None:
            raise IdentityError(f"canonical: no token of node {node} ends at the certain cut {part.begin}")
        partial = spelling.bytes_of(whole, end)
        table = self.book.table(part.left, partial)
        agree = tuple(spelling.agrees(node, part.begin, byte_of(cuts), whole, seam) for cuts, seam in table.variants)
        inside = tuple(c for c in self.splitter.pieces(part.left) if c < len(part.left))
        ends = not partial and spelling.agrees(node, part.begin, byte_of(inside), whole, True)
        begun: list[bytes | None] = []
        if self.segmenter.whole_words and not partial:
            since = [(byte_of(cuts[-1:]) or [part.begin])[0] for cuts, _ in table.variants]
            longest = self.segmenter.longest_apart
            begun = [spelling.bytes_of(b, end) if end - b <= longest else None for b in since]
        return State(part.left, partial, agree, token, ends, False, self._closed(table, agree, begun))

    def _long_state_behind(self, pending: Pending, part: PendingPart, node: int, tokens: list[int]) -> State:
        text, spelling, splitter = pending.text, pending.spelling, self.splitter
        whole = int(text.byte_of[part.unit])
        data = spelling.lengthen(node, [(t, self.vocabulary.token_bytes[t] or b"") for t in tokens], whole)
        more = data[: valid_utf8_prefix(data)]
        units = splitter.canonical(splitter.classes(more), part.left[-1])
        behind = CutText(
            splitter,
            text.data[:whole] + more,
            text.units[: part.unit] + units,
            text.unit_at,
            np.append(text.byte_of[: part.unit], whole + starts_of_units(splitter, more)),
        )
        start, left, unit = part.start, part.left + units, part.unit + len(units)
        while ends := splitter.certain(left):
            start = behind.true_units(left, ends[-1:], start, unit)[0]
            left = left[ends[-1] :]
        left = splitter.fold(left)

        def byte_of(cuts: tuple[int, ...]) -> list[int]:
            return [int(behind.byte_of[u]) for u in behind.true_units(left, cuts, start, unit)]

        found = PendingPart(start, unit, int(behind.byte_of[start]), left)
        try:
            return self._long_state(found, whole + len(more), byte_of, spelling, len(spelling.end) - 1)
        finally:
            spelling.shorten(len(tokens))

    def _closed(self, table: Table, agree: tuple[bool, ...], begun: Sequence[bytes | None]) -> tuple[int, ...]:
        """Tokens that complete, without a way to go on, a pre-token that ignore_merges takes as one token: in lemma 11, (3),
        no token end lies at the seam then, whatever the pair says. begun: for each way of the table what the piece across the
        seam holds of P, None where that is longer than all words; empty where no word can be begun."""
        words, found = self.segmenter.whole_words, set()
        for index, (_, seam) in enumerate(table.variants[: len(begun)]):
            front = begun[index]
            if front is None or seam or not agree[index]:
                continue
            for word in words[bisect.bisect_right(words, front) : bisect.bisect_left(words, successor(front))]:
                token = self.vocabulary.id_of_bytes.get(word[len(front) :])
                where = np.flatnonzero(table.span.tokens == token) if token is not None else ()
                for entry in (table.behaviours[table.behaviour[table.span.key[i]]] for i in where):
                    usable = [(table.variants[v][1], end) for v, end, added in entry if agree[v] and not added]
                    if not any(cut or not end for cut, end in usable):
                        found.add(token)
        return tuple(sorted(found))

    # ==== states -> ids

    def lists(self, states: Sequence[State | None]) -> IllegalLists:
        """For each state the ids that may not follow, by number: what rows of probabilities are asked for."""
        if self._illegal.is_full:
            self._illegal = IllegalTokens(self.segmenter, self.flat)
            self._numbers.clear()
        numbers, known = self._numbers, np.empty(len(states), np.int32)
        for at, state in enumerate(states):
            if state is None:
                known[at] = NOTHING
                continue
            number = numbers.get(state)
            if number is None:
                number = self._illegal.number(self.book.next_tokens(state), state.last, state.ends, state.closed)
                numbers[state] = number
            known[at] = number
        return IllegalLists(((self._illegal, known),))

    def illegal(self, state: State) -> np.ndarray:
        """int64 ids, rising: all that is not canonical after a state. The slow twin of `lists`, for tests and questions."""
        tokens = self.book.next_tokens(state)
        parts = [tokens.never, np.array(state.closed, np.int64)]
        if tokens.has_pair and state.last >= 0:
            pairs = self.merges.illegal_after(state.last)  # lemma 3 for all ids at once
            parts.append(pairs[tokens.action[pairs] == PAIR])
        if not state.ends:
            parts.append(self._specials)
        return np.unique(np.concatenate(parts))
