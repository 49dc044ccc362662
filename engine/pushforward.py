"""Stage 8: teacher probabilities at contexts -> student probabilities at boundaries (docs/design.md, section 4).

For a boundary, every leaf (context c, teacher token t) has mass w(c) p(t | c). The student's target is the push-forward of
that mass through the rule "t begins student token v here", conditioned on the student having a boundary here at all:

    q(v) = sum of the leaves that begin v / sum of the leaves that begin anything     (excluded leaves in neither)

Leaves that are open are closed as if a boundary followed. With A = decided, U = open, R = pruned mass the truth lies within
a certified width of (U + R) / (A + U + R) around it (definition 9). All sums are float64.

Letters: J boundaries of one chunk, P rows of teacher probabilities [R, Vt], Vs student ids, K = top_k.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.boundaries import Boundary
from engine.rules import CUT, JOIN, Rule, RuleBook
from schemas.errors import IdentityError

_DENSE = 2048  # rules over more tokens than this go through a sparse matrix, smaller ones through one flat scatter
_SLACK = 1e-6


@dataclass(slots=True)
class Job:
    """One boundary ready for the push-forward: rows of P and relative weights of its contexts.

    leaves: (row, weight, rule). at: (row, weight) of contexts that end here. pruned: mass bound, same scale as weights.
    skip: row -> tokens whose leaves are split further by `inner` contexts (row, weight, first token if the text ends there).
    """

    leaves: list[tuple[int, float, Rule]]
    at: list[tuple[int, float]]
    pruned: float
    boundary: Boundary
    skip: dict[int, list[int]] = field(default_factory=dict)
    inner: list[tuple[int, float, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pushed:
    """q [J, Vs] unnormalised float64 (sum = valid mass), and per boundary float64 [J]: valid, excluded, open, decided, pruned.

    valid + excluded = all live mass; decided is the part of valid that no continuation can move.
    """

    mass: torch.Tensor
    valid: np.ndarray
    excluded: np.ndarray
    open: np.ndarray
    decided: np.ndarray
    pruned: np.ndarray


@dataclass(frozen=True, eq=False)
class _Dense:
    """A large rule as sparse 0/1 matrices [Vs, Vt] and 0/1 vectors [Vt]."""

    cut: torch.Tensor
    join: torch.Tensor | None
    join_decided: torch.Tensor | None
    columns: torch.Tensor  # float64 [Vt, 4]: excluded by kind, open, decided by CUT, in the rule at all


class PushForward:
    """The push-forward to one student. Not thread-safe (it remembers rules as matrices)."""

    def __init__(
        self, book: RuleBook, *, teacher_rows: int, end_ids: tuple[int, ...], special_ids: list[int], device: torch.device
    ) -> None:
        self.book, self.device = book, device
        self.teacher_rows, self.student_size = teacher_rows, book.student.size
        self.end_id = book.student.eos_id
        self.end_ids = torch.tensor(end_ids, dtype=torch.long, device=device)
        self.other_ids = torch.tensor([i for i in special_ids if i not in end_ids], dtype=torch.long, device=device)

    def push(self, prob_RV: torch.Tensor, jobs: list[Job], where: str) -> Pushed:
        """prob_RV: float64 [R, Vt], rows sum to 1. Raises IdentityError when mass is lost or made."""
        j = len(jobs)
        mass = torch.zeros((j, self.student_size), dtype=torch.float64, device=self.device)
        sums = torch.zeros((j, 4), dtype=torch.float64, device=self.device)  # excluded, open, decided, live
        large: dict[int, list[tuple[int, int, float, Rule]]] = {}
        small: list[tuple[int, int, float, Rule]] = []
        for index, job in enumerate(jobs):
            for row, weight, rule in job.leaves:
                if len(rule.tokens) > _DENSE:
                    large.setdefault(id(rule), []).append((index, row, weight, rule))
                elif len(rule.tokens):
                    small.append((index, row, weight, rule))
        for group in large.values():
            self._push_large(prob_RV, group, jobs, mass, sums)
        if small:
            self._push_small(prob_RV, small, jobs, mass, sums)
        self._push_specials(prob_RV, jobs, mass, sums)
        totals = sums.cpu().numpy()
        valid = mass.sum(1).cpu().numpy()
        lost = np.abs(valid + totals[:, 0] - totals[:, 3])
        if not (lost <= _SLACK * np.maximum(totals[:, 3], 1e-300)).all() or not (valid >= 0).all():
            worst = int(np.nanargmax(np.where(np.isnan(lost), np.inf, lost)))
            raise IdentityError(
                f"push-forward of {where}, boundary at byte {jobs[worst].boundary.place}: valid {valid[worst]:.17g} + excluded "
                f"{totals[worst, 0]:.17g} != live {totals[worst, 3]:.17g}; want equality to {_SLACK}"
            )
        pruned = np.array([job.pruned for job in jobs])
        return Pushed(mass, valid, totals[:, 0], totals[:, 1], totals[:, 2], pruned)

    def _push_large(self, prob_RV: torch.Tensor, group: list[tuple[int, int, float, Rule]], jobs, mass, sums) -> None:
        dense = self._matrix(group[0][3])
        where = torch.tensor([g[0] for g in group], device=self.device)
        rows = torch.tensor([g[1] for g in group], device=self.device)
        weight = torch.tensor([g[2] for g in group], dtype=torch.float64, device=self.device)
        part_VG = (prob_RV[rows] * weight[:, None]).T.contiguous()
        split = [(t, g) for g, (index, row, _, _) in enumerate(group) for t in jobs[index].skip.get(row, ())]
        if split:
            part_VG[[t for t, _ in split], [g for _, g in split]] = 0.0
        got = dense.cut @ part_VG
        four = part_VG.T @ dense.columns
        if dense.join is not None:
            last = [jobs[g[0]].boundary.last for g in group]
            flat = self._illegal_cells(last, len(group))
            joined = dense.join @ part_VG
            four[:, 0] += self._blank(joined, flat)
            got += joined
            if dense.join_decided is not None:
                decided = dense.join_decided @ part_VG
                self._blank(decided, flat)
                four[:, 2] += decided.sum(0)
        mass.index_add_(0, where, got.T.contiguous())
        sums.index_add_(0, where, four)

    def _illegal_cells(self, last: list[int], count: int) -> torch.Tensor:
        cells = [self.book.merges.illegal_after(token) * count + g for g, token in enumerate(last) if token >= 0]
        return torch.from_numpy(np.concatenate(cells) if cells else np.empty(0, np.int64)).to(self.device)

    def _blank(self, joined_VG: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Take non-canonical pairs out of [Vs, G]; returns what was taken, per column."""
        flat = joined_VG.view(-1)
        removed = torch.zeros(joined_VG.shape[1], dtype=torch.float64, device=self.device)
        removed.index_add_(0, cells % joined_VG.shape[1], flat[cells])
        flat[cells] = 0.0
        return removed

    def _matrix(self, rule: Rule) -> _Dense:
        known = rule.derived.get(_Dense)
        if known is None:
            valid = rule.first >= 0
            cut, join = valid & (rule.kind == CUT), valid & (rule.kind == JOIN)
            columns = np.zeros((self.teacher_rows, 4))
            columns[rule.tokens, 0] = ~valid
            columns[rule.tokens, 1] = rule.open
            columns[rule.tokens, 2] = cut & ~rule.open
            columns[rule.tokens, 3] = 1.0
            known = rule.derived[_Dense] = _Dense(
                cut=self._sparse(rule, cut),
                join=self._sparse(rule, join) if join.any() else None,
                join_decided=self._sparse(rule, join & ~rule.open) if (join & ~rule.open).any() else None,
                columns=torch.from_numpy(columns).to(self.device),
            )
        return known

    def _sparse(self, rule: Rule, keep: np.ndarray) -> torch.Tensor:
        first, token = rule.first[keep], rule.tokens[keep]
        order = np.argsort(first * self.teacher_rows + token)
        start = np.searchsorted(first[order], np.arange(self.student_size + 1))
        return torch.sparse_csr_tensor(
            torch.from_numpy(start),
            torch.from_numpy(token[order]),
            torch.ones(len(order), dtype=torch.float64),
            size=(self.student_size, self.teacher_rows),
        ).to(self.device)

    def _push_small(self, prob_RV: torch.Tensor, small: list[tuple[int, int, float, Rule]], jobs, mass, sums) -> None:
        parts = [self.book.resolved(rule, jobs[index].boundary.last) for index, _, _, rule in small]
        sizes = np.array([len(p[0]) for p in parts])
        flat = {
            "where": np.repeat([s[0] for s in small], sizes),
            "row": np.repeat([s[1] for s in small], sizes),
            "token": np.concatenate([p[0] for p in parts]),
            "first": np.concatenate([p[1] for p in parts]),
            "open": np.concatenate([p[2] for p in parts]),
        }
        on = {name: torch.from_numpy(values).to(self.device) for name, values in flat.items()}
        scale = np.repeat([s[2] for s in small], sizes)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        for at, (index, row, _, _) in enumerate(small):
            if split := jobs[index].skip.get(row):
                span = slice(starts[at], starts[at + 1])
                scale[span][np.isin(flat["token"][span], split)] = 0.0
        weight = torch.from_numpy(scale).to(self.device)
        value = prob_RV[on["row"], on["token"]] * weight
        begins = on["first"] >= 0
        mass.view(-1).index_add_(0, (on["where"] * self.student_size + on["first"])[begins], value[begins])
        for column, choose in enumerate((~begins, on["open"], begins & ~on["open"])):
            sums[:, column].index_add_(0, on["where"][choose], value[choose])
        sums[:, 3].index_add_(0, on["where"], value)

    def _push_specials(self, prob_RV: torch.Tensor, jobs: list[Job], mass: torch.Tensor, sums: torch.Tensor) -> None:
        """Specials are not text: at the boundary "end" is the student's end token and the others are excluded; past it they
        end the text there, so the first token is the closed one. All of this is certain."""
        inner = [(index, row, w, first) for index, job in enumerate(jobs) for row, w, first in job.inner]
        if inner:
            where = torch.tensor([f[0] for f in inner], device=self.device)
            rows = torch.tensor([f[1] for f in inner], device=self.device)
            value = prob_RV[rows[:, None], torch.cat([self.end_ids, self.other_ids])].sum(1)
            value = value * torch.tensor([f[2] for f in inner], dtype=torch.float64, device=self.device)
            first = torch.tensor([f[3] for f in inner], device=self.device)
            kept = first >= 0
            mass.view(-1).index_add_(0, (where * self.student_size + first)[kept], value[kept])
            for column, choose in ((0, ~kept), (2, kept)):
                sums[:, column].index_add_(0, where[choose], value[choose])
            sums[:, 3].index_add_(0, where, value)
        flat = [(index, row, weight) for index, job in enumerate(jobs) for row, weight in job.at]
        if not flat:
            return
        where = torch.tensor([f[0] for f in flat], device=self.device)
        rows = torch.tensor([f[1] for f in flat], device=self.device)
        weight = torch.tensor([f[2] for f in flat], dtype=torch.float64, device=self.device)
        end = prob_RV[rows[:, None], self.end_ids].sum(1) * weight
        other = prob_RV[rows[:, None], self.other_ids].sum(1) * weight
        counts = torch.tensor([jobs[f[0]].boundary.end_counts and self.end_id is not None for f in flat], device=self.device)
        kept = torch.where(counts, end, torch.zeros_like(end))
        if self.end_id is not None:
            mass[:, self.end_id].index_add_(0, where, kept)
        sums[:, 0].index_add_(0, where, other + end - kept)
        sums[:, 2].index_add_(0, where, kept)
        sums[:, 3].index_add_(0, where, other + end)
