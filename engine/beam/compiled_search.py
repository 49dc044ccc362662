r"""Which open leaves are worth a teacher evaluation, for students whose boundaries are compiled; and the passages with these.

    hidden states ─ softmax ─▶ open leaves of all boundaries ─ choose ─▶ one round of the teacher ─▶ longer trees, more states

An open leaf that nobody evaluates is placed as if a boundary followed. Mostly that is right; where not, the error is as large as
its mass. How likely that is hangs on what is pending behind the leaf: white space of several characters, of which a pattern
like `\s+(?!\S)` gives back the last one, is mostly cut by what comes next; where a line break or a digit would be one token with
what is there (`.\n` in Qwen's vocabulary, `50` in Llama-3's) it often comes; a word that may go on is mostly not changed by what
comes (measured, docs/log.md). A document's leaves are taken in the order of what they are expected to put right, summed over all
boundaries and students that meet them, until what is left is below `target_error` in the mean over its boundaries, or its
budget is spent. How wide a row is certified to be plays no part; the certificate is what it is (lemma 16 holds for every
choice).

Letters: N contexts of a passage, X of them hung off its own, L open leaves, Vt teacher ids.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from engine.alignment.passage import HungContexts, Passage
from engine.bpe.vocabulary import Vocabulary
from engine.compiled.walk import StudentWalk
from engine.contexts.canonical import CanonicalNext
from engine.contexts.illegal import IllegalLists
from engine.push.compiled_push import CompiledPush
from engine.push.compiled_rows import CompiledRows, OpenLeaves
from engine.push.passage_arrays import HORIZON_BYTES
from engine.targets.positions import TopK
from engine.teacher.group import group_of
from engine.teacher.incremental import OpenBatch
from engine.teacher.packing import Window
from engine.teacher.softmax import Logits, Softmax
from schemas.errors import BadDocument
from schemas.manifest import add_stats

RISK, RISK_OF_GROWTH, RISK_OF_CUTS = 0.002, 0.1, 1.0
"""Share of an open leaf's mass that belongs to another student token than the leaf is closed to: in general, where one of
`FOLLOWERS` would be joined to its last token, and where what comes next may cut inside what is pending behind it."""
FOLLOWERS = ("\n", "\n\n", "1")
"""What often comes next and is one token with punctuation or digits before it in some vocabularies."""
LEVELS = 16  # of expected error for each factor of two: what differs by less is taken in the order of the text, not by rounding


@dataclass(frozen=True, slots=True)
class Spending:
    """When a document's search ends. target_error: expected total variation, in the mean over its boundaries. per_token: teacher
    evaluations at most, for each student token. rounds: how often leaves are chosen, those of a split one in the next."""

    target_error: float
    per_token: float
    rounds: int = 1


OUTLOOK_BUDGETS = (0, 1, 2)
"""Evaluations for each student token at which a search says what it would leave (`Searched.outlook`)."""


class Searched(NamedTuple):
    """What a search gives: the passages with longer trees, the states [N, D] of all their contexts, evaluations spent, and sums
    over boundaries for the statistics: `beam.boundaries`, `beam.expected_tv_sum` behind what was spent, and for each of
    OUTLOOK_BUDGETS `beam.expected_tv_at_<b>_sum` and `beam.open_at_<b>_sum` (share of the mass in open leaves that are not
    evaluated; those that open behind a split one are not known, and are not in it)."""

    passages: list[Passage]
    hidden_ND: torch.Tensor
    spent: int
    outlook: dict[str, float]


@dataclass(frozen=True, eq=False)
class Students:
    """What the search needs of each product: its walk and its push-forward. token_bytes: of the teacher's ids, None for those
    that are no text."""

    walks: dict[str, StudentWalk]
    pushes: dict[str, CompiledPush]
    token_bytes: Sequence[bytes | None]


class CompiledSearch:
    """Hangs contexts off the passages of a group. real: bool [Vt]. masked: rows are masked to canonical tokens. max_length:
    of the teacher's window, tokens. guard: held while what other threads use, too, is asked."""

    def __init__(
        self,
        students: Students,
        spending: Spending,
        real: torch.Tensor,
        canonical: CanonicalNext,
        *,
        masked: bool,
        max_length: int,
        guard: threading.RLock | None = None,
    ) -> None:
        self.guard = guard or threading.RLock()
        self.students, self.spending = students, spending
        self._risk_V = {product: np.full(len(real), np.nan) for product in students.walks}  # by last token, once asked
        self.real, self.canonical, self.masked, self.max_length = real, canonical, masked, max_length

    @torch.inference_mode()
    def search(
        self, passages: list[Passage], hidden_ND: torch.Tensor, batches: list[OpenBatch], logits: Logits
    ) -> Searched:
        """Which contexts are worth an evaluation, and the passages with these.

        passages: one group, with `kept` as the forward pass set it; hidden_ND: of all their contexts; batches: as kept open by
        it. Sets `bad` of passages with a distribution that is not finite.
        """
        hung = [_Hung(passage) for passage in passages]
        for b, batch in enumerate(batches):
            for w, (i, nodes, numbers, depths) in enumerate(batch.windows):
                for node, number, depth in zip(nodes.tolist(), numbers.tolist(), depths.tolist(), strict=True):
                    hung[i].place[node] = (b, w, number, depth)
        cuts = np.cumsum([0, *(len(p.tree.token) for p in passages)])
        states = [hidden_ND[a:b] for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)]
        longer, outlook = passages, dict[str, float]()
        for turn in range(self.spending.rounds):
            leaves = self._open_leaves(longer, torch.cat(states), logits)
            with self.guard:
                found = [self._choose(i, leaves, hung[i]) for i in range(len(passages))]
            chosen = [one for one, _ in found]
            for _, told in found if turn == 0 else ():
                add_stats(outlook, told)
            if not any(len(node) for node, _ in chosen):
                break
            new = _evaluate(chosen, hung, batches, hidden_ND)
            states = [torch.cat(pair) for pair in zip(states, new, strict=True)]
            with self.guard:
                longer = [self._longer(h, long) for h, long in zip(hung, longer, strict=True)]
        return Searched(longer, torch.cat(states), sum(len(h.node) for h in hung), outlook)

    def _open_leaves(self, passages: list[Passage], hidden_ND: torch.Tensor, logits: Logits) -> dict[str, OpenLeaves]:
        """By one pass over the rows of all contexts."""
        group, found, takers = group_of(passages, len(self.real)), {}, []
        for product, push in self.students.pushes.items():
            views = [view for p in passages if (view := p.views[product].student) is not None]
            found[product] = OpenLeaves()
            rows = TopK([np.asarray(p.views[product].ids) for p in passages], 1)
            takers.append(CompiledRows(product, push, group, views, rows, found[product]))
        softmax = Softmax(group, self.real, noncanonical=self.masked, masked=self.masked)
        for chunk in softmax.run(hidden_ND, logits):
            for taker in takers:
                taker.take(chunk)
        return found

    def _choose(
        self, i: int, leaves: dict[str, OpenLeaves], hung: _Hung
    ) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, float]]:
        """(contexts, tokens) of a passage behind which the teacher is asked, int64, in the order of the text; and its part of
        `Searched.outlook`."""
        keys, gains, shares, boundaries, allowed = [], [], [], 0, 0.0
        for product, found in leaves.items():
            passage, _, node, token, share = found.arrays()
            mine = passage == i
            keys.append(node[mine] << 32 | token[mine])
            shares.append(share[mine])
            gains.append(share[mine] * self._risk(product, token[mine]))
            boundaries += found.boundaries.get(i, 0)
            allowed += self.spending.per_token * found.boundaries.get(i, 0)
        key, at = np.unique(np.concatenate(keys), return_inverse=True)
        gain = np.bincount(at, np.concatenate(gains), len(key))
        node = key >> 32
        contexts, which = np.unique(node, return_inverse=True)
        has_room = [n in hung.place and hung.place[n][3] + 1 < self.max_length for n in contexts.tolist()]
        fits = np.array(has_room, bool)[which]
        level = np.rint(np.log2(np.maximum(gain, 1e-30)) * LEVELS)
        order = np.argsort(-level, kind="stable")
        left = np.cumsum(gain[order][::-1])[::-1]  # before each is put right
        wanted = order[left > self.spending.target_error * boundaries]
        taken = np.sort(wanted[fits[wanted]][: max(0, int(allowed) - len(hung.node))])
        share = np.bincount(at, np.concatenate(shares), len(key))[order]
        outlook = {"beam.boundaries": float(boundaries), "beam.expected_tv_sum": float(gain.sum() - gain[taken].sum())}
        for budget in OUTLOOK_BUDGETS:
            outlook[f"beam.expected_tv_at_{budget}_sum"] = float(gain[order][budget * boundaries :].sum())
            outlook[f"beam.open_at_{budget}_sum"] = float(share[budget * boundaries :].sum())
        return (node[taken], key[taken] & 0xFFFFFFFF), outlook

    def _risk(self, product: str, token: np.ndarray) -> np.ndarray:
        """float64: RISK, RISK_OF_GROWTH or RISK_OF_CUTS of leaves, by their last tokens alone."""
        risk_V, walk = self._risk_V[product], self.students.walks[product]
        for t in np.unique(token[np.isnan(risk_V[token])]).tolist():
            piece = self.students.token_bytes[t] or b""
            grows = may_grow(walk.aligner.student, piece)
            risk_V[t] = RISK_OF_CUTS if walk.may_cut_inside(piece) else RISK_OF_GROWTH if grows else RISK
        return risk_V[token]

    def _longer(self, hung: _Hung, known: Passage) -> Passage:
        """The passage with all that is hung off it at the end of its tree. known: the same before the last round."""
        passage, tree, walks = hung.passage, hung.passage.tree, self.students.walks
        if not hung.node:
            return passage
        ends, strings, begins, depths = tree.end.tolist(), list[bytes](), list[int](), tree.depth.tolist()
        for node, token in zip(hung.node, hung.token, strict=True):
            piece = self.students.token_bytes[token] or b""
            above = node - len(tree.token)
            begins.append(begins[above] if above >= 0 else max(ends[node] - HORIZON_BYTES, 0))
            strings.append((strings[above] if above >= 0 else passage.data[begins[-1] : ends[node]]) + piece)
            ends.append(ends[node] + len(piece))
            depths.append(depths[node] + 1)
        node, token, begin = np.array(hung.node), np.array(hung.token), np.array(begins)
        at = np.concatenate([[0], np.cumsum([len(s) for s in strings])[:-1]])
        contexts = HungContexts(np.frombuffer(b"".join(strings), np.uint8), at - begin, begin)
        longer = replace(
            tree,
            token=np.append(tree.token, token.astype(np.int32)),
            parent=np.append(tree.parent, node.astype(np.int32)),
            end=np.array(ends, np.int32),
            depth=np.array(depths, np.int32),
        )
        views = dict(passage.views)
        for product, walk in walks.items():
            view = views[product].student
            if view is not None:
                views[product] = replace(views[product], student=walk.hang(view, longer, passage.data, contexts))
        more = [None] * len(node)
        if self.masked:
            pending = self.canonical.pending(tree, passage.data)
            more = [self.canonical.state_behind(tree, pending, *hung.path(x)) for x in range(len(node))]
        illegal = passage.illegal and IllegalLists.join([passage.illegal, self.canonical.lists(more)])
        return replace(
            passage,
            tree=longer,
            views=views,
            hung=contexts,
            bad=known.bad,
            illegal=illegal,
            kept=None if passage.kept is None else np.append(passage.kept, np.ones(len(node), bool)),
        )


def may_grow(student: Vocabulary, text: bytes) -> bool:
    """Whether one of `FOLLOWERS` behind this text changes the student's tokens of it."""
    try:
        alone = text.decode("utf-8")
        ids = student.encode(alone)[0]
        return any(student.encode(alone + more)[0][: len(ids)] != ids for more in FOLLOWERS)
    except (UnicodeDecodeError, BadDocument):  # inside a character; what this student cannot spell
        return False


@dataclass(eq=False)
class _Hung:
    """What is hung off one passage so far: context and token of each, contexts numbered on behind those of the tree. place:
    context -> (batch, window, number among the window's nodes, depth in the window)."""

    passage: Passage
    node: list[int] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    place: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)

    def path(self, x: int) -> tuple[int, list[int]]:
        """(context of the text, tokens from there)."""
        count, tokens, node = len(self.passage.tree.token), [self.token[x]], self.node[x]
        while node >= count:
            tokens.append(self.token[node - count])
            node = self.node[node - count]
        return node, tokens[::-1]


def _evaluate(
    chosen: list[tuple[np.ndarray, np.ndarray]],
    hung: list[_Hung],
    batches: list[OpenBatch],
    hidden_ND: torch.Tensor,
) -> list[torch.Tensor]:
    """States [X, D] of the new contexts of every passage, by one round over each batch. Notes them in `hung`."""
    out = [hidden_ND.new_zeros((len(node), hidden_ND.shape[1])) for node, _ in chosen]
    added: list[list[list[tuple[int, int]]]] = [[[] for _ in batch.windows] for batch in batches]
    for i, (node, _) in enumerate(chosen):
        for x, n in enumerate(node.tolist()):
            b, w, _, _ = hung[i].place[n]
            added[b][w].append((i, x))
    for b, (batch, windows) in enumerate(zip(batches, added, strict=True)):
        if not any(windows):
            continue
        more, sizes = [], batch.trees.sizes
        for window in windows:
            above = [hung[i].place[int(chosen[i][0][x])] for i, x in window]
            more.append(
                Window([int(chosen[i][1][x]) for i, x in window], [a[2] for a in above], [a[3] + 1 for a in above])
            )
        for w, (window, states) in enumerate(zip(windows, batch.trees.add(more), strict=True)):
            for number, ((i, x), state) in enumerate(zip(window, states, strict=True), sizes[w]):
                out[i][x] = state
                base = len(hung[i].passage.tree.token) + len(hung[i].node)
                hung[i].place[base + x] = (b, w, number, more[w].depth[number - sizes[w]])
    for h, (node, token) in zip(hung, chosen, strict=True):
        h.node += node.tolist()
        h.token += token.tolist()
    return out
