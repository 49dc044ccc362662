"""Distributions of positions in, what is stored of them out: the top-k and the mass of the tail, the gold token, the shares.

The tail of a position is all tokens but its K likeliest. Its mass is computed in `TopK._keep`: the sum of the masses that are
left when the K largest are taken out, and checked: stored mass + tail = all mass (`check_total`). Rows of compiled functions come
with their tail, summed in the same way (`keep` in push/push_kernels.py) and checked here, too (`TopK.write_best`). For the
codec `sample`, which draws tokens instead, see targets/sampling.py.

Letters: N positions of one product over a group of passages, J positions written at once, V ids, K top_k, P places asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.teacher.softmax import row_sums
from schemas.errors import IdentityError
from schemas.target import FLAG_END, FLAG_GIVEN, PAD_ID

SLACK = 1e-6
"""Probability identities hold to this much, relative to the mass that they are about."""


class TargetRows:
    """Positions of one product over a group, passage after passage; a codec's subclass says what is kept of a distribution.

    golds: the token ids of each passage. All positions begin as unscored; those that stay so keep these fills.
    start: first position of each passage, and N.
    gold: int64 [N], the token that the text has. gold_logp: float64 [N], its log-probability, nats.
    err: float64 [N], width of the certified interval (definition 9); 1 where unscored.
    open_mass, excluded_mass, pruned_mass, noncanonical_mass: float64 [N], shares of the position's mass (definition 8).
    scored: bool [N]. flags: uint8 [N] (schemas/target.py). stored_mass: float64 [N], probability of the tokens that are stored.
    statistics: name -> float64 [N], beside the teacher's own rows only.
    """

    def __init__(self, golds: Sequence[np.ndarray]) -> None:
        sizes = [len(g) for g in golds]
        n = sum(sizes)
        self.gold = np.concatenate([np.empty(0, np.int64), *golds]).astype(np.int64)
        self.start: list[int] = [0, *np.cumsum(sizes).tolist()]
        self.gold_logp = np.full(n, -np.inf)
        self.err = np.ones(n)
        self.open_mass, self.excluded_mass, self.pruned_mass, self.noncanonical_mass = np.zeros((4, n))
        self.scored = np.zeros(n, bool)
        self.flags = np.full(n, FLAG_GIVEN, np.uint8)
        self.stored_mass = np.zeros(n)
        self.statistics: dict[str, np.ndarray] = {}

    def write(
        self,
        product: str,
        at_J: np.ndarray,
        mass_JV: torch.Tensor,
        total_J: np.ndarray,
        ids_V: np.ndarray | None = None,
    ) -> None:
        """Keep the distributions of positions `at_J` from unnormalised masses [J, V] with the sums total [J]; marks them scored.

        ids_V: the token of each column, rising, when the columns are not the whole vocabulary; other tokens have no mass.
        `mass_JV` (float32 or float64) is as before afterwards. Raises IdentityError when the masses are not the total.
        """
        gold, known = self.gold[at_J], np.ones(len(at_J), bool)
        if ids_V is not None:
            column = np.minimum(np.searchsorted(ids_V, gold), len(ids_V) - 1)
            gold, known = column, ids_V[column] == gold
        asked = torch.from_numpy(gold).to(mass_JV.device)
        gold_mass = mass_JV.gather(1, asked[:, None])[:, 0].double().cpu().numpy() * known
        self._keep(product, at_J, mass_JV, total_J, ids_V)
        with np.errstate(divide="ignore"):  # a zero is a probability too: its logarithm is -inf
            self.gold_logp[at_J] = np.log(gold_mass) - np.log(total_J)
        self.scored[at_J] = True

    def _keep(
        self, product: str, at_J: np.ndarray, mass_JV: torch.Tensor, total_J: np.ndarray, ids_V: np.ndarray | None
    ) -> None:
        """What the codec keeps of these distributions; arguments as in `write`."""
        raise NotImplementedError

    @property
    def wanted_tokens(self) -> int:
        """How many of the likeliest tokens of a position the codec needs; 0 when it needs the whole distribution."""
        return 0

    def write_best(
        self, product: str, at_J: np.ndarray, ids_JK: np.ndarray, mass_JK: np.ndarray, tail_J: np.ndarray, gold_J: np.ndarray,
        total_J: np.ndarray
    ) -> None:  # fmt: skip
        """`write` from the K = `wanted_tokens` likeliest tokens, falling, the mass of all others, and that of the gold token."""
        raise NotImplementedError

    def columns(self, place_P: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What the codec stores of positions `place_P` (-1: a position that was not asked for), flat, and how many values
        each position has, [P]."""
        raise NotImplementedError

    def mark_ends(self, closed: Sequence[bool]) -> None:
        """Set FLAG_END on the last row of every document that has a row for its end."""
        for stop, has_end in zip(self.start[1:], closed, strict=True):
            if has_end:
                self.flags[stop - 1] |= FLAG_END


class TopK(TargetRows):
    """The K likeliest tokens and the tail. ids: int32 [N, K], falling by probability, PAD_ID where a token has none; logps:
    float64 [N, K] and tail_logp: float64 [N], nats; tail_logp is the log of the mass of all other tokens, -inf for none."""

    def __init__(self, golds: Sequence[np.ndarray], top_k: int) -> None:
        super().__init__(golds)
        n = len(self.gold)
        self.ids = np.full((n, top_k), PAD_ID, np.int32)
        self.logps = np.full((n, top_k), -np.inf)
        self.tail_logp = np.zeros(n)

    def _keep(
        self, product: str, at_J: np.ndarray, mass_JV: torch.Tensor, total_J: np.ndarray, ids_V: np.ndarray | None
    ) -> None:
        k = min(self.ids.shape[1], mass_JV.shape[1])
        best = torch.topk(mass_JV, k, dim=1)
        # the tail: summed over what is left, not 1 - stored, so that the check below can fail
        rest = row_sums(mass_JV.scatter_(1, best.indices, 0.0)).cpu().numpy()
        mass_JV.scatter_(1, best.indices, best.values)  # put back: others read the same masses
        value, ids = best.values.double().cpu().numpy(), best.indices.cpu().numpy()
        if ids_V is not None:
            ids = ids_V[ids]
        stored = value.sum(1)
        check_total(product, "stored + tail", stored + rest, total_J)
        with np.errstate(divide="ignore"):
            log_total = np.log(total_J)
            self.logps[at_J, :k] = np.log(value) - log_total[:, None]
            self.tail_logp[at_J] = np.log(rest) - log_total
        self.ids[at_J, :k] = np.where(value > 0, ids, PAD_ID)
        self.stored_mass[at_J] = stored / total_J

    @property
    def wanted_tokens(self) -> int:
        return self.ids.shape[1]

    def write_best(
        self, product: str, at_J: np.ndarray, ids_JK: np.ndarray, mass_JK: np.ndarray, tail_J: np.ndarray, gold_J: np.ndarray,
        total_J: np.ndarray
    ) -> None:  # fmt: skip
        stored = mass_JK.sum(1)
        check_total(product, "stored + tail", stored + tail_J, total_J)
        with np.errstate(divide="ignore"):  # a zero is a probability too: its logarithm is -inf
            log_total = np.log(total_J)
            self.logps[at_J] = np.log(mass_JK) - log_total[:, None]
            self.tail_logp[at_J] = np.log(tail_J) - log_total
            self.gold_logp[at_J] = np.log(gold_J) - log_total
        self.ids[at_J] = np.where(mass_JK > 0, ids_JK, PAD_ID)
        self.stored_mass[at_J] = stored / total_J
        self.scored[at_J] = True

    def columns(self, place_P: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """topk_ids, topk_logps, tail_logp."""
        k, one = np.full(len(place_P), self.ids.shape[1]), np.ones(len(place_P), np.int64)
        return {
            "topk_ids": (taken(self.ids, place_P, PAD_ID).ravel(), k),
            "topk_logps": (taken(self.logps, place_P, -np.inf).ravel(), k),
            "tail_logp": (taken(self.tail_logp, place_P, 0.0), one),
        }


def check_total(product: str, found: str, sum_J: np.ndarray, total_J: np.ndarray) -> None:
    """IdentityError unless the sums are the totals, relative to SLACK, and all are above 0."""
    gap = np.abs(sum_J - total_J)
    if not ((gap <= SLACK * total_J) & (total_J > 0)).all():
        worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
        raise IdentityError(f"{product}: {found}: sum {sum_J[worst]!r} != {total_J[worst]!r}, want equality")


def taken(values: np.ndarray, place_P: np.ndarray, fill: float) -> np.ndarray:
    """values[place_P], with `fill` where a place is -1."""
    out = np.full((len(place_P), *values.shape[1:]), fill, values.dtype)
    out[place_P >= 0] = values[place_P[place_P >= 0]]
    return out
