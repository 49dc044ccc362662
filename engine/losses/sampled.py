"""Cross-entropy with tokens drawn from the teacher: unbiased, where a truncated top-k is not.

Letters: R rows, V student vocabulary, U unique drawn tokens.
"""

from __future__ import annotations

import torch

from .sparse import log_probs


def sampled_ce(
    logits_RV: torch.Tensor, ids_RU: torch.Tensor, counts_RU: torch.Tensor, draws: int, check: bool = True
) -> torch.Tensor:
    """-sum_i (c_i / N) log p_i: [R], nats. Source: arXiv 2503.16870 (random sampling KD) with proposal = teacher.

    Token i was drawn c_i times among N independent draws from the teacher, hence c / N is the teacher on average, and so
    are value and gradient of this loss. The teacher's entropy is not in it: as a KL it is too large by that.

    logits_RV float, computed in float32 (float64 stays); ids_RU int64, counts_RU int64, 0 for padding (any valid id)
    draws     N
    check     raise ValueError for rows whose counts do not sum to N: unscored rows, which the mask must take out first,
              or another N. Costs one wait for the device; without it such a row counts by what its counts sum to
    """
    if check:
        wrong_R = counts_RU.sum(1) != draws
        if wrong_R.any():
            row = int(wrong_R.nonzero()[0])
            raise ValueError(
                f"{int(wrong_R.sum())} of {len(wrong_R)} rows do not have {draws} draws, first row {row} with "
                f"{int(counts_RU[row].sum())}: select rows with the mask, and take `draws` from the run"
            )
    logp_RU = log_probs(logits_RV).gather(1, ids_RU).masked_fill(counts_RU == 0, 0.0)
    return -(counts_RU.to(logp_RU.dtype) / draws * logp_RU).sum(1)
