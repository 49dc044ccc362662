"""A tokenizer -> the arrays that compiled code takes, and back.

In: a `Vocabulary` and its `MergeTable`. Out: a `FlatTokenizer` (kernels/flat.py has its fields and letters). What the arrays
answer is what `MergeTable` answers; the two are compared in tests.
"""

from __future__ import annotations

import numpy as np

from engine.bpe.merges import NEVER, MergeTable
from engine.bpe.vocabulary import Vocabulary
from engine.kernels.flat import UNMADE, FlatTokenizer, empty_table, fitted_table, joined
from engine.kernels.hash_kernels import build_trie, likely_tokens, put_all


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
    node_key, node = fitted_table(node_key, node, nodes)
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
    byte_token[list(vocabulary.byte_tokens)] = vocabulary.fallback_ids
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


def _counted(chosen: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int32: how many are chosen before each place."""
    return np.concatenate([[0], np.cumsum(chosen)]).astype(np.int32)[places]


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
