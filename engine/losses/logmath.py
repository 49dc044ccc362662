"""Log-probabilities that stay exact near 0 and near 1, for the losses of aligned chunks.

Letters: S rows, V vocabulary, C columns, G groups of rows. All log-probabilities are in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def wide(logits: Tensor) -> Tensor:
    """float64 stays, all else becomes float32: log-sum-exp over a vocabulary wants no 16-bit numbers."""
    return logits if logits.dtype == torch.float64 else logits.float()


def log1mexp(logp: Tensor) -> Tensor:
    """log(1 - e^logp) for logp <= 0; -inf at 0. Any shape.

    log(-expm1(logp)) alone, without the usual switch at -ln 2: where logp is far below 0 the result lies near 0 and its
    absolute error is that of 1, about 6e-8 in float32; value and gradient are exact to rounding where logp is near 0.
    """
    return torch.log(-torch.expm1(logp))


def gold_logp(logits_SV: Tensor, gold_S: Tensor) -> Tensor:
    """log P(gold) per row, [S]: log sigmoid(z_gold - logsumexp of all others).

    The same number as z_gold - logsumexp(z), which is 0 or a little above in float32 as soon as P > 1 - 1e-6. This one is
    below 0 until the gap passes 100 nats, so that log1mexp of it is finite. Costs one copy of the logits.
    """
    column = gold_S.unsqueeze(1)
    others_S = logits_SV.scatter(1, column, -torch.inf).logsumexp(1)
    return logsigmoid(logits_SV.gather(1, column).squeeze(1) - others_S)


def group_logmean(logp_SC: Tensor, group_S: Tensor, groups: int) -> Tensor:
    """log of the mean probability over the rows of each group, [G, C]. group_S int64 in 0..G-1, no group empty."""
    index_SC = group_S.unsqueeze(1).expand_as(logp_SC)
    start = logp_SC.new_full((groups, logp_SC.shape[1]), -torch.inf)
    top_GC = start.scatter_reduce(0, index_SC, logp_SC.detach(), "amax")
    top_GC = top_GC.masked_fill(top_GC.isneginf(), 0.0)  # -inf - -inf would be NaN; the sum is 0 there all the same
    sum_GC = torch.zeros_like(start).index_add(0, group_S, torch.exp(logp_SC - top_GC[group_S]))
    rows_G = torch.bincount(group_S, minlength=groups).to(logp_SC.dtype)
    mean_GC = torch.where(sum_GC == 0, 1.0, sum_GC).log() + top_GC - rows_G.log().unsqueeze(1)
    return mean_GC.masked_fill(sum_GC == 0, -torch.inf)  # without the 0 / 0 of log's gradient


def jsd_cells(t_GC: Tensor, s_GC: Tensor, beta: float) -> Tensor:
    """beta KL(T || M) + (1 - beta) KL(S || M), M = beta T + (1 - beta) S, over the cells of each row, [G].

    The arguments are log-probabilities, -inf allowed on either side and on both. 0 < beta < 1.
    """
    absent = t_GC.isneginf() & s_GC.isneginf()
    t_GC, s_GC = t_GC.masked_fill(absent, 0.0), s_GC.masked_fill(absent, 0.0)  # then 0 differs from 0 by nothing
    m_GC = torch.logaddexp(t_GC + math.log(beta), s_GC + math.log(1 - beta))
    parts = [torch.where(x.isneginf(), 0.0, x.exp() * (x.masked_fill(x.isneginf(), 0.0) - m_GC)) for x in (t_GC, s_GC)]
    return (beta * parts[0] + (1 - beta) * parts[1]).masked_fill(absent, 0.0).sum(1)
