"""One tokenizer as plain arrays, for compiled code: its tokens in byte order, a tree of their beginnings, its merges.

In: a `Vocabulary` and its `MergeTable`. Out: `FlatTokenizer`, arrays and nothing else, so that compiled functions
(kernels/merge_kernels.py) take it as one argument and it can be kept in files. What the arrays answer is what `MergeTable` answers;
the two are compared in tests.

Letters: V ids, R ordinary tokens sorted by bytes (their place there is their *rank*), Q tokens that merges can make, sorted
by bytes, N nodes of the trie (kernels/hash_kernels.py), M merges, H slots of a hash table, E entries of left edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import boolean, int32, int64, types, uint8

from engine.kernels.hash_kernels import EMPTY, build_trie, likely_tokens, put_all
from engine.bpe.merges import NEVER, MergeTable
from engine.bpe.vocabulary import Vocabulary

UNMADE = np.iinfo(np.int32).max  # the birth of a token that no merge makes, the death of a root


class FlatTokenizer(NamedTuple):
    """The arrays of one tokenizer.

    ids_R: int32 [R], ids of the ordinary tokens (text, not special) in the order of (bytes, id). rank_V: int32 [V], the
    inverse, -1 for ids that are no text. bytes_B: uint8, their bytes one after the other. start_R: int64 [R+1], where each
    begins.

    Trie of all these tokens, and of specials that merges spell: node_key_H int64 and node_H int32, its hash table. lo_N,
    hi_N: int32 [N], ranks of the tokens that begin with the node's bytes and are longer. own_N: int32 [N], the token that BPE
    makes of exactly these bytes, -1 for none. made_Q: int32 [Q], the tokens that merges make, specials that are spelt by them
    included, by bytes. made_lo_N, made_hi_N: int32 [N], places in made_Q of those that begin with the node's bytes and are
    longer. begun_N: bool [N], whether such a token, or a word that only `ignore_merges` makes, begins with these bytes (lemma
    15: the word itself counts). likely_N: int32 [N], of those tokens the one that is made first, -1 for none: where any may
    follow something, mostly it may. place_V: int32 [V], places in made_Q, -1 for none.

    left_V, right_V: int32 [V], children of the token's last merge, -1 for symbols and for what no merge makes.
    birth_V: int32 [V], clock of that merge (lemma 3), -1 for symbols, UNMADE. late_V: bool [V]. length_V: int32 [V],
    bytes of the token, specials that merges spell included, else 0.
    pair_key_H: int64, pair_rank_H: int32, hash table of merges: left << 32 | right -> rank. merged_M: int32 [M], rank -> id.

    partner_start_V: int64 [V+1], partner, partner_rank: int32, the merges of each left token between tokens that can be made.
    edge_start_V: int64 [V+1], edge_token, edge_death: int32 [E], edge_late: bool [E]: for each token x all tokens that have x
    on the left edge of their merge tree, with the clock at which that x is merged away there, and whether late.

    byte_token: int32 [256], tokens of `byte_fallback`, -1 for none. by_characters: 1 when BPE starts from characters
    (SentencePiece), 0 when from bytes.
    """

    ids_R: np.ndarray
    rank_V: np.ndarray
    bytes_B: np.ndarray
    start_R: np.ndarray
    node_key_H: np.ndarray
    node_H: np.ndarray
    lo_N: np.ndarray
    hi_N: np.ndarray
    own_N: np.ndarray
    made_Q: np.ndarray
    made_lo_N: np.ndarray
    made_hi_N: np.ndarray
    begun_N: np.ndarray
    likely_N: np.ndarray
    place_V: np.ndarray
    left_V: np.ndarray
    right_V: np.ndarray
    birth_V: np.ndarray
    late_V: np.ndarray
    length_V: np.ndarray
    pair_key_H: np.ndarray
    pair_rank_H: np.ndarray
    merged_M: np.ndarray
    partner_start_V: np.ndarray
    partner: np.ndarray
    partner_rank: np.ndarray
    edge_start_V: np.ndarray
    edge_token: np.ndarray
    edge_death: np.ndarray
    edge_late: np.ndarray
    byte_token: np.ndarray
    by_characters: int


_DTYPES: dict[str, Any] = {
    "bytes_B": uint8,
    "start_R": int64,
    "node_key_H": int64,
    "pair_key_H": int64,
    "partner_start_V": int64,
    "edge_start_V": int64,
    "begun_N": boolean,
    "late_V": boolean,
    "edge_late": boolean,
}
FLAT = types.NamedTuple(
    [int64 if name == "by_characters" else _DTYPES.get(name, int32)[::1] for name in FlatTokenizer._fields],
    FlatTokenizer,
)


def flatten(vocabulary: Vocabulary, merges: MergeTable) -> FlatTokenizer:
    """Arrays of a tokenizer. About a second for 150,000 tokens."""
    made = merges.birth != NEVER
    spelt = _spelt_specials(vocabulary, merges)
    entries = sorted(
        [*((p, i) for i, p in enumerate(vocabulary.token_bytes) if p), *((p, i) for i, p in spelt.items())]
    )
    ids = np.array([i for _, i in entries], np.int32)
    ordinary = np.ones(len(ids), bool)
    if spelt:
        ordinary[np.isin(ids, list(spelt))] = False
    pieces = [p for p, _ in entries]
    text, start = joined(pieces)
    node_key, node = empty_table(len(text) + 1)
    nodes, lo, hi, end = build_trie(text, start, node_key, node)
    node_key, node = _fitted(node_key, node, nodes)
    is_made = made[ids]
    lo_N, hi_N = _counted(ordinary, lo), _counted(ordinary, hi)
    made_lo, made_hi = _counted(is_made, lo), _counted(is_made, hi)
    by_merges = is_made & np.array([i in spelt or vocabulary.id_of_bytes.get(p) == i for p, i in entries])
    own = np.full(len(lo), -1, np.int32)
    own[end[by_merges]] = ids[by_merges]
    word = np.full(len(ids), vocabulary.ignore_merges) & ordinary & ~is_made
    begun = (made_hi > made_lo) | (_counted(word, hi) > _counted(word, lo))
    begun[end[word]] = True
    made_Q = ids[is_made]
    place = np.full(vocabulary.size, -1, np.int32)
    place[made_Q] = np.arange(len(made_Q), dtype=np.int32)
    birth = np.where(made, merges.birth, UNMADE).astype(np.int32)
    likely = likely_tokens(
        text, start, np.where(is_made, birth[ids], UNMADE).astype(np.int32), ids, node_key, node, nodes
    )
    kept = [p for p, o in zip(pieces, ordinary, strict=True) if o]
    text, start = joined(kept)
    rank = np.full(vocabulary.size, -1, np.int32)
    rank[ids[ordinary]] = np.arange(len(kept), dtype=np.int32)
    length = np.zeros(vocabulary.size, np.int32)
    length[ids] = [len(p) for p in pieces]
    byte_token = np.full(256, -1, np.int32)
    if vocabulary.fallback_ids:
        byte_token[:] = vocabulary.fallback_ids
    return FlatTokenizer(
        ids_R=ids[ordinary],
        rank_V=rank,
        bytes_B=text,
        start_R=start,
        node_key_H=node_key,
        node_H=node,
        lo_N=lo_N,
        hi_N=hi_N,
        own_N=own,
        made_Q=made_Q,
        made_lo_N=made_lo,
        made_hi_N=made_hi,
        begun_N=begun,
        likely_N=likely,
        place_V=place,
        left_V=merges.left.astype(np.int32),
        right_V=merges.right.astype(np.int32),
        birth_V=birth,
        late_V=merges.late.astype(bool),
        length_V=length,
        **_merge_arrays(vocabulary, merges, made),
        byte_token=byte_token,
        by_characters=int(vocabulary.kind == "sentencepiece"),
    )


def table_of(flat: FlatTokenizer, vocabulary: Vocabulary) -> MergeTable:
    """The `MergeTable` of a tokenizer, from its arrays: a fraction of the time that `build_merge_table` takes."""
    birth = flat.birth_V.astype(np.int64)
    birth[flat.birth_V == UNMADE] = NEVER
    rank = {(a, b): index for index, (a, b, _) in enumerate(vocabulary.merges)}
    return MergeTable(vocabulary, np.array(flat.left_V), np.array(flat.right_V), birth, np.array(flat.late_V), rank)


def _spelt_specials(vocabulary: Vocabulary, merges: MergeTable) -> dict[int, bytes]:
    """Ids that are no text but that merges make, and the bytes that they are made of."""
    found: dict[int, bytes] = {}

    def spell(token: int) -> bytes:
        piece, left = vocabulary.token_bytes[token], int(merges.left[token])
        return piece if piece is not None else spell(left) + spell(int(merges.right[token])) if left >= 0 else b""

    for token in np.flatnonzero(merges.birth != NEVER).tolist():
        if not vocabulary.token_bytes[token] and (piece := spell(token)):
            found[token] = piece
    return found


def joined(pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(all bytes one after the other, int64 [n+1] where each begins)."""
    start = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    return np.frombuffer(bytearray(b"".join(pieces)), np.uint8), start


def _counted(chosen: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int32: how many are chosen before each place."""
    return np.concatenate([[0], np.cumsum(chosen)]).astype(np.int32)[places]


def empty_table(most: int) -> tuple[np.ndarray, np.ndarray]:
    """An empty hash table for `most` keys."""
    size = 1 << max(4, (2 * most - 1).bit_length())
    return np.full(size, EMPTY, np.int64), np.zeros(size, np.int32)


def _fitted(key: np.ndarray, value: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """The same hash table, no larger than it has to be."""
    used = np.flatnonzero(key != EMPTY)
    used = used[np.argsort(value[used])]  # children of a node near each other, and the same table in every run
    fitted = empty_table(entries)
    put_all(*fitted, key[used], value[used])
    return fitted


def _merge_arrays(vocabulary: Vocabulary, merges: MergeTable, made: np.ndarray) -> dict[str, np.ndarray]:
    """The merges as a hash table, by left token, and the left edges of all merge trees."""
    pairs = np.array(list(merges.rank), np.int64).reshape(-1, 2)
    ranks = np.array(list(merges.rank.values()), np.int32)
    key, rank = empty_table(len(pairs))
    put_all(key, rank, pairs[:, 0] << 32 | pairs[:, 1], ranks)
    usable = made[pairs].all(1)
    left, right = pairs[usable].T
    order = np.argsort(left, kind="stable")
    edge_start, edge_token, edge_death, edge_late = merges.left_edges
    return {
        "pair_key_H": key,
        "pair_rank_H": rank,
        "merged_M": np.array([m for _, _, m in vocabulary.merges], np.int32),
        "partner_start_V": np.searchsorted(left[order], np.arange(vocabulary.size + 1)).astype(np.int64),
        "partner": right[order].astype(np.int32),
        "partner_rank": ranks[usable][order],
        "edge_start_V": edge_start.astype(np.int64),
        "edge_token": edge_token.astype(np.int32),
        "edge_death": np.where(edge_death == NEVER, UNMADE, edge_death).astype(np.int32),
        "edge_late": edge_late.astype(bool),
    }
