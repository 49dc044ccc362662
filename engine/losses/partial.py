"""Partial KL: a few stored tokens, all other tokens as one outcome, and the gold token.

Letters: R rows, V student vocabulary, K stored tokens, k of them that count, C = k + 1 outcomes.
"""

from __future__ import annotations

import torch

from .sparse import cells, log_probs


def partial_kl(
    logits_RV: torch.Tensor,
    ids_RK: torch.Tensor,
    logp_RK: torch.Tensor,
    tail_logp_R: torch.Tensor,
    gold_R: torch.Tensor,
    omega: float = 0.8,
    candidates: int | None = None,
) -> torch.Tensor:
    """omega * PKL + (1 - omega) * CE: [R], nats. Source: arXiv 2512.14954 (omega 0.8).

        PKL = -( sum_{v in k} q_v log p_v + rest_q log rest_p ),  CE = -log p_gold

    q is the teacher, p the student over its full vocabulary. rest_q is the mass outside the k tokens (1 - sum_k q in the
    paper), here the sum of what is stored of it: tail and unused tokens, never renormalised. log rest_p (the paper's
    log(1 - sum_k p), clamped in its code) is a logsumexp over all other tokens. PKL is a cross-entropy: its least value
    is the teacher's entropy over the k + 1 outcomes, not 0. A mass q of 0 has no term; +inf where q has mass and p none.

    logits_RV float, computed in float32 (float64 stays); ids_RK int64, logp_RK (-inf: padding) and tail_logp_R float, nats
    gold_R      int64, the document's own token at each row; it need not be stored
    candidates  k: only the first, likeliest k stored tokens stand alone. Published runs have 1 to 5, the gold token always
                among them; here it is where it is likely enough. None: all K

    Select rows with the mask first. Raises ValueError for omega outside [0, 1] and candidates outside 1..K.
    """
    k = logp_RK.shape[1] if candidates is None else candidates
    if not 0 <= omega <= 1 or not 1 <= k <= logp_RK.shape[1]:
        raise ValueError(
            f"omega {omega} and candidates {candidates}: wanted 0 <= omega <= 1 and 1..{logp_RK.shape[1]}, or None"
        )
    student_RV = log_probs(logits_RV)
    logp_RK, tail_logp_R = logp_RK.to(student_RV.dtype), tail_logp_R.to(student_RV.dtype)
    student_RC = cells(student_RV, ids_RK[:, :k], logp_RK[:, :k] > -torch.inf)
    rest_q_R = tail_logp_R.exp() + logp_RK[:, k:].exp().sum(1)
    q_RC = torch.cat([logp_RK[:, :k].exp(), rest_q_R[:, None]], 1)
    pkl_R = -(q_RC * student_RC.masked_fill(q_RC == 0, 0.0)).sum(1)
    ce_R = -student_RV.gather(1, gold_R[:, None])[:, 0]
    return omega * pkl_R + (1 - omega) * ce_R
