"""A group of passages and their hidden states in, rows of every product out, chunk by chunk.

    hidden states ─ softmax ─▶ chunks of probabilities ─▶ teacher_rows   the teacher's own tokens
                                                       ─▶ exact_rows     subset students, bytes
                                                       ─▶ beam_rows      any other student (regimes fast and beam)

Every product takes its share of each chunk; `positions` keeps what is stored of each position.
"""

from __future__ import annotations

import threading
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.alignment.passage import Passage
from engine.push.compiled_push import CompiledPush
from engine.push.compiled_rows import CompiledRows
from engine.targets.beam_rows import BeamRows
from engine.targets.exact_rows import ExactRows, Refinement
from engine.targets.positions import TargetRows, TopK
from engine.targets.pushforward import PushForward
from engine.targets.sampling import Sample, key_of, row_keys
from engine.targets.teacher_rows import FILLS, HiddenStates, JoinedEnds, Statistics, TeacherRows
from engine.teacher.group import group_of
from engine.teacher.softmax import Logits, Softmax
from schemas.products import HIDDEN, TEACHER


@dataclass(frozen=True, slots=True)
class Emitter:
    """Everything that stays the same between groups.

    top_k: product -> K. real: bool [Vt], ids that are tokens (some lm_heads have more rows).
    fast: product -> push-forward, for students in the regimes fast and beam; exact: product -> refinement, for subset students
    and bytes; compiled: of the former those that compiled functions
    make, but for their slow boundaries; a product in neither has the teacher's own tokens, with one end where it is in
    `joined`. noncanonical: mass on tokens that no text has there is found; masked: it is taken out (`canonical-masked`).
    guard: held while slow boundaries are asked for, whose rules the preparation of other documents uses, too.
    draws: products that are drawn from, and how often; seed: of all draws. statistics: of the rows of the product `teacher`.
    """

    top_k: dict[str, int]
    real: torch.Tensor
    fast: dict[str, PushForward]
    exact: dict[str, Refinement]
    noncanonical: bool = False
    masked: bool = False
    joined: dict[str, JoinedEnds] = field(default_factory=dict)
    draws: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    statistics: Statistics | None = None
    compiled: dict[str, CompiledPush] = field(default_factory=dict)
    guard: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @torch.inference_mode()
    def emit(self, docs: list[Passage], hidden_ND: torch.Tensor, logits: Logits) -> dict[str, TargetRows]:
        """Rows of every product. hidden_ND: last hidden states of all contexts, passage after passage (those of pruned contexts
        are not read). logits: [R, D] -> [R, >= Vt].

        Sets `bad` of passages with a distribution that is not finite; their rows mean nothing. Raises IdentityError when mass is
        lost.
        """
        group = group_of(docs, len(self.real))
        measured: np.ndarray | None = None
        rows: dict[str, TargetRows] = {}
        takers: list[TeacherRows | ExactRows | BeamRows | CompiledRows] = []
        for product in docs[0].views:
            views = [d.views[product] for d in docs]
            if product == HIDDEN:
                rows[product] = HiddenStates([v.ids for v in views], hidden_ND.shape[1])
                continue
            rows[product] = out = self._rows(product, docs)
            if product in self.exact:
                exact = [v.exact for v in views if v.exact is not None]
                takers.append(ExactRows(product, self.exact[product], group, exact, out))
            elif product in self.compiled:
                students = [v.student for v in views if v.student is not None]
                takers.append(CompiledRows(product, self.compiled[product], group, students, out))
                if any(student.slow for student in students):
                    slow = [student.slow for student in students]
                    takers.append(BeamRows(product, self.fast[product], group, slow, out))
            elif product in self.fast:
                boundaries = [dict(enumerate(v.boundaries)) for v in views if v.boundaries is not None]
                takers.append(BeamRows(product, self.fast[product], group, boundaries, out))
            else:
                statistics = self.statistics if product == TEACHER else None
                taker = TeacherRows(product, group, out, self.joined.get(product), statistics)
                takers.append(taker)
                if statistics is not None:
                    measured = taker.row_of >= 0
        softmax = Softmax(group, self.real, noncanonical=self.noncanonical, masked=self.masked, measured=measured)
        for chunk in softmax.run(hidden_ND, logits):
            for taker in takers:
                with self.guard if isinstance(taker, BeamRows) else nullcontext():
                    taker.take(chunk)
        if isinstance(states := rows.get(HIDDEN), HiddenStates):
            states.put(group, hidden_ND)
        return rows

    def _rows(self, product: str, docs: list[Passage]) -> TargetRows:
        """All positions of a product, unscored, as its codec keeps them."""
        golds = [np.asarray(d.views[product].ids) for d in docs]
        if product not in self.draws:
            rows = TopK(golds, self.top_k[product])
            if product == TEACHER and self.statistics is not None:
                rows.statistics = {name: np.full(len(rows.gold), fill) for name, fill in FILLS.items()}
            return rows
        name = zlib.crc32(product.encode())
        keys = [row_keys(key_of(self.seed, name, *d.place), len(gold)) for d, gold in zip(docs, golds, strict=True)]
        return Sample(golds, self.draws[product], np.concatenate([np.empty(0, np.uint64), *keys]))
