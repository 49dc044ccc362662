"""The contexts of several passages under one numbering: which are scored in which order, how they hang together, their weights.

In: passages with their context trees, and which contexts pruning left out. Out: a `Group`. Its numbers do not depend on the
teacher's answers; what the answers add (weights of contexts, mass on non-canonical tokens) is kept in `Group.weights` and
filled chunk by chunk while engine/teacher/softmax.py runs.

Letters: P passages, N contexts of the whole group, M of them that are evaluated, E tree edges that begin in one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.alignment.boundaries import Boundary
from engine.alignment.passage import Passage

CELLS_AT_ONCE = 6_000_000
"""Numbers of one table rows x vocabulary that is made at a time: about 20 bytes each at the peak, so 0.12 GiB."""
MOST_ROWS = 512
"""Rows of such a table, however small the vocabulary is."""


def rows_at_once(vocabulary: int, most: int | None = None) -> int:
    """How many rows of `vocabulary` numbers are made at a time: at least 1, at most `most`."""
    rows = max(1, CELLS_AT_ONCE // vocabulary)
    return rows if most is None else min(rows, most)


@dataclass(frozen=True, eq=False)
class Weights:
    """What the teacher's answers say of a group's contexts; complete for a chunk as soon as that chunk is made.

    logw: float64 [N], log-weight of each context (definition 4): the sum of log p(token | what is before it) from the given
    context, which has 0, down to it; nats; -inf before it is known, and for contexts without mass.
    noncanonical: float64 [N], mass of each context's next-token distribution on tokens that no text has there
    (definition 10); 0 where nobody asks.
    fringe_logp: float64 [F], log p(token | context) of the fringe's entries in the order of `Group.fringe_key`, nats.
    logit_measures: name -> float64 [N], of the raw logits: logz, logit_std, logz_scaled (schemas/target.py); empty unless
    asked for.
    """

    logw: np.ndarray
    noncanonical: np.ndarray
    fringe_logp: np.ndarray
    logit_measures: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Group:
    """Contexts of several passages, numbered through passage after passage ("global number" 0 .. N-1).

    first_node: int64 [P+1], global number of each passage's first context, and N.
    passage_of: int64 [N], the passage that a context belongs to.
    parent: int64 [N], global number of the context without its last token, -1 at a root. Parents come before children.
    token: int64 [N], last token of each context. end: int64 [N], byte of prefix + text where it ends.
    evaluated: bool [N], contexts whose next-token distribution is made: the given one and those behind it, less the pruned.
    order: int64 [M], evaluated contexts in the order in which they are made: by passage, then by `end`, so that a boundary's
    contexts lie close together and every parent comes before its children.
    chunk_rows: contexts of a chunk, consecutive in `order`. chunk_of: int64 [N], the chunk of each context, -1 if not evaluated.
    top_pruned: int64 [N], for a context that is not evaluated because of pruning, its pruned ancestor-or-self nearest to the
    root, which stands for it in lemma 14; -1 for all others.
    edges: for each chunk the tree edges that begin at its contexts, as int64 [E] arrays (parent, token, child), in `order` of
    the parents; child is -1 for a token of the fringe.
    fringe_key: int64 [F], rising, global number of a context << 32 | token for each token that hangs off the tree behind an
    evaluated context (the fringe).
    """

    passages: list[Passage]
    first_node: np.ndarray
    passage_of: np.ndarray
    parent: np.ndarray
    token: np.ndarray
    end: np.ndarray
    evaluated: np.ndarray
    order: np.ndarray
    chunk_rows: int
    chunk_of: np.ndarray
    top_pruned: np.ndarray
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    fringe_key: np.ndarray
    weights: Weights

    @property
    def size(self) -> int:
        """N."""
        return len(self.parent)

    @property
    def chunks(self) -> int:
        return len(self.edges)

    def fringe_index(self, node: np.ndarray, token: np.ndarray) -> np.ndarray:
        """int64, for pairs of an evaluated context (global number) and a token of its fringe: where they are in `fringe_key`."""
        return np.searchsorted(self.fringe_key, np.asarray(node, np.int64) << 32 | np.asarray(token, np.int64))

    def is_good(self, passages: np.ndarray) -> np.ndarray:
        """bool, for numbers of passages: none of their distributions made so far was other than finite."""
        return np.array([passage.bad is None for passage in self.passages], bool)[passages]


def group_of(passages: list[Passage], vocabulary: int) -> Group:
    """Number the contexts of some passages. vocabulary: teacher ids, Vt, by which the size of a chunk is chosen."""
    sizes = [len(passage.tree.token) for passage in passages]
    first_node = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    passage_of = np.repeat(np.arange(len(sizes)), sizes)
    count = int(first_node[-1])
    given = np.array([first + p.tree.given for first, p in zip(first_node[:-1], passages, strict=True)], np.int64)
    parent, evaluated = [], []
    for first, passage in zip(first_node[:-1], passages, strict=True):
        above = np.asarray(passage.tree.parent, np.int64)
        parent.append(np.where(above >= 0, above + first, -1))
        behind = np.arange(len(above)) >= passage.tree.given
        evaluated.append(behind if passage.kept is None else behind & passage.kept)
    parent_N, evaluated_N = np.concatenate(parent), np.concatenate(evaluated)
    token_N = np.concatenate([np.asarray(p.tree.token, np.int64) for p in passages])
    end_N = np.concatenate([np.asarray(p.tree.end, np.int64) for p in passages])
    order = np.lexsort((end_N, passage_of))
    order = order[evaluated_N[order]]
    chunk_rows = rows_at_once(vocabulary, MOST_ROWS)
    chunk_of = np.full(count, -1, np.int64)
    chunk_of[order] = np.arange(len(order)) // chunk_rows
    behind_given = np.arange(count) > given[passage_of]
    logw = np.full(count, -np.inf)
    logw[given] = 0.0  # weights are relative to the given context
    edges = _edges(passages, first_node, parent_N, token_N, np.flatnonzero(behind_given), order, chunk_rows, chunk_of)
    hanging = [parent[child < 0] << 32 | token[child < 0] for parent, token, child in edges]
    fringe_key = np.sort(np.concatenate([np.empty(0, np.int64), *hanging]))
    return Group(
        passages=passages,
        first_node=first_node,
        passage_of=passage_of,
        parent=parent_N,
        token=token_N,
        end=end_N,
        evaluated=evaluated_N,
        order=order,
        chunk_rows=chunk_rows,
        chunk_of=chunk_of,
        top_pruned=_topmost_pruned(parent_N, np.flatnonzero(behind_given & ~evaluated_N)),
        edges=edges,
        fringe_key=fringe_key,
        weights=Weights(logw, np.zeros(count), np.full(len(fringe_key), -np.inf)),
    )


def _topmost_pruned(parent: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """int64 [N]. pruned: rising. Parents come first, so that one pass down finds each one's topmost pruned ancestor-or-self."""
    top = np.full(len(parent), -1, np.int64)
    for node in pruned:
        above = top[parent[node]]
        top[node] = node if above < 0 else above
    return top


def _edges(
    passages: Sequence[Passage],
    first_node: np.ndarray,
    parent_N: np.ndarray,
    token_N: np.ndarray,
    child: np.ndarray,
    order: np.ndarray,
    chunk_rows: int,
    chunk_of: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`Group.edges`. child: global numbers of the contexts behind the given ones."""
    child = child[(parent_N[child] >= 0) & (chunk_of[parent_N[child]] >= 0)]
    parent, token = parent_N[child], token_N[child]
    hanging = [
        np.stack([passage.tree.fringe_node + first, passage.tree.fringe_token]).astype(np.int64)
        for first, passage in zip(first_node[:-1], passages, strict=True)
    ]
    fringe = np.unique(np.concatenate(hanging, axis=1), axis=1).T
    fringe = fringe[chunk_of[fringe[:, 0]] >= 0]
    if len(fringe):
        parent, token = np.concatenate([parent, fringe[:, 0]]), np.concatenate([token, fringe[:, 1]])
        child = np.concatenate([child, np.full(len(fringe), -1)])
    place = np.empty(len(parent_N), np.int64)
    place[order] = np.arange(len(order))
    by_parent = np.argsort(place[parent], kind="stable")
    parent, token, child = parent[by_parent], token[by_parent], child[by_parent]
    cuts = np.searchsorted(chunk_of[parent], np.arange(math.ceil(len(order) / chunk_rows) + 1))
    return [(parent[a:b], token[a:b], child[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def pruned_bounds(group: Group, passage: int, boundary: Boundary) -> list[float]:
    """Log-weights that together bound the mass of a boundary in contexts that were not evaluated, nats, unordered.

    Two kinds: tokens of the boundary's fringe behind evaluated contexts (lemma 7: w(context) p(token | context) is at least
    the mass of all contexts below), and the topmost pruned contexts at or above one of the boundary's own (lemma 14), each
    once. Valid when the chunks of all contexts of the boundary are made.
    """
    weights, first = group.weights, int(group.first_node[passage])
    nodes = {first + n for n in {*(n for n, _ in boundary.leaves), *boundary.at}}
    hanging = [(first + n, t) for n, t in boundary.fringe]
    pruned = {int(group.top_pruned[n]) for n in (*nodes, *(n for n, _ in hanging)) if group.chunk_of[n] < 0}
    bounds = [weights.logw[n] for n in pruned]
    known = np.array([(n, t) for n, t in hanging if group.chunk_of[n] >= 0], np.int64).reshape(-1, 2).T
    return bounds + (weights.logw[known[0]] + weights.fringe_logp[group.fringe_index(*known)]).tolist()


def not_finite(passage: Passage, end: int, depth: int) -> tuple[str, str]:
    """(reason, detail) of a passage whose teacher gave NaN or infinity after a context that ends at byte `end` of prefix +
    text and is `depth` tokens deep."""
    place = max(0, end - passage.lead)
    return (
        "nonfinite_logprob",
        f"the teacher's distribution after byte {place} of the text (depth {depth}) is not finite",
    )
