"""Rows over the teacher's own tokens: its distributions along the text, statistics beside them, and its hidden states.

Letters: R contexts of a chunk, Vt teacher ids, N positions of a group, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.bpe.vocabulary import Vocabulary
from engine.targets.positions import TargetRows, taken
from engine.teacher.group import Group
from engine.teacher.softmax import Chunk, row_sums
from schemas.target import FLAG_EXACT, FLAG_NO_MASS

_WHITE_SPACE = b" \t\n\v\f\r"

FILLS = {"logz": 0.0, "entropy": 0.0, "logit_std": 0.0, "logz_scaled": 0.0, "space_logp": -np.inf, "end_logp": -np.inf}
"""The statistics of a row, and what they are where it is unscored."""


@dataclass(frozen=True, slots=True)
class JoinedEnds:
    """The teacher's ends as one event. ids: its ids that end a turn; end_id: the one of them (or another special) that stands
    for all."""

    ids: list[int]
    end_id: int

    def joined(self, prob: torch.Tensor) -> torch.Tensor:
        """A copy of probability rows [R, Vt] with the mass of all ends on one id."""
        out = prob.clone()
        out[:, self.ids] = 0.0
        # += : end_id may be a special that is no end of the teacher and has mass itself
        out[:, self.end_id] += prob[:, self.ids].sum(1)
        return out


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is said of each row beside its distribution. space, end: bool [Vt], the tokens that begin with white space or are
    special, and those that end a text or turn."""

    space: torch.Tensor
    end: torch.Tensor

    @classmethod
    def make(cls, vocabulary: Vocabulary, end_ids: Sequence[int], device: torch.device) -> Statistics:
        """From the teacher's vocabulary and the ids of its ends that are special."""
        known = enumerate(vocabulary.token_bytes)
        space = [i in vocabulary.specials or (b is not None and b[:1] in _WHITE_SPACE and b != b"") for i, b in known]
        end = torch.zeros(len(space), dtype=torch.bool, device=device)
        end[list(end_ids)] = True
        return cls(torch.tensor(space, device=device), end)

    def of(self, prob_RV: torch.Tensor) -> dict[str, np.ndarray]:
        """entropy, space_logp, end_logp of rows that sum to 1, float64 [R]. Nats."""
        space = prob_RV[:, self.space].sum(1, dtype=torch.float64)
        end = prob_RV[:, self.end].sum(1, dtype=torch.float64)
        entropy = torch.special.entr(prob_RV).sum(1, dtype=torch.float64)
        found = {"entropy": entropy, "space_logp": space.log(), "end_logp": end.log()}
        return {name: values.cpu().numpy() for name, values in found.items()}


def trunk_rows(group: Group, start: Sequence[int]) -> np.ndarray:
    """The position that each context of a group predicts on the documents' own tokens, int64 [contexts]; -1: none.
    start: first position of each document, and the end."""
    row_of = np.full(group.size, -1, np.int64)
    for i, tree in enumerate(passage.tree for passage in group.passages):
        trunk = np.asarray(tree.trunk, np.int64)
        first = np.asarray(tree.parent, np.int64)[trunk[:1]] if len(trunk) else np.array([tree.given])
        before = np.concatenate([first, trunk])  # of each token and the end
        count = start[i + 1] - start[i]
        here = before[:count] >= 0
        row_of[group.first_node[i] + before[:count][here]] = start[i] + np.flatnonzero(here)
    return row_of


class TeacherRows:
    """The teacher's own distributions along the trunk: exact, err = 0, because the context is the text's own tokens. joined:
    its ends as one event; statistics: of each row, None where they are not stored."""

    def __init__(
        self,
        product: str,
        group: Group,
        rows: TargetRows,
        joined: JoinedEnds | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self.product, self.group, self.rows = product, group, rows
        self.joined, self.statistics = joined, statistics
        self.row_of = trunk_rows(group, rows.start)

    def take(self, chunk: Chunk) -> None:
        """Write the positions that this chunk's contexts predict."""
        group, rows = self.group, self.rows
        fine = group.is_good(group.passage_of[chunk.nodes])
        mass = row_sums(chunk.prob).cpu().numpy()
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
        rows.noncanonical_mass[at] = group.weights.noncanonical[nodes]
        rows.flags[at] = FLAG_EXACT
        if self.statistics is not None:
            found = self.statistics.of(prob) | {
                name: values[nodes] for name, values in group.weights.logit_measures.items()
            }
            for name, values in found.items():
                rows.statistics[name][at] = values


class HiddenStates(TargetRows):
    """The state that predicts each of the teacher's tokens. bits: uint16 [N, D], bfloat16; 0 where unscored."""

    def __init__(self, golds: Sequence[np.ndarray], size: int) -> None:
        super().__init__(golds)
        self.bits = np.zeros((len(self.gold), size), np.uint16)

    def put(self, group: Group, hidden_ND: torch.Tensor) -> None:
        """Keep the states of the trunk of all good documents, rounded to bfloat16 (to nearest)."""
        row_of = trunk_rows(group, self.start)
        nodes = np.flatnonzero((row_of >= 0) & group.is_good(group.passage_of) & group.evaluated)
        at = row_of[nodes]
        states = hidden_ND[torch.from_numpy(nodes).to(hidden_ND.device)].to(torch.bfloat16)
        self.bits[at] = states.view(torch.int16).cpu().numpy().view(np.uint16)
        self.scored[at] = True
        self.flags[at] = FLAG_EXACT

    def columns(self, place_P: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """hidden."""
        return {"hidden": (taken(self.bits, place_P, 0).ravel(), np.full(len(place_P), self.bits.shape[1]))}
