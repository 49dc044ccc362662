"""What a BPE merge list allows: which tokens may stand side by side, and the encodings of all beginnings of a pre-token.

In: a `Vocabulary`. Out: a `MergeTable`.

Inside one pre-token a token sequence is *canonical* (BPE gives it back from its own bytes) iff every adjacent pair is
(docs/design.md, lemma 2). Whether a pair (a, b) is canonical is decided by undoing merges along the seam: the right
edge of a's merge tree against the left edge of b's, latest merge first; the pair breaks iff at some time BPE would
have merged across the seam before either side was merged away (lemma 3; the idea is that of github/rust-gems' `bpe`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.derivations import NEVER, SYMBOL, Derivations
from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import TokenizerError

_MOST_PAIRS = 4_000_000
_MOST_IDS = 40_000_000  # int32 each, in remembered answers of `illegal_after`


@dataclass(frozen=True, eq=False)
class MergeTable:
    """The derivation of every token that BPE can make, and the pair rule built on it.

    left, right: int32 [V], children of the token's last merge (-1 for symbols and for tokens that no merge makes)
    birth:       int64 [V], clock of that merge; -1 for symbols; NEVER for unreachable tokens
    late:        bool [V], whether that merge fires after its own rank
    rank:        (left id, right id) -> rank of the merge (the last one where a list names a pair twice)
    """

    vocabulary: Vocabulary
    left: np.ndarray
    right: np.ndarray
    birth: np.ndarray
    late: np.ndarray
    rank: dict[tuple[int, int], int]

    def reachable(self, token: int) -> bool:
        """Whether BPE can make this token at all (some vocabularies list tokens that it cannot)."""
        return self.birth[token] != NEVER

    def pair_is_canonical(self, a: int, b: int) -> bool:
        """Lemma 3: whether `a b` stays as it is when its bytes are encoded inside one pre-token. O(depth), cached."""
        key = (a, b)
        known = self._pairs.get(key)
        if known is None:
            known = self._derivations.seam_holds(a, b, int(NEVER), late=False)
            if known is None:  # a late merge ties ("late merges", after lemma 3): BPE itself, on the symbols of both
                leaves = [*self._derivations.leaves(a), *self._derivations.leaves(b)]
                known = self._derivations.play(leaves)[0] == [a, b]
            self._pairs[key] = known
        return known

    def forget(self) -> None:
        """Empty the cache of pairs, which grows with the text."""
        self._pairs.clear()

    @cached_property
    def _pairs(self) -> BoundedCache[tuple[int, int], bool]:
        return BoundedCache(_MOST_PAIRS)

    @cached_property
    def _derivations(self) -> Derivations:
        arrays = self.left.tolist(), self.right.tolist(), self.birth.tolist(), self.late.tolist()
        return Derivations(*arrays, self.rank, self.vocabulary.merges)

    @cached_property
    def left_edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For each node x all tokens with x on the left edge of their merge tree, as CSR: entries start[x]:start[x+1] of
        (token, death, late). start: int64 [V+1]. token: int32, the token. death: int64, the clock at which x is merged away
        there (NEVER where x is the token). late: bool, whether by a late merge. One entry a level of each left edge."""
        tokens = np.flatnonzero(self.birth != NEVER).astype(np.int32)
        node, owner = tokens, tokens
        death, late = np.full(len(tokens), NEVER, np.int64), np.zeros(len(tokens), bool)
        nodes, owners, deaths, lates = [], [], [], []
        while len(
            node
        ):  # all tokens at once, a level down their left edges a turn; a child dies when its parent is born
            nodes.append(node)
            owners.append(owner)
            deaths.append(death)
            lates.append(late)
            inner = self.left[node] >= 0
            parent = node[inner]
            node, owner, death, late = self.left[parent], owner[inner], self.birth[parent], self.late[parent]
        all_nodes = np.concatenate(nodes)
        order = np.argsort(all_nodes, kind="stable")
        start = np.searchsorted(all_nodes[order], np.arange(len(self.birth) + 1))
        return start, np.concatenate(owners)[order], np.concatenate(deaths)[order], np.concatenate(lates)[order]

    @cached_property
    def partners(self) -> dict[int, list[tuple[int, int]]]:
        """left token of a merge -> [(right token, rank)], between tokens that BPE can make."""
        grouped: dict[int, list[tuple[int, int]]] = {}
        birth = self._derivations.birth
        for (a, b), rank in self.rank.items():
            if birth[a] != NEVER and birth[b] != NEVER:
                grouped.setdefault(a, []).append((b, rank))
        return grouped

    def illegal_after(self, a: int) -> np.ndarray:
        """int32 ids b, sorted, for which `a b` is not canonical inside one pre-token. Vectorised twin of the pair test."""
        known = self._illegal.get(a)
        if known is None:
            illegal = self.illegal_by(a, lambda node: self.partners.get(node, ()))
            known = self._illegal[a] = np.flatnonzero(illegal).astype(np.int32)
        return known

    def illegal_by(self, a: int, partners: Callable[[int], Iterable[tuple[int, int]]]) -> np.ndarray:
        """bool [V]: the same, as far as merges of a node with its `partners` (right token, rank) are the reason.

        Lemma 3 for one a and all b at once. Along the right edge of a: each node α, with the clock of its death. For each
        merge (α, β): all tokens b that have β on their left edge and in which β still lives when the merge fires. Those are
        illegal, but for ties of late merges, which are asked one by one.
        """
        start, owner, death_b, late_b = self.left_edges
        birth = self._derivations.birth
        illegal, ties = np.zeros(len(birth), bool), [np.empty(0, np.int32)]
        node, death, late_a = a, int(NEVER), False
        while node >= 0:
            for b, rank in partners(node):
                fires = max(rank, birth[node], birth[b])
                late = fires != rank
                if fires > death or (fires == death and not (late or late_a)):
                    continue  # α is gone: at one clock the left side's own merges come before those across the seam
                span = slice(start[b], start[b + 1])
                tie = (death_b[span] == fires) & (late_b[span] | late)
                if fires == death:  # α dies at this very clock: only playing it through tells
                    tie |= death_b[span] >= fires
                ties.append(owner[span][tie])
                illegal[owner[span][(death_b[span] >= fires) & ~tie]] = True
            node, death, late_a = int(self.right[node]), birth[node], bool(self.late[node])
        illegal[[b for b in set(np.concatenate(ties).tolist()) if not self.pair_is_canonical(a, b)]] = True
        return illegal

    @cached_property
    def _illegal(self) -> BoundedCache[int, np.ndarray]:
        return BoundedCache(_MOST_IDS, weight=len)

    @cached_property
    def longest_bytes(self) -> int:
        """Bytes of the longest token that merges make."""
        return max(map(len, self._reachable_ids), default=1)

    @cached_property
    def _reachable_ids(self) -> dict[bytes, int]:
        return {b: t for b, t in self.vocabulary.id_of_bytes.items() if self.reachable(t)}

    def prefix_tree(self, piece: bytes) -> tuple[list[int], list[int]]:
        """Canonical encodings of all byte prefixes of one pre-token, as one tree (lemma 4).

        Returns (last [n+1], parent [n+1]): the encoding of piece[:i] is that of piece[:parent[i]] plus token last[i].
        Entry 0 is the empty prefix (-1, -1). Exactly one token can end each prefix; anything else raises TokenizerError.
        Inside a character that BPE treats whole (SentencePiece), prefixes are spelt with byte tokens.
        """
        tree = [-1], [-1]
        self.lengthen(piece, tree)
        return tree

    def lengthen(self, piece: bytes, tree: tuple[list[int], list[int]]) -> None:
        """Make the prefix tree of a beginning of the piece that of all of it, in place."""
        last, parent = tree
        if self.vocabulary.kind == "sentencepiece":
            last[:], parent[:] = self._prefix_tree_of_characters(piece)
            return
        longest = self.longest_bytes
        for i in range(len(last), len(piece) + 1):  # candidates for the last token: the shortest first
            token, begin = self._last_token(piece, i, range(i - 1, max(-1, i - longest - 1), -1), last)
            last.append(token)
            parent.append(begin)

    def _last_token(self, piece: bytes, i: int, starts: Iterable[int], last: list[int]) -> tuple[int, int]:
        """The last token of enc(piece[:i]) and where it begins. By lemma 4 exactly one start j fits: a reachable token has
        the bytes piece[j:i] and may follow enc(piece[:j]) (lemma 2); so the first that fits is the one."""
        ids = self._reachable_ids
        for j in starts:
            token = ids.get(piece[j:i])
            if token is None or (j and last[j] < 0):
                continue
            if j == 0 or self.pair_is_canonical(last[j], token):
                return token, j
        raise TokenizerError(
            f"tokenizer {self.vocabulary.name}: no canonical token ends at byte {i} of the pre-token {piece[:40]!r}; "
            "the vocabulary lacks single bytes or its merge list is not a BPE merge list"
        )

    def _prefix_tree_of_characters(self, piece: bytes) -> tuple[list[int], list[int]]:
        """Symbols are characters, so lemma 4 holds for the ends of characters. A character without a token is spelt in byte
        tokens, which merge with nothing; so, by convention, is each beginning of a character. -1 without byte tokens."""
        fallback = self.vocabulary.byte_tokens
        bounds = [0]
        whole = valid_utf8_prefix(piece)
        for char in piece[:whole].decode("utf-8"):
            bounds.append(bounds[-1] + len(char.encode("utf-8")))
        last, parent = [-1] * (len(piece) + 1), [-1] * (len(piece) + 1)
        for index in range(1, len(bounds)):
            begin, end = bounds[index - 1], bounds[index]
            if self._is_symbol(piece[begin:end]):
                near = bounds[max(index - self.longest_bytes, 0) : index]
                starts = [b for b in reversed(near) if end - b <= self.longest_bytes]
                last[end], parent[end] = self._last_token(piece, end, starts, last)
                inner = range(begin + 1, end)
            else:
                inner = range(begin + 1, end + 1)
            self._spell_bytes(piece, inner, fallback, last, parent)
        self._spell_bytes(piece, range(whole + 1, len(piece) + 1), fallback, last, parent)
        return last, parent

    def _spell_bytes(
        self, piece: bytes, ends: range, fallback: dict[int, int], last: list[int], parent: list[int]
    ) -> None:
        """Entries of places that are reached with the byte token of the byte before them; -1 where it has none."""
        for i in ends:
            token = fallback.get(piece[i - 1], -1)
            last[i], parent[i] = token, i - 1 if token >= 0 else -1

    def _is_symbol(self, char: bytes) -> bool:
        """Whether BPE starts from this character as one symbol, not from its bytes."""
        token = self.vocabulary.id_of_bytes.get(char)
        return token is not None and token not in self._fallback_set

    @cached_property
    def _fallback_set(self) -> frozenset[int]:
        return frozenset(self.vocabulary.fallback_ids)


def build_merge_table(vocabulary: Vocabulary) -> MergeTable:
    """Derive every token, shorter ones first. O(merges x depth).

    A split of a token that is not its derivation fails the seam test (the token is made by another split, earlier), so
    at most one split survives. Tokens that none makes stay unreachable (`birth` = NEVER).
    """
    size = vocabulary.size
    rank = {(a, b): index for index, (a, b, _) in enumerate(vocabulary.merges)}
    birth = [int(NEVER)] * size
    for token in _symbols(vocabulary):
        birth[token] = SYMBOL
    made = Derivations([-1] * size, [-1] * size, birth, [False] * size, rank, vocabulary.merges)
    splits: dict[int, list[tuple[int, int, int]]] = {}
    for (a, b), index in rank.items():
        splits.setdefault(vocabulary.merges[index][2], []).append((a, b, index))
    for token in sorted(splits, key=lambda t: _length(vocabulary, t)):
        if birth[token] == NEVER:
            made.derive(token, splits[token])
    return MergeTable(
        vocabulary,
        np.array(made.left, np.int32),
        np.array(made.right, np.int32),
        np.array(made.birth, np.int64),
        np.array(made.late, bool),
        rank,
    )


def _length(vocabulary: Vocabulary, token: int) -> int:
    piece = vocabulary.token_bytes[token]  # merges can spell a special token, too
    return len(piece) if piece is not None else len(vocabulary.tokenizer.id_to_token(token) or "")


def _symbols(vocabulary: Vocabulary) -> list[int]:
    """Ids that BPE starts from: single bytes (byte-level), or single characters and byte tokens (SentencePiece)."""
    if vocabulary.kind == "bytelevel":
        return [t for b, t in vocabulary.id_of_bytes.items() if len(b) == 1]
    characters = [
        t for b, t in vocabulary.id_of_bytes.items() if valid_utf8_prefix(b) == len(b) and len(b.decode()) == 1
    ]
    return characters + vocabulary.fallback_ids
