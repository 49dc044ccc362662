"""ULD, universal logit distillation (Boizard et al., TMLR 2025): L1 between sorted probabilities, no ids, no alignment.

Letters: T teacher rows, S student rows, R = min(T, S) pairs of rows, V student vocabulary, K stored tokens. One document
at a time. No row of another document, and nothing of the ids, enters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .logmath import wide


def uld(logits_SV: Tensor, logp_TK: Tensor, tail_logp_T: Tensor) -> Tensor:
    """The lower end of `uld_interval`, [R]; the document's loss is their mean."""
    return uld_interval(logits_SV, logp_TK, tail_logp_T)[0]


def uld_interval(logits_SV: Tensor, logp_TK: Tensor, tail_logp_T: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper end of sum_i |s_i - t_i| per row, [R] each; s, t: probabilities sorted from the largest.

    Rows are those that count, in order: pass the scored rows of the teacher and of the student's loss mask. Row t goes
    with row t, whatever text stands there: that is the method's definition, and its weakness.

    The first K ranks are exact. Of the teacher's others only their mass B is known, and that none is above its K-th, c.
    With A the student's mass behind its first K, the sum over these ranks is A + B - 2 sum_{i>K} min(s_i, t_i), thus in

        [ A + B - 2 min(B, M), A + B ],   M = sum_{i>K} min(s_i, c)

    The lower end is reached (by t in proportion to min(s, c), or between that and a constant c) where the teacher's
    vocabulary is no smaller than the student's, so nothing tighter holds; it is |A - B| where no s_i is above c. The
    upper end is reached only in the limit of a large vocabulary. Their gap is at most 2 B. M comes from a sum over all
    tokens less the first K, so no vocabulary is sorted; the difference rounds, to about 1e-7.

    logp_TK f32 [T, K] nats, falling, -inf where there is no token; tail_logp_T f32 [T]. Values up to 2. Unlike the public
    code the logits are left as they are.
    """
    rows = min(len(logits_SV), len(logp_TK))
    p_RV = torch.softmax(wide(logits_SV[:rows]), 1)
    t_RK, tail_R = logp_TK[:rows].to(p_RV).exp(), tail_logp_T[:rows].to(p_RV).exp()
    first = min(t_RK.shape[1], p_RV.shape[1])
    s_RK = torch.topk(p_RV, first, 1).values
    missing_R = t_RK[:, first:].sum(1)  # ranks that the student's vocabulary does not have
    head_R = (s_RK - t_RK[:, :first]).abs().sum(1) + missing_R
    least_R = t_RK[:, -1:]
    shared_R = torch.minimum(p_RV, least_R).sum(1) - torch.minimum(s_RK, least_R).sum(1)
    student_R = 1 - s_RK.sum(1)
    upper_R = head_R + student_R + tail_R
    return upper_R - 2 * torch.minimum(shared_R, tail_R), upper_R
