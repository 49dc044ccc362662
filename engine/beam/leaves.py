"""The open leaves of every boundary, and how much mass each context brings there.

In: one chunk after another of the contexts' next-token probabilities. Out: for each context and each boundary that it serves:
the mass that begins a student token there, and the heaviest leaves whose student token is still open.

Letters: G uses of one rule in a chunk, Vt teacher ids, K leaves kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.alignment.boundaries import Boundary
from engine.alignment.rules import Rule, RuleBook
from engine.alignment.token_range import JOIN

_DENSE = 2048  # as in engine/targets/pushforward.py: larger rules are read as whole rows


@dataclass(frozen=True, slots=True)
class Use:
    """A context at a boundary. valid: share of its next-token mass that begins some student token there; open: share of leaves
    whose student token is not certain. tokens: int64 [K], prob: float64 [K], the heaviest of these open leaves, none when K =
    0."""

    node: int
    valid: float
    open: float
    tokens: np.ndarray
    prob: np.ndarray


@dataclass(frozen=True, slots=True)
class OpenMasks:
    """A rule over all teacher ids: float64 [Vt] of 0 and 1 where it is open, and where it begins a student token; whether
    any of its tokens joins."""

    open_V: torch.Tensor
    valid_V: torch.Tensor
    joins: bool


class LeafFinder:
    """Finds the open leaves for one student. top: K; least: leaves below this share of a context's mass are not listed."""

    def __init__(self, book: RuleBook, size: int, device: torch.device, *, top: int, least: float) -> None:
        self.book, self.size, self.device, self.top, self.least = book, size, device, top, least

    def find(self, prob_RV: torch.Tensor, uses: list[tuple[int, int, Boundary, Rule]]) -> list[Use]:
        """prob_RV: [R, >= Vt], rows of next-token probabilities. uses: (row, node, boundary, rule) of each context at each
        boundary that it serves. One `Use` for each, in order."""
        out: list[Use | None] = [None] * len(uses)
        large: dict[int, list[int]] = {}
        small: list[int] = []
        for at, (_, _, _, rule) in enumerate(uses):
            if len(rule.tokens) > _DENSE:
                large.setdefault(id(rule), []).append(at)
            else:
                small.append(at)
        for group in large.values():
            self._large(prob_RV, uses, group, out)
        self._small(prob_RV, uses, small, out)
        return [u for u in out if u is not None]

    def _large(self, prob_RV: torch.Tensor, uses: list, group: list[int], out: list[Use | None]) -> None:
        """Uses of one rule over much of the vocabulary: whole rows against the rule as vectors over Vt."""
        rule: Rule = uses[group[0]][3]
        masks = self._masks(rule)
        open_V, valid_V, join = masks.open_V, masks.valid_V, masks.joins
        part = prob_RV[torch.tensor([uses[at][0] for at in group], device=self.device), : self.size].double()
        valid = (part @ valid_V).cpu().numpy()
        if join:  # a JOIN begins nothing where the pair (last student token, v) is not canonical (definition 7)
            for g, at in enumerate(group):
                illegal = self._illegal(rule, uses[at][2].last)
                valid[g] -= float(part[g, illegal].sum())
        part *= open_V
        open_ = part.sum(1).cpu().numpy()
        best = torch.topk(part, min(self.top, self.size), dim=1)
        ids, value = best.indices.cpu().numpy(), best.values.cpu().numpy()
        for g, at in enumerate(group):
            keep = value[g] > self.least
            out[at] = Use(uses[at][1], float(valid[g]), float(open_[g]), ids[g][keep], value[g][keep])

    def _small(self, prob_RV: torch.Tensor, uses: list, group: list[int], out: list[Use | None]) -> None:
        """Uses of rules over few tokens: all of their leaves gathered at once."""
        if not group:
            return
        parts = [self.book.resolved(uses[at][3], uses[at][2].last) for at in group]
        sizes = np.array([len(p[0]) for p in parts])
        row = torch.from_numpy(np.repeat([uses[at][0] for at in group], sizes)).to(self.device)
        token = torch.from_numpy(np.concatenate([p[0] for p in parts])).to(self.device)
        flat = prob_RV[row, token].double().cpu().numpy()
        for at, (tokens, first, open_, _), values in zip(
            group, parts, np.split(flat, np.cumsum(sizes)[:-1]), strict=True
        ):
            listed = np.flatnonzero(open_ & (values > self.least))
            if len(listed) > self.top:
                listed = listed[np.argsort(-values[listed], kind="stable")[: self.top]]
            valid = float(values[first >= 0].sum())
            out[at] = Use(uses[at][1], valid, float(values[open_].sum()), tokens[listed], values[listed])

    def _masks(self, rule: Rule) -> OpenMasks:
        """A rule as vectors over Vt, made once for a rule."""
        known = rule.view(OpenMasks)
        if known is None:
            open_, valid = (np.zeros(self.size) for _ in range(2))
            open_[rule.tokens[rule.open]] = 1.0
            valid[rule.tokens[rule.first >= 0]] = 1.0
            join = bool(((rule.first >= 0) & (rule.action == JOIN)).any())
            open_V, valid_V = torch.from_numpy(open_).to(self.device), torch.from_numpy(valid).to(self.device)
            known = rule.keep(OpenMasks(open_V, valid_V, join))
        return known

    def _illegal(self, rule: Rule, last: int) -> torch.Tensor:
        """Teacher ids whose student token may not follow `last` inside a pre-token (lemma 2)."""
        bad = np.zeros(self.book.student.size, bool)
        bad[self.book.merges.illegal_after(last)] = True
        join = (rule.first >= 0) & (rule.action == JOIN)
        return torch.from_numpy(rule.tokens[join][bad[rule.first[join]]]).to(self.device)
