"""Stage 9: hidden states of a group of documents -> rows of every product, chunk by chunk.

    softmax: chunks of probability rows ─▶ teacher's own rows, exact_rows (subset, bytes), fast_rows (any other student)

Every product takes its share of each chunk; `positions` keeps what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from engine.boundaries import Boundary
from engine.canonical import CanonicalNext
from engine.contexts import ContextTree
from engine.exact import ExactSide
from engine.exact_rows import ExactRows, Refinement
from engine.fast_rows import FastRows
from engine.positions import Rows
from engine.pushforward import PushForward
from engine.softmax import Chunk, Logits, Scored, Softmax
from schemas.target import FLAG_EXACT, FLAG_NO_MASS


@dataclass(slots=True)
class Side:
    """One product's view of one document: token ids [n] and their byte ends in the text, the closing end included (if it is
    `closed`), and how its rows are made: boundaries (fast), exact pairs, or neither for the teacher's own tokens."""

    ids: np.ndarray
    ends: np.ndarray
    boundaries: list[Boundary] | None = None
    exact: ExactSide | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class JoinedEnds:
    """The teacher's ids that end a turn, and the one of them (or another special) that stands for all."""

    ids: list[int]
    end_id: int

    def joined(self, prob: torch.Tensor) -> torch.Tensor:
        """A copy of probability rows [R, Vt] with the mass of all ends on one id."""
        out = prob.clone()
        out[:, self.ids] = 0.0
        out[:, self.end_id] = prob[:, self.ids].sum(1)
        return out


@dataclass(slots=True)
class Prepared:
    """One document ready to be scored.

    data: the teacher's prefix and the text. states: what `canonical` knows of every node, None when it is not asked.
    kept: bool [nodes], False for contexts that were pruned; None: none was. bad: (reason, detail) once not finite.
    """

    tree: ContextTree
    data: bytes
    sides: dict[str, Side]
    states: list[Any] | None = None
    kept: np.ndarray | None = None
    bad: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Emitter:
    """Everything that stays the same between groups. fast, exact: product -> how it is made; a product in neither has
    the teacher's own tokens. top_k: product -> K. real: bool [Vt], ids that are tokens (some lm_heads have more rows).
    canonical: finds non-canonical mass; masked: takes it out (`canonical-masked`)."""

    top_k: dict[str, int]
    real: torch.Tensor
    fast: dict[str, PushForward]
    exact: dict[str, Refinement]
    canonical: CanonicalNext | None = None
    masked: bool = False
    joined: dict[str, JoinedEnds] = field(default_factory=dict)  # products of the teacher's own tokens with one end

    @torch.inference_mode()
    def emit(self, docs: list[Prepared], hidden_ND: torch.Tensor, logits: Logits) -> dict[str, Rows]:
        """docs' nodes lie one after another in hidden_ND (rows of pruned ones are not read). logits: [R, D] -> [R, >= Vt].

        Sets `bad` on documents with non-finite log-probabilities. Raises IdentityError when mass is lost.
        """
        asked = self.canonical is not None
        group = Scored(
            trees=[d.tree for d in docs],
            kept=[d.kept for d in docs],
            states=[d.states or [] for d in docs] if asked else None,
            bad=[d.bad for d in docs],
        )
        softmax = Softmax(group, self.real, self.canonical, masked=self.masked)
        rows: dict[str, Rows] = {}
        takers: list[TeacherRows | ExactRows | FastRows] = []
        for product in docs[0].sides:
            sides = [d.sides[product] for d in docs]
            rows[product] = out = Rows.empty([np.asarray(s.ids) for s in sides], self.top_k[product])
            if product in self.exact:
                exact = [s.exact for s in sides if s.exact is not None]
                takers.append(ExactRows(product, self.exact[product], softmax, exact, out))
            elif product in self.fast:
                boundaries = [s.boundaries for s in sides if s.boundaries is not None]
                takers.append(FastRows(product, self.fast[product], softmax, boundaries, out))
            else:
                takers.append(TeacherRows(product, softmax, out, self.joined.get(product)))
        for chunk in softmax.run(hidden_ND, logits):
            for taker in takers:
                taker.take(chunk)
        for doc, bad in zip(docs, group.bad, strict=True):
            doc.bad = bad
        return rows


class TeacherRows:
    """The teacher's own distributions along the trunk: exact by definition. joined: its ends as one event."""

    def __init__(self, product: str, softmax: Softmax, rows: Rows, joined: JoinedEnds | None = None) -> None:
        self.product, self.softmax, self.rows, self.joined = product, softmax, rows, joined
        self.row_of = np.full(len(softmax.chunk_of), -1, np.int64)  # context -> the position that it predicts
        for i, tree in enumerate(softmax.group.trees):
            trunk = np.asarray(tree.trunk, np.int64)
            first = np.asarray(tree.parent, np.int64)[trunk[:1]] if len(trunk) else np.array([tree.given])
            before = np.concatenate([first, trunk])  # of each token and the end
            count = rows.start[i + 1] - rows.start[i]
            here = before[:count] >= 0
            self.row_of[softmax.base[i] + before[:count][here]] = rows.start[i] + np.flatnonzero(here)

    def take(self, chunk: Chunk) -> None:
        """Write the positions that this chunk's contexts predict."""
        softmax, rows = self.softmax, self.rows
        fine = np.array([softmax.group.bad[i] is None for i in softmax.doc_of[chunk.nodes]], bool)
        mass = chunk.prob.sum(1).double().cpu().numpy()
        asked = (self.row_of[chunk.nodes] >= 0) & fine
        rows.flags[self.row_of[chunk.nodes[asked & (mass <= 0)]]] = FLAG_NO_MASS  # masked: no canonical token has any
        picked = np.flatnonzero(asked & (mass > 0))
        if not len(picked):
            return
        nodes = chunk.nodes[picked]
        at = self.row_of[nodes]
        whole = len(picked) == len(chunk.nodes)
        prob = chunk.prob if whole else chunk.prob[torch.from_numpy(picked).to(chunk.prob.device)]
        if self.joined is not None:
            prob = self.joined.joined(prob)
        rows.write(self.product, at, prob, mass[picked])
        rows.err[at] = 0.0
        rows.noncanonical_mass[at] = softmax.noncanonical[nodes]
        rows.flags[at] = FLAG_EXACT
