"""Stage 2: what a BPE merge list allows. Derivations, canonical pairs, and the encodings of all prefixes of a pre-token.

Inside one pre-token a token sequence is *canonical* (BPE gives it back from its own bytes) iff every adjacent pair is
(docs/design.md, lemma 2). Whether a pair (a, b) is canonical is decided by undoing merges along the seam: the right
edge of a's merge tree against the left edge of b's, latest merge first; the pair breaks iff at some time BPE would
have merged across the seam before either side was merged away (lemma 3; the idea is that of github/rust-gems' `bpe`).

Time. A merge of rank r fires at time r * STEP, or right after the younger of its parts is made if that is later (some
converted vocabularies list a token before its part). A node of a merge tree lives from its *birth* (when its merge
fires; -1 for a symbol) to its *death* (the birth of its parent; `NEVER` for a root). BPE takes the lowest rank first
and the leftmost on ties: events are compared by the key (time, rank), packed into one integer, then by side.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.vocab import Vocabulary, valid_utf8_prefix
from schemas.errors import TokenizerError

STEP = 8  # room for merges that fire one right after another, between two ranks
NEVER = np.iinfo(np.int64).max
_SYMBOL = -1
_RANK_BITS = 24


@dataclass(frozen=True, eq=False)
class MergeTable:
    """The derivation of every token that BPE can make, and the pair rule built on it.

    left, right: int32 [V], children of the token's last merge (-1 for symbols and for tokens that no merge makes)
    birth:       int64 [V], key (time << 24 | rank) of that merge; -1 for symbols; NEVER for unreachable tokens
    rank:        (left id, right id) -> rank of the merge
    """

    vocabulary: Vocabulary
    left: np.ndarray
    right: np.ndarray
    birth: np.ndarray
    rank: dict[tuple[int, int], int]

    def reachable(self, token: int) -> bool:
        """Whether BPE can make this token at all (some vocabularies list tokens that it cannot)."""
        return self.birth[token] != NEVER

    def pair_is_canonical(self, a: int, b: int) -> bool:
        """Lemma 3: whether `a b` stays as it is when its bytes are encoded inside one pre-token. O(depth), cached."""
        key = (a, b)
        known = self._pairs.get(key)
        if known is None:
            known = self._pairs[key] = _seam_holds(a, b, NEVER, self._left, self._right, self._birth, self.rank)
        return known

    @cached_property
    def _pairs(self) -> dict[tuple[int, int], bool]:
        return {}

    @cached_property
    def _left(self) -> list[int]:
        return self.left.tolist()

    @cached_property
    def _right(self) -> list[int]:
        return self.right.tolist()

    @cached_property
    def _birth(self) -> list[int]:
        return self.birth.tolist()

    @cached_property
    def _left_edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All (node, token, death of node) with node on the left edge of token, sorted by node: CSR (start, token, death)."""
        tokens = np.flatnonzero(self.birth != NEVER).astype(np.int32)
        node, owner, death = tokens, tokens, np.full(len(tokens), NEVER, np.int64)
        nodes, owners, deaths = [], [], []
        while len(node):
            nodes.append(node)
            owners.append(owner)
            deaths.append(death)
            inner = self.left[node] >= 0
            node, owner, death = self.left[node[inner]], owner[inner], self.birth[node[inner]]
        all_nodes = np.concatenate(nodes)
        order = np.argsort(all_nodes, kind="stable")
        start = np.searchsorted(all_nodes[order], np.arange(len(self.birth) + 1))
        return start, np.concatenate(owners)[order], np.concatenate(deaths)[order]

    @cached_property
    def _partners(self) -> dict[int, list[tuple[int, int]]]:
        """left token of a merge -> [(right token, rank)], between tokens that BPE can make."""
        grouped: dict[int, list[tuple[int, int]]] = {}
        for (a, b), rank in self.rank.items():
            if self._birth[a] != NEVER and self._birth[b] != NEVER:
                grouped.setdefault(a, []).append((b, rank))
        return grouped

    def illegal_after(self, a: int) -> np.ndarray:
        """int64 ids b, sorted, for which `a b` is not canonical inside one pre-token. Vectorised twin of the pair test."""
        known = self._illegal.get(a)
        if known is not None:
            return known
        start, owner, death_b = self._left_edges
        found = []
        node, death = a, NEVER
        while node >= 0:
            for b, rank in self._partners.get(node, ()):
                fires = _fires(rank, self._birth[node], self._birth[b])
                if fires < death:
                    span = slice(start[b], start[b + 1])
                    found.append(owner[span][death_b[span] >= fires])
            node, death = self._right[node], self._birth[node]
        ids = np.unique(np.concatenate(found)) if found else np.empty(0, np.int32)
        self._illegal[a] = ids.astype(np.int64)
        return self._illegal[a]

    @cached_property
    def _illegal(self) -> dict[int, np.ndarray]:
        return {}

    @cached_property
    def _longest_bytes(self) -> int:
        ids = self.vocabulary.id_of_bytes
        return max((len(b) for b, t in ids.items() if self.reachable(t)), default=1)

    def prefix_tree(self, piece: bytes) -> tuple[list[int], list[int]]:
        """Canonical encodings of all byte prefixes of one pre-token, as one tree (lemma 4).

        Returns (last [n+1], parent [n+1]): the encoding of piece[:i] is that of piece[:parent[i]] plus token last[i].
        Entry 0 is the empty prefix (-1, -1). Exactly one token can end each prefix; anything else raises TokenizerError.
        Inside a character that BPE treats whole (SentencePiece), prefixes are spelt with byte tokens.
        """
        if self.vocabulary.kind == "sentencepiece":
            return self._prefix_tree_of_characters(piece)
        last, parent = [-1], [-1]
        ids = self.vocabulary.id_of_bytes
        for i in range(1, len(piece) + 1):
            self._extend(piece, i, range(i - 1, max(-1, i - self._longest_bytes - 1), -1), ids, last, parent)
        return last, parent

    def _extend(self, piece: bytes, i: int, starts, ids: dict[bytes, int], last: list[int], parent: list[int]) -> None:
        for j in starts:
            token = ids.get(piece[j:i])
            if token is None or self._birth[token] == NEVER or (j and last[j] < 0):
                continue
            if j == 0 or self.pair_is_canonical(last[j], token):
                last.append(token)
                parent.append(j)
                return
        raise TokenizerError(
            f"tokenizer {self.vocabulary.name}: no canonical token ends at byte {i} of the pre-token {piece[:40]!r}; "
            "the vocabulary lacks single bytes or its merge list is not a BPE merge list"
        )

    def _prefix_tree_of_characters(self, piece: bytes) -> tuple[list[int], list[int]]:
        ids, fallback = self.vocabulary.id_of_bytes, self.vocabulary.fallback_ids
        bounds = [0]
        whole = valid_utf8_prefix(piece)
        for char in piece[:whole].decode("utf-8"):
            bounds.append(bounds[-1] + len(char.encode("utf-8")))
        last, parent = [-1] * (len(piece) + 1), [-1] * (len(piece) + 1)
        for index in range(1, len(bounds)):
            begin, end = bounds[index - 1], bounds[index]
            if self._is_symbol(piece[begin:end]):
                lasts, parents = last[:end], parent[:end]
                starts = [b for b in reversed(bounds[:index]) if end - b <= self._longest_bytes]
                self._extend(piece, end, starts, ids, lasts, parents)
                last[end], parent[end] = lasts[-1], parents[-1]
                inner = range(begin + 1, end)
            else:
                inner = range(begin + 1, end + 1)
            self._spell_bytes(piece, inner, fallback, last, parent)
        self._spell_bytes(piece, range(whole + 1, len(piece) + 1), fallback, last, parent)
        return last, parent

    def _spell_bytes(self, piece: bytes, ends: range, fallback: list[int], last: list[int], parent: list[int]) -> None:
        for i in ends:
            if fallback:
                last[i], parent[i] = fallback[piece[i - 1]], i - 1

    def _is_symbol(self, char: bytes) -> bool:
        token = self.vocabulary.id_of_bytes.get(char)
        return token is not None and token not in self._fallback_set

    @cached_property
    def _fallback_set(self) -> frozenset[int]:
        return frozenset(self.vocabulary.fallback_ids)

    def encoding_of_prefix(self, tree: tuple[list[int], list[int]], end: int) -> list[int]:
        """Token ids of piece[:end], read off its prefix tree."""
        last, parent = tree
        out = []
        while end > 0:
            out.append(last[end])
            end = parent[end]
        return out[::-1]


def _fires(rank: int, birth_a: int, birth_b: int) -> int:
    """Key of the moment at which a merge of this rank fires, given the births of its two parts."""
    time = rank * STEP
    for birth in (birth_a, birth_b):
        if birth >= 0:
            time = max(time, (birth >> _RANK_BITS) + 1)
    return time << _RANK_BITS | rank


def _seam_holds(
    a: int, b: int, death: int, left: list[int], right: list[int], birth: list[int], rank: dict[tuple[int, int], int]
) -> bool:
    """Walk the seam back in time from two roots that both die at `death`. True iff BPE never merges across it before.

    The left side merges first on a tie, the right side last: crossing fires when it is < death_a and <= death_b.
    """
    death_a, death_b = death, death - 1
    while True:
        crossing = rank.get((a, b))
        if crossing is not None and _fires(crossing, birth[a], birth[b]) < death_a:
            if _fires(crossing, birth[a], birth[b]) <= death_b:
                return False
        if birth[a] == _SYMBOL and birth[b] == _SYMBOL:
            return True
        if birth[a] > birth[b]:
            death_a, a = birth[a], right[a]
        else:
            death_b, b = birth[b], left[b]


def build_merge_table(vocabulary: Vocabulary) -> MergeTable:
    """Derive every token in the order in which BPE can first make it. O(merges x depth).

    A split of a token that is not its derivation fails the seam test (the token is made by another split, earlier), so
    exactly one split survives. Tokens that none makes stay unreachable (`birth` = NEVER).
    """
    size = vocabulary.size
    left, right, birth = [-1] * size, [-1] * size, [int(NEVER)] * size
    for token in _symbols(vocabulary):
        birth[token] = _SYMBOL
    rank: dict[tuple[int, int], int] = {}
    waiting: dict[int, list[int]] = {}  # part not made yet -> merges that came too early for it
    for index, (a, b, _) in enumerate(vocabulary.merges):
        rank.setdefault((a, b), index)
    late: list[tuple[int, int]] = []  # heap of (key, merge) for merges that fire after their rank
    for index in range(len(vocabulary.merges) + 1):
        while late and (index == len(vocabulary.merges) or late[0][0] < (index * STEP) << _RANK_BITS):
            key, merge = heapq.heappop(late)
            _make(vocabulary.merges[merge], key, left, right, birth, rank, waiting, late, vocabulary.merges)
        if index < len(vocabulary.merges):
            a, b, _ = vocabulary.merges[index]
            missing = [part for part in {a, b} if birth[part] == NEVER]
            for part in missing:
                waiting.setdefault(part, []).append(index)
            if not missing:
                key = (index * STEP) << _RANK_BITS | index
                _make(
                    (a, b, vocabulary.merges[index][2]), key, left, right, birth, rank, waiting, late, vocabulary.merges
                )
    arrays = np.array(left, np.int32), np.array(right, np.int32), np.array(birth, np.int64)
    return MergeTable(vocabulary, *arrays, rank)


def _make(merge, key, left, right, birth, rank, waiting, late, merges) -> None:
    """Record the token that `merge` makes at `key`, unless it exists or BPE would not get there; wake what waits for it."""
    a, b, made = merge
    if birth[made] != NEVER or not _seam_holds(a, b, key, left, right, birth, rank):
        return
    left[made], right[made], birth[made] = a, b, key
    for index in waiting.pop(made, ()):
        x, y, _ = merges[index]
        if birth[x] != NEVER and birth[y] != NEVER:
            heapq.heappush(late, (_fires(index, birth[x], birth[y]), index))


def _symbols(vocabulary: Vocabulary) -> list[int]:
    """Ids that BPE starts from: single bytes (byte-level), or single characters and byte tokens (SentencePiece)."""
    if vocabulary.kind == "bytelevel":
        return [t for b, t in vocabulary.id_of_bytes.items() if len(b) == 1]
    characters = [
        t for b, t in vocabulary.id_of_bytes.items() if valid_utf8_prefix(b) == len(b) and len(b.decode()) == 1
    ]
    return characters + vocabulary.fallback_ids
