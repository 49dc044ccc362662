"""MultiLevelOT (arXiv 2412.14528): sorted columns of standardised probabilities, and transport between the rows.

Letters: T teacher rows, S student rows, R = min(T, S) pairs of rows, V student vocabulary, K stored tokens, N = 50 ranked
columns. One document at a time: the ranking is per document, where the public code ranks per batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .logmath import wide

COLUMNS = 50
MANTISSA = 2.0**-11  # stored values are rounded to this relative error, docs/format.md


def multilevel_ot(
    logits_SV: Tensor,
    ids_TK: Tensor,
    logp_TK: Tensor,
    logz_T: Tensor,
    logit_std_T: Tensor,
    logz_scaled_T: Tensor,
    *,
    columns: int = COLUMNS,
    kl: Literal["forward", "softmax_twice", "public"] = "forward",
) -> Tensor:
    """L_AD + 0.1 L_KL + 0.1 L_SD of a document, a scalar. Rows: the scored ones of each side, in order.

    p = softmax(z / std) per row, std over the vocabulary (population; the public code adds 1e-4). Columns: the `columns`
    tokens of the largest sum of p over the document's rows, of each side by itself. Teacher tokens outside a row's stored
    K count 0 in that row, in the ranking and in the column.

        L_AD  mean over R of sum_columns |p_S - p_T|             row t with row t
        L_KL  mean over R of KL(T || S) over the columns and one cell for the rest
        L_SD  entropic transport cost between the T and S rows, cost |p_S - p_T|_1 of their columns, uniform marginals

    kl "public" is what the public code has in place of L_KL: a second softmax over the columns' probabilities, which
    leaves nearly nothing of them, and the cross-entropy with student and teacher exchanged; "softmax_twice" has the
    second softmax, but KL(T || S). Both are without a rest cell. All without the cross-entropy term and its weight 1.5.
    0 where a side has no rows. Raises ValueError where a row's std is 0, where stored probabilities add up to more than
    rounding explains, and where the student has no more tokens than columns.
    """
    rows = min(len(logits_SV), len(ids_TK))
    if rows == 0:
        return wide(logits_SV).sum() * 0  # with a gradient, of zeros
    logp_S, rest_S = student_columns(logits_SV, columns)
    p_T = teacher_columns(ids_TK, logp_TK, logz_T, logit_std_T, logz_scaled_T, columns).to(logp_S)
    p_S = logp_S.exp()
    absolute = (p_S[:rows] - p_T[:rows]).abs().sum(1).mean()
    transport = sinkhorn_cost(torch.cdist(p_S, p_T, p=1.0))
    if kl == "forward":
        left = 1 - p_T[:rows].sum(1, keepdim=True)
        cells_T = torch.cat([p_T[:rows], torch.where(left > 0, left, 0.0)], 1)  # below 0: rounding, checked before
        logs_S = torch.cat([logp_S[:rows], rest_S[:rows, None]], 1)
        empty = cells_T == 0
        product = torch.where(empty, 0.0, cells_T * torch.where(empty, 0.0, logs_S))
        divergence = (torch.xlogy(cells_T, cells_T) - product).sum(1).mean()
    else:
        log_T, log_S = torch.log_softmax(p_T[:rows], 1), torch.log_softmax(p_S[:rows], 1)
        forward = (log_T.exp() * (log_T - log_S)).sum(1).mean()
        divergence = forward if kl == "softmax_twice" else -(log_S.exp() * log_T).sum(1).mean()
    return absolute + 0.1 * divergence + 0.1 * transport


def student_columns(logits_SV: Tensor, columns: int = COLUMNS) -> tuple[Tensor, Tensor]:
    """log p of the ranked columns, [S, N], and of all other tokens together, [S]."""
    logits_SV = wide(logits_SV)
    if logits_SV.shape[1] <= columns:
        raise ValueError(f"{logits_SV.shape[1]} student tokens for {columns} columns and a rest: wanted more")
    scaled_SV = logits_SV / _positive(logits_SV.std(1, correction=0))[:, None]
    logp_SV = torch.log_softmax(scaled_SV, 1)
    ranked = torch.topk(logp_SV.detach().exp().sum(0), columns).indices
    return logp_SV[:, ranked], logp_SV.index_fill(1, ranked, -torch.inf).logsumexp(1)


def teacher_columns(
    ids_TK: Tensor, logp_TK: Tensor, logz_T: Tensor, std_T: Tensor, logz_scaled_T: Tensor, columns: int = COLUMNS
) -> Tensor:
    """p of the ranked columns, [T, N]: softmax(z/std)_v = exp((logp_v + logz)/std - logz_scaled), 0 outside the stored K."""
    std_T = _positive(std_T)[:, None]
    p_TK = torch.exp((logp_TK + logz_T[:, None]) / std_T - logz_scaled_T[:, None])
    steps = torch.where(logp_TK.isneginf(), 0.0, logp_TK.abs()) + 2 * logz_T.abs()[:, None]  # std is rounded as well
    slack_T = 2 * MANTISSA * ((steps / std_T).amax(1) + logz_scaled_T.abs()) + 1e-5
    if (p_TK.sum(1).log() > slack_T).any():
        raise ValueError(f"stored softmax(z/std) of a row adds up to {p_TK.sum(1).max().item()}: wanted at most 1")
    tokens, inverse = torch.unique(ids_TK, return_inverse=True)
    sums = p_TK.new_zeros(len(tokens)).index_add(0, inverse.flatten(), p_TK.flatten())
    ranked = torch.topk(sums, min(columns, len(tokens))).indices
    column = torch.full_like(tokens, columns).index_put((ranked,), torch.arange(len(ranked), device=tokens.device))
    return p_TK.new_zeros(len(p_TK), columns + 1).scatter_add(1, column[inverse], p_TK)[:, :columns]


def sinkhorn_cost(cost_ST: Tensor, *, eps: float = 0.1, steps: int = 10) -> Tensor:
    """<P, cost> with P = diag(u) exp(-cost/eps) diag(v) after `steps` alternations of rows and columns, a scalar.

    Uniform marginals 1/S and 1/T, in log space (exp(-cost/eps) is e^-20 at a cost of 2). The last step sets the columns'
    sums; the rows' are right in the limit. The public code lets rows sum to 1 and multiplies the cost by 0.001.
    """
    kernel_ST = -cost_ST / eps
    rows, cols = cost_ST.shape
    v_T = kernel_ST.new_zeros(cols)
    u_S = kernel_ST.new_zeros(rows)
    for _ in range(steps):
        u_S = -math.log(rows) - torch.logsumexp(kernel_ST + v_T, 1)
        v_T = -math.log(cols) - torch.logsumexp(kernel_ST + u_S[:, None], 0)
    return (torch.exp(kernel_ST + u_S[:, None] + v_T) * cost_ST).sum()


def _positive(std_R: Tensor) -> Tensor:
    if not (std_R > 0).all():  # NaN too
        raise ValueError(f"standard deviation of a row's logits is {std_R.min().item()}: wanted a positive number")
    return std_R
