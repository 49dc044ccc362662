"""Stage 9c: masses of a batch of positions -> what is stored of them: top-k, tail, gold, and the shares beside.

Letters: N positions of one product over a group of documents, J positions written at once, V ids, K top_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from schemas.errors import IdentityError
from schemas.target import FLAG_END, FLAG_GIVEN, PAD_ID

SLACK = 1e-6
"""Probability identities hold to this much, relative to the mass that they are about."""


@dataclass(slots=True)
class Rows:
    """Positions of one product over a group, in document order. Unscored ones keep these fills.

    ids int32, logps float64 [N, K]; gold int64 [N], the token that the document has; all others [N].
    """

    gold: np.ndarray
    ids: np.ndarray
    logps: np.ndarray
    tail_logp: np.ndarray
    gold_logp: np.ndarray
    err: np.ndarray
    open_mass: np.ndarray
    excluded_mass: np.ndarray
    pruned_mass: np.ndarray
    noncanonical_mass: np.ndarray
    scored: np.ndarray
    flags: np.ndarray
    start: list[int] = field(default_factory=list)  # first position of each document, and the end

    @classmethod
    def empty(cls, golds: list[np.ndarray], top_k: int) -> Rows:
        """All positions unscored. golds: the token ids of each document."""
        n = sum(len(g) for g in golds)
        return cls(
            gold=np.concatenate([np.empty(0, np.int64), *golds]).astype(np.int64),
            ids=np.full((n, top_k), PAD_ID, np.int32),
            logps=np.full((n, top_k), -np.inf),
            tail_logp=np.zeros(n),
            gold_logp=np.full(n, -np.inf),
            err=np.ones(n),
            open_mass=np.zeros(n),
            excluded_mass=np.zeros(n),
            pruned_mass=np.zeros(n),
            noncanonical_mass=np.zeros(n),
            scored=np.zeros(n, bool),
            flags=np.full(n, FLAG_GIVEN, np.uint8),
            start=[0, *np.cumsum([len(g) for g in golds]).tolist()],
        )

    def write(
        self,
        product: str,
        at_J: np.ndarray,
        mass_JV: torch.Tensor,
        total_J: np.ndarray,
        ids_V: np.ndarray | None = None,
    ) -> None:
        """Top-k, tail and gold of positions `at_J` from unnormalised masses with the given sums; marks them scored.

        ids_V: the token of each column, rising, when the columns are not the whole vocabulary; other tokens have no mass.
        `mass_JV` (float32 or float64) is as before afterwards. Raises IdentityError when top-k + tail is not the total.
        """
        gold, known = self.gold[at_J], np.ones(len(at_J), bool)
        if ids_V is not None:
            column = np.minimum(np.searchsorted(ids_V, gold), len(ids_V) - 1)
            gold, known = column, ids_V[column] == gold
        asked = torch.from_numpy(gold).to(mass_JV.device)
        gold_mass = mass_JV.gather(1, asked[:, None])[:, 0].double().cpu().numpy() * known
        k = min(self.ids.shape[1], mass_JV.shape[1])
        best = torch.topk(mass_JV, k, dim=1)
        rest = mass_JV.scatter_(1, best.indices, 0.0).sum(1).double().cpu().numpy()
        mass_JV.scatter_(1, best.indices, best.values)
        value, ids = best.values.double().cpu().numpy(), best.indices.cpu().numpy()
        if ids_V is not None:
            ids = ids_V[ids]
        gap = np.abs(value.sum(1) + rest - total_J)
        if not ((gap <= SLACK * total_J) & (total_J > 0)).all():
            worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
            raise IdentityError(
                f"{product}: stored {value[worst].sum()!r} + tail {rest[worst]!r} != {total_J[worst]!r}, want equality"
            )
        with np.errstate(divide="ignore"):  # a zero is a probability too: its logarithm is -inf
            log_total = np.log(total_J)
            self.logps[at_J, :k] = np.log(value) - log_total[:, None]
            self.tail_logp[at_J] = np.log(rest) - log_total
            self.gold_logp[at_J] = np.log(gold_mass) - log_total
        self.ids[at_J, :k] = np.where(value > 0, ids, PAD_ID)
        self.scored[at_J] = True

    def mark_ends(self, closed: Sequence[bool]) -> None:
        """Set FLAG_END on the last row of every document that has a row for its end."""
        for stop, has_end in zip(self.start[1:], closed, strict=True):
            if has_end:
                self.flags[stop - 1] |= FLAG_END
