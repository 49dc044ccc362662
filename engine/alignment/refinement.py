"""One document and a student whose tokens refine the teacher's (definition 11) go in; out come the pairs of teacher context and
student row whose probabilities add up.

Row k predicts unit k of the student (a token, or a byte), given units < k. It gathers, from every context c that ends j
<= k units into the document, the teacher tokens whose expansion begins with units j .. k-1 and goes on: the children of
one state of the trie. Pairs with j = k (state 0) are *top* pairs, the others *deep* ones.

Letters: N nodes of the tree, n units of the document, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.alignment.expansion import Expansion
from engine.alignment.token_trie import Trie
from engine.contexts.tree import ContextTree
from schemas.errors import BadDocument, IdentityError


@dataclass(frozen=True, eq=False)
class ExactPairs:
    """Pairs (node, row) and (node, state, row), each sorted by node; int64 [P]: the sum of lemma 13, term by term.

    top: contexts with D(c) = u_1 .. u_k (j = k), one a context. deep: contexts with j < k, in the state u_{j+1} .. u_k of the
    trie. first: the first row that is asked of the teacher; rows before it lie in or before the given token.
    """

    top_node: np.ndarray
    top_row: np.ndarray
    deep_node: np.ndarray
    deep_state: np.ndarray
    deep_row: np.ndarray
    first: int


def exact_pairs(
    tree: ContextTree, trie: Trie, expansion: Expansion, unit_n: np.ndarray, end_n: np.ndarray, *, skip: int = 0
) -> ExactPairs:
    """The pairs of one document. unit_n, end_n: int [n], units and the bytes of prefix + text where they end, rising.

    skip: units that have no row (the teacher's prefix, for bytes). Raises BadDocument where the text holds an added text of the
    teacher alone, and IdentityError when the document's own tokenization does not expand to the units: then the pair of
    tokenizers is not what lemma 12 asks for.
    """
    parent, token = np.asarray(tree.parent, np.int64), np.asarray(tree.token, np.int64)
    places = np.concatenate([[0], np.asarray(end_n, np.int64)])
    # [N] the row at each context's end, -1 where no unit ends there (such a context has D(c) of another text: no part in lemma
    # 13)
    at_N = np.searchsorted(places, np.asarray(tree.end, np.int64))
    at_N[places[np.minimum(at_N, len(places) - 1)] != np.asarray(tree.end)] = -1
    agrees_N = _agrees(tree, parent, token, at_N, expansion, np.asarray(unit_n))
    trunk = np.asarray(tree.trunk, np.int64)
    if len(apart := trunk[expansion.lengths[token[trunk]] == 0]):
        raise BadDocument(
            "added_token",
            f"the teacher's token {token[apart[0]]} that ends at byte {tree.end[apart[0]]} (of prefix and text) is an added text "
            "that the student spells by itself",
        )
    if not agrees_N[trunk].all():
        node = int(trunk[np.argmin(agrees_N[trunk])])
        raise IdentityError(
            f"exact: the teacher's token {token[node]} that ends at byte {tree.end[node]} does not expand to the student's "
            "own tokens there; the student is no refinement of the teacher. Please report both tokenizers"
        )
    node = np.flatnonzero(agrees_N & (np.arange(len(token)) >= tree.given))
    row, state = at_N[node], np.zeros(len(node), np.int64)
    top_node, top_row = node, row
    deep: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while len(node):  # all pairs one row further: down the trie by the document's own unit, while an expansion goes on
        inside = row < len(unit_n)
        node, row, state = node[inside], row[inside], state[inside]
        child = trie.step(state, np.asarray(unit_n, np.int64)[row])
        goes_on = (child >= 0) & (trie.state[child] >= 0)
        node, row, state = node[goes_on], row[goes_on] + 1, trie.state[child[goes_on]].astype(np.int64)
        deep.append((node, state, row))
    empty = np.empty(0, np.int64)
    deep_node, deep_state, deep_row = (np.concatenate([empty, *(d[i] for d in deep)]) for i in range(3))
    order, has = np.argsort(deep_node, kind="stable"), deep_row - skip
    order = order[has[order] >= 0]
    shown = top_row >= skip
    return ExactPairs(
        top_node=top_node[shown],
        top_row=top_row[shown] - skip,
        deep_node=deep_node[order],
        deep_state=deep_state[order],
        deep_row=has[order],
        first=max(int(at_N[tree.given]) - skip, 0),
    )


def _agrees(
    tree: ContextTree, parent: np.ndarray, token: np.ndarray, at_N: np.ndarray, expansion: Expansion, unit_n: np.ndarray
) -> np.ndarray:
    """bool [N]: the expansion of the whole context is the document's first units."""
    size = expansion.lengths[token]
    begin = np.where(parent >= 0, at_N[np.maximum(parent, 0)], 0)
    ok = (at_N >= 0) & (begin >= 0) & (begin + size == at_N)
    flat = np.flatnonzero(ok)
    sizes = size[flat]
    step = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    theirs = expansion.unit[np.repeat(expansion.start[token[flat]], sizes) + step]
    same = theirs == unit_n[np.repeat(begin[flat], sizes) + step]
    ok[np.repeat(flat, sizes)[~same]] = False
    ok[: int(tree.trunk[0]) if len(tree.trunk) else tree.given + 1] = True  # given tokens are none of the text
    while True:  # a context agrees when its parent does; branches are a few tokens deep
        spoilt = ok & (parent >= 0) & ~ok[np.maximum(parent, 0)]
        if not spoilt.any():
            return ok
        ok[spoilt] = False
