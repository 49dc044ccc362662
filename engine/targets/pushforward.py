"""Masses of teacher tokens at a batch of boundaries in, masses of student tokens out, with a certificate of what is not certain.

For a boundary, every leaf (context c, teacher token t) has mass w(c) p(t | c) (definition 6). The student's target is the
push-forward of that mass through the rule "t begins student token v here" (definition 7), conditioned on the student having a
boundary here at all:

    q(v) = sum of the leaves that begin v / sum of the leaves that begin anything     (excluded leaves in neither)

Leaves that are open are closed as if a boundary followed. With A = decided, U = open, R = pruned mass (definition 8), the true
q(v) and the one stored both lie in an interval of width (U + R) / (A + U + R) (definition 9, lemma 10). All sums are float64.

Letters: J boundaries of one chunk, R rows of teacher probabilities [R, Vt], Vs student ids, C of them that can have mass, G
leaves of one large rule (context at boundary).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.alignment.boundaries import Boundary
from engine.alignment.rules import JOIN, Rule, RuleBook
from schemas.errors import IdentityError

_DENSE = 2048  # rules over more tokens than this are scattered row by row, smaller ones all in one flat scatter
_SLACK = 1e-6


@dataclass(slots=True)
class Job:
    """One boundary ready for the push-forward. Weights are relative to the heaviest context of the boundary: only ratios count.

    leaves: (row of probabilities, weight, rule) of each context that has tokens reaching past the boundary; the rule says for
    each such token which student token it begins. at: (row, weight) of contexts that end here, whose specials count. pruned:
    bound of the mass in contexts that were not evaluated (R of definition 8), on the scale of the weights. skip: row -> tokens
    whose leaves the beam has split; extra: what it has put in their place, as arrays (student id or -1 for excluded, mass,
    whether open). noncanonical: mass, on the same scale, of the contexts that end here on tokens that no text has there;
    carried for the row.
    """

    leaves: list[tuple[int, float, Rule]]
    at: list[tuple[int, float]]
    pruned: float
    boundary: Boundary
    skip: dict[int, list[int]] = field(default_factory=dict)
    extra: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    noncanonical: float = 0.0


@dataclass(frozen=True, slots=True)
class StudentMass:
    """The masses of definition 8 for J boundaries.

    mass: float64 [J, C], unnormalised q: mass of the leaves that begin each student token, open ones as closed. ids: int64 [C],
    rising, the student ids of the columns; no other id has mass.
    float64 [J] each: valid = mass.sum(1); excluded, leaves that begin nothing and specials; open, U, of valid and excluded alike;
    decided, A, the part of valid that no continuation can move (lemma 9); pruned, R. valid + excluded = all live mass.
    """

    mass: torch.Tensor
    ids: np.ndarray
    valid: np.ndarray
    excluded: np.ndarray
    open: np.ndarray
    decided: np.ndarray
    pruned: np.ndarray


@dataclass(frozen=True, eq=False)
class _Columns:
    """A large rule over all teacher ids: where each id's mass goes. Vs = excluded, Vs + 1 = not in this pass.

    cut, join, join_decided: int64 [Vt]; the latter two None when no token joins. columns: float64 [Vt, 3] of 0 and 1:
    open, decided by CUT, in the rule at all.
    """

    cut: torch.Tensor
    join: torch.Tensor | None
    join_decided: torch.Tensor | None
    columns: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Flat:
    """All leaves of small rules, one after another. job, row, sizes: int64 [leaves], a leaf being a context with its rule;
    token, first (-1: excluded), open, weight: [sum of sizes]."""

    job: np.ndarray
    row: np.ndarray
    sizes: np.ndarray
    token: np.ndarray
    first: np.ndarray
    open: np.ndarray
    weight: np.ndarray


class PushForward:
    """The push-forward to one student. Not thread-safe (it remembers rules as vectors on the device).

    teacher_rows: Vt. end_ids: teacher ids that end a text; special_ids: all specials. tolerance: width that the beam was to
    reach; None where nothing is spent on it.
    """

    def __init__(
        self,
        book: RuleBook,
        *,
        teacher_rows: int,
        end_ids: tuple[int, ...],
        special_ids: list[int],
        device: torch.device,
        tolerance: float | None = None,
    ) -> None:
        self.book, self.device, self.tolerance = book, device, tolerance
        self.teacher_rows, self.student_size = teacher_rows, book.student.size
        self.end_id = book.student.eos_id
        self.end_ids = torch.tensor(end_ids, dtype=torch.long, device=device)
        self.other_ids = torch.tensor([i for i in special_ids if i not in end_ids], dtype=torch.long, device=device)

    def push(self, prob_RV: torch.Tensor, jobs: list[Job], where: str) -> StudentMass:
        """Masses of all jobs. prob_RV: float64 [R, Vt], rows sum to 1. where: the product, for messages.

        Raises IdentityError when mass is lost or made: live mass is summed leaf by leaf, in another way than what it becomes.
        """
        large: dict[int, list[tuple[int, int, float, Rule]]] = {}
        small: list[tuple[int, int, float, Rule]] = []
        for index, job in enumerate(jobs):
            for row, weight, rule in job.leaves:
                if len(rule.tokens) > _DENSE:
                    large.setdefault(id(rule), []).append((index, row, weight, rule))
                elif len(rule.tokens):
                    small.append((index, row, weight, rule))
        flat = self._flatten(small, jobs)
        # a large rule reaches much of the vocabulary; without one, few columns hold all the mass
        ids = np.arange(self.student_size) if large else self._reached(flat, jobs)
        column = np.full(self.student_size + 1, len(ids))
        column[ids] = np.arange(len(ids))
        mass = torch.zeros((len(jobs), len(ids)), dtype=torch.float64, device=self.device)
        sums = torch.zeros((len(jobs), 4), dtype=torch.float64, device=self.device)  # excluded, open, decided, live
        for group in large.values():
            self._push_large(prob_RV, group, jobs, mass, sums)
        if small:
            self._push_small(prob_RV, flat, column, mass, sums)
        self._push_extras(jobs, column, mass, sums)
        self._push_specials(prob_RV, jobs, column, mass, sums)
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
        return StudentMass(mass, ids, valid, totals[:, 0], totals[:, 1], totals[:, 2], pruned)

    def _push_large(self, prob_RV: torch.Tensor, group: list[tuple[int, int, float, Rule]], jobs, mass, sums) -> None:
        """Leaves of one rule over much of the vocabulary: whole rows [G, Vt] scattered by student token."""
        rule = self._columns(group[0][3])
        where = torch.tensor([g[0] for g in group], device=self.device)
        rows = torch.tensor([g[1] for g in group], device=self.device)
        weight = torch.tensor([g[2] for g in group], dtype=torch.float64, device=self.device)
        part_GV = prob_RV[rows] * weight[:, None]
        split = [(g, t) for g, (index, row, _, _) in enumerate(group) for t in jobs[index].skip.get(row, ())]
        if split:
            part_GV[[g for g, _ in split], [t for _, t in split]] = 0.0
        got = self._scatter(part_GV, rule.cut)  # CUT and NONE do not depend on the last student token, JOIN does
        open_, decided, live = (part_GV @ rule.columns).T
        if rule.join is not None:
            illegal = self._illegal_cells([jobs[g[0]].boundary.last for g in group])
            joined = self._scatter(part_GV, rule.join)
            got[:, -2] += self._blank(joined, illegal)  # definition 7: NONE unless (last student token, v) is canonical
            got += joined
            if rule.join_decided is not None:
                joined = self._scatter(part_GV, rule.join_decided)
                self._blank(joined, illegal)
                decided = decided + joined[:, :-2].sum(1)
        mass.index_add_(0, where, got[:, :-2])
        sums.index_add_(0, where, torch.stack([got[:, -2], open_, decided, live], dim=1))

    def _scatter(self, part_GV: torch.Tensor, target_V: torch.Tensor) -> torch.Tensor:
        """[G, Vs + 2] sums of part_GV by target. (A sparse matrix product does the same eight times slower on a CPU.)"""
        out = torch.zeros((len(part_GV), self.student_size + 2), dtype=torch.float64, device=self.device)
        return out.scatter_add_(1, target_V.expand(len(part_GV), -1), part_GV)

    def _illegal_cells(self, last: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(row, student id) of the pairs that lemma 2 forbids after each row's last student token."""
        illegal = [self.book.merges.illegal_after(token) for token in last]
        row = np.repeat(np.arange(len(last)), [len(i) for i in illegal])
        return torch.from_numpy(row).to(self.device), torch.from_numpy(np.concatenate(illegal).astype(np.int64)).to(
            self.device
        )

    def _blank(self, joined: torch.Tensor, cells: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Take non-canonical pairs out; returns what was taken, per row."""
        removed = torch.zeros(len(joined), dtype=torch.float64, device=self.device)
        removed.index_add_(0, cells[0], joined[cells])
        joined[cells] = 0.0
        return removed

    def _columns(self, rule: Rule) -> _Columns:
        """A large rule as vectors over all teacher ids, made once and kept with the rule."""
        known = rule.view(_Columns)
        if known is None:
            valid, join = rule.first >= 0, (rule.first >= 0) & (rule.action == JOIN)
            columns = np.zeros((self.teacher_rows, 3))
            columns[rule.tokens, 0] = rule.open
            columns[rule.tokens, 1] = valid & ~join & ~rule.open
            columns[rule.tokens, 2] = 1.0
            excluded, elsewhere = self.student_size, self.student_size + 1

            def targets(chosen: np.ndarray) -> torch.Tensor:
                out = np.full(self.teacher_rows, elsewhere, dtype=np.int64)
                out[rule.tokens[chosen]] = np.where(valid, rule.first, excluded)[chosen]
                return torch.from_numpy(out).to(self.device)

            decided = join & ~rule.open
            known = rule.keep(
                _Columns(
                    cut=targets(~join),
                    join=targets(join) if join.any() else None,
                    join_decided=targets(decided) if decided.any() else None,
                    columns=torch.from_numpy(columns).to(self.device),
                )
            )
        return known

    def _flatten(self, small: list[tuple[int, int, float, Rule]], jobs: list[Job]) -> _Flat:
        """Small leaves one after another. first is -1 for excluded: as an index that is the last place of an array."""
        parts = [self.book.resolved(rule, jobs[index].boundary.last) for index, _, _, rule in small]
        sizes = np.array([len(p[0]) for p in parts], dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        weight = np.repeat([s[2] for s in small], sizes)
        gone = [
            start + self.book.place_of(rule, token)
            for start, (index, row, _, rule) in zip(starts.tolist(), small, strict=True)
            for token in jobs[index].skip.get(row, ())
        ]
        weight[gone] = 0.0
        empty = np.empty(0, np.int64)
        return _Flat(
            job=np.array([s[0] for s in small], dtype=np.int64),
            row=np.array([s[1] for s in small], dtype=np.int64),
            sizes=sizes,
            token=np.concatenate([empty, *(p[0] for p in parts)]),
            first=np.concatenate([empty, *(p[1] for p in parts)]),
            open=np.concatenate([empty, *(p[2] for p in parts)]),
            weight=weight,
        )

    def _reached(self, flat: _Flat, jobs: list[Job]) -> np.ndarray:
        """int64 [C], rising: all student ids that these leaves and specials may give mass to."""
        mark = np.zeros(self.student_size + 1, bool)
        mark[flat.first] = True
        for job in jobs:
            if job.extra is not None:
                mark[job.extra[0]] = True
        if self.end_id is not None:
            mark[self.end_id] = True
        return np.flatnonzero(mark[:-1])

    def _push_small(self, prob_RV: torch.Tensor, flat: _Flat, column: np.ndarray, mass, sums) -> None:
        """One sum over all leaves into cells [J, decided or open, C + 1], the last column for what is excluded."""
        j, c = mass.shape
        cell = np.repeat(flat.job * (2 * (c + 1)), flat.sizes)
        cell += flat.open * (c + 1)
        cell += column[flat.first]
        source = np.repeat(flat.row * prob_RV.shape[1], flat.sizes)
        source += flat.token
        on = [torch.from_numpy(a).to(self.device) for a in (cell, source, flat.weight, flat.job, flat.sizes)]
        cell, source, weight, job, sizes = on
        # index_select, not prob.view(-1)[source]: on a CPU the latter is handed to threads, which costs more than it takes
        value = prob_RV.reshape(-1).index_select(0, source).mul_(weight)
        cells = torch.zeros(j * 2 * (c + 1), dtype=torch.float64, device=self.device).index_add_(0, cell, value)
        decided, open_ = cells.view(j, 2, c + 1).unbind(1)
        mass += decided[:, :-1]
        mass += open_[:, :-1]
        sums[:, 0] += decided[:, -1] + open_[:, -1]
        sums[:, 1] += open_.sum(1)
        sums[:, 2] += decided[:, :-1].sum(1)
        sums[:, 3].index_add_(0, job, torch.segment_reduce(value, "sum", lengths=sizes))  # leaf by leaf: the other way

    def _push_extras(self, jobs: list[Job], column: np.ndarray, mass, sums) -> None:
        """What stands for leaves that were split (definition 13, lemma 16), as flat arrays."""
        extras = [(index, *job.extra) for index, job in enumerate(jobs) if job.extra is not None]
        if not extras:
            return
        flat = [np.repeat([e[0] for e in extras], [len(e[1]) for e in extras])]
        flat += [np.concatenate([e[column] for e in extras]) for column in (1, 2, 3)]
        flat[1] = column[flat[1]]  # excluded: the last place, which is past the end of a row
        where, first, value, open_ = (torch.from_numpy(a).to(self.device) for a in flat)
        begins = first < mass.shape[1]
        mass.view(-1).index_add_(0, (where * mass.shape[1] + first)[begins], value[begins])
        for share, choose in enumerate((~begins, open_, begins & ~open_)):
            sums[:, share].index_add_(0, where[choose], value[choose])
        sums[:, 3].index_add_(0, where, value)

    def _push_specials(self, prob_RV: torch.Tensor, jobs: list[Job], column: np.ndarray, mass, sums) -> None:
        """Specials are not text: "end" is the student's end token, the others are excluded. All of this is certain."""
        flat = [(index, row, weight) for index, job in enumerate(jobs) for row, weight in job.at]
        if not flat:
            return
        where = torch.tensor([f[0] for f in flat], device=self.device)
        rows = torch.tensor([f[1] for f in flat], device=self.device)
        weight = torch.tensor([f[2] for f in flat], dtype=torch.float64, device=self.device)
        end = prob_RV[rows[:, None], self.end_ids].sum(1) * weight
        other = prob_RV[rows[:, None], self.other_ids].sum(1) * weight
        counts = torch.tensor(
            [jobs[f[0]].boundary.end_counts and self.end_id is not None for f in flat], device=self.device
        )
        kept = torch.where(counts, end, torch.zeros_like(end))
        if self.end_id is not None:
            mass[:, column[self.end_id]].index_add_(0, where, kept)
        sums[:, 0].index_add_(0, where, other + end - kept)
        sums[:, 2].index_add_(0, where, kept)
        sums[:, 3].index_add_(0, where, other + end)
