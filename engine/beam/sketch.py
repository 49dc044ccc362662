"""A row of next-token probabilities as far as splitting a leaf needs it: its heaviest tokens, and sums by head.

A token's head is the first units of its bytes. What a token settles behind a boundary is mostly settled by its head (lemma 17,
alignment/strings.py), and one by one for the heaviest tokens; the rest stays open. So a row of Vt numbers becomes K + H of
them, and no second pass over the lm_head is needed when a leaf is split.

Letters: R rows added at once, Vt teacher ids, K heaviest tokens kept, H heads of a student.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class RowSketch:
    """One context's next token. ids [K], prob float64 [K], falling; heads: product -> float64 [H]; special: mass on
    specials; total: sum of the row (1, or 0 where no token is canonical)."""

    ids: np.ndarray
    prob: np.ndarray
    heads: dict[str, np.ndarray]
    special: float
    total: float


class Sketcher:
    """Makes sketches. heads: product -> head of every teacher token, int64 [Vt'], and the number H of heads; top: K."""

    def __init__(
        self,
        heads: dict[str, tuple[np.ndarray, int]],
        special_ids: list[int],
        top: int,
        size: int,
        device: torch.device,
    ) -> None:
        self.top, self.size = min(top, size), size
        self.special = torch.tensor(special_ids, dtype=torch.long, device=device)
        self.heads = {p: (torch.from_numpy(of[:size]).to(device), count) for p, (of, count) in heads.items()}

    def rows(self, prob_RV: torch.Tensor) -> list[RowSketch]:
        """prob_RV [R, >= Vt] in any float dtype. All that is kept is divided by the float64 sum of its row: rows normalised
        in float32 miss 1 by more than a part of them may miss the whole."""
        prob = prob_RV[:, : self.size].double()
        best = torch.topk(prob, self.top, dim=1)
        ids, value = best.indices.cpu().numpy(), best.values.cpu().numpy()
        sums = {}
        for product, (of_token, count) in self.heads.items():
            out = torch.zeros((len(prob), count), dtype=torch.float64, device=prob.device)
            sums[product] = out.scatter_add_(1, of_token.expand(len(prob), -1), prob).cpu().numpy()
        special, total = prob[:, self.special].sum(1).tolist(), prob.sum(1).tolist()
        scale = [1 / t if t > 0 else 0.0 for t in total]
        return [
            RowSketch(ids[r], value[r] * f, {p: s[r] * f for p, s in sums.items()}, special[r] * f, total[r])
            for r, f in enumerate(scale)
        ]
