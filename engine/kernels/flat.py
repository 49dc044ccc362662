"""What compiled code knows of a tokenizer: its tokens in byte order, a tree of their beginnings, its merges, all as arrays.

`FlatTokenizer` is arrays and nothing else, so that compiled functions (kernels/merge_kernels.py) take it as one argument and it
can be kept in files. It is made in bpe/flatten.py. Also here: hash tables and joined byte strings, empty and made.

Letters: V ids, R ordinary tokens sorted by bytes (their place there is their *rank*), Q tokens that merges can make, sorted
by bytes, N nodes of the trie (kernels/hash_kernels.py), M merges, H slots of a hash table, E entries of left edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import boolean, int32, int64, types, uint8

from engine.kernels.hash_kernels import EMPTY, put_all

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


def joined(pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(all bytes one after the other, int64 [n+1] where each begins)."""
    start = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    return np.frombuffer(bytearray(b"".join(pieces)), np.uint8), start


def empty_table(most: int) -> tuple[np.ndarray, np.ndarray]:
    """An empty hash table for `most` keys."""
    size = 1 << max(4, (2 * most - 1).bit_length())
    return np.full(size, EMPTY, np.int64), np.zeros(size, np.int32)


def fitted_table(key: np.ndarray, value: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """The same hash table, no larger than it has to be."""
    used = np.flatnonzero(key != EMPTY)
    used = used[np.argsort(value[used])]  # children of a node near each other, and the same table in every run
    smaller = empty_table(entries)
    put_all(*smaller, key[used], value[used])
    return smaller
