"""Divergences on K + 1 outcomes: the K stored tokens, and the tail (any other token) as one outcome.

The student is normalised over its full vocabulary. Its tail is a logsumexp over the tokens that are not stored, never
1 - sum, which has no correct digit left where the tail is small. A stored entry with logp -inf is padding, whatever its
id says: it is no outcome, has no gradient, and does not take its id out of the tail.

Masses are summed as they are stored, at temperature 1 without renormalising: K + 1 rounded masses sum to 1 within
docs/format.md's invariant 5 (2.1e-3 at K = 64), and a divergence of 0 is 0 to as much. Outcomes of mass 0 follow
0 log 0 = 0. Logits may be float32, bfloat16 or float16: everything inside is float32 (float64 for float64 logits).

Temperature T: both sides' K + 1 masses become p^(1/T), renormalised over these K + 1. The tail's inner shape is not
stored, hence it is tempered as the one outcome that it is here; that is not what a softmax of logits / T over the whole
vocabulary would give. T = 1 is the definition of each divergence. The usual factor T^2 is left to the caller.

Unscored rows (nothing stored, tail_logp 0) would give 0 here; they count in no mean: select rows with the mask first.
Letters: R rows, V student vocabulary, K stored tokens, C = K + 1 outcomes ("cells").
"""

from __future__ import annotations

import math

import torch


def log_probs(logits_RV: torch.Tensor) -> torch.Tensor:
    """log softmax [R, V], float32 at least."""
    return (logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()).log_softmax(1)


def cells(logp_RV: torch.Tensor, ids_RK: torch.Tensor, stored_RK: torch.Tensor) -> torch.Tensor:
    """Log masses [R, K + 1] of a full distribution: the stored tokens, and last all others together.

    -inf where `stored_RK` (bool) is false, and for a tail without tokens (or of tokens that have no mass); no gradient
    flows there.
    """
    n, size = logp_RV.shape
    column_RK = torch.where(stored_RK, ids_RK, size)  # padding goes to a column of its own, not to token 0
    taken_RV = torch.zeros(n, size + 1, dtype=torch.bool, device=logp_RV.device).scatter_(1, column_RK, True)[:, :size]
    empty_R1 = (taken_RV | (logp_RV == -torch.inf)).all(1, keepdim=True)
    rest_RV = logp_RV.masked_fill(taken_RV & ~empty_R1, -torch.inf)  # a logsumexp over nothing has gradient NaN
    tail_R1 = rest_RV.logsumexp(1, keepdim=True).masked_fill(empty_R1, -torch.inf)
    stored = logp_RV.gather(1, torch.where(stored_RK, ids_RK, 0)).masked_fill(~stored_RK, -torch.inf)
    return torch.cat([stored, tail_R1], 1)


def forward_kl(
    logits_RV: torch.Tensor,
    ids_RK: torch.Tensor,
    logp_RK: torch.Tensor,
    tail_logp_R: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """KL(teacher || student) = sum_c t_c (log t_c - log s_c) over the K + 1 outcomes: [R], nats.

    logits_RV float, ids_RK int64 (anything beside -inf), logp_RK and tail_logp_R float, nats. A lower bound of the KL of
    the full distributions. +inf where the teacher has mass on an outcome and the student has exactly none (logits of
    -inf); the gradient is then that of the other outcomes.
    Raises ValueError for a temperature that is not above 0. Source: arXiv 1503.02531, on K + 1 outcomes.
    """
    teacher_RC, student_RC = _both(logits_RV, ids_RK, logp_RK, tail_logp_R, temperature)
    return _kl(teacher_RC, student_RC)


def reverse_kl(
    logits_RV: torch.Tensor,
    ids_RK: torch.Tensor,
    logp_RK: torch.Tensor,
    tail_logp_R: torch.Tensor,
    temperature: float = 1.0,
    empty_tail_logp: float | None = None,
) -> torch.Tensor:
    """KL(student || teacher) = sum_c s_c (log s_c - log t_c) over the K + 1 outcomes: [R], nats. Arguments as forward_kl.

    A stored tail of exactly 0 (tail_logp -inf: fewer than K tokens had mass, or all tokens are stored) under a student
    that gives the other tokens mass makes this +inf by definition. That is the value of such a row, so that a mean over
    rows shows it; its gradient is 0, so that it spoils no other row and can be left out: `loss[loss.isfinite()]`.

    Often that zero is no knowledge: the sums of a run hold to 1e-6, hence it says "below 1e-6". Who wants these rows
    says so: `empty_tail_logp=math.log(1e-6)` is the tail's log mass there, added to the stored masses. A larger value
    punishes the student's tail less. In rows whose tail is not 0 it changes nothing.

    Raises ValueError for a temperature that is not above 0. Source: arXiv 2306.08543, on K + 1 outcomes.
    """
    if empty_tail_logp is not None:
        tail_logp_R = tail_logp_R.masked_fill(tail_logp_R == -torch.inf, empty_tail_logp)
    teacher_RC, student_RC = _both(logits_RV, ids_RK, logp_RK, tail_logp_R, temperature)
    hole_RC = (teacher_RC == -torch.inf) & (student_RC > -torch.inf)
    finite_R = _kl(student_RC, teacher_RC.masked_fill(hole_RC, 0.0))
    return finite_R.masked_fill(hole_RC.any(1), torch.inf)


def jsd(
    logits_RV: torch.Tensor,
    ids_RK: torch.Tensor,
    logp_RK: torch.Tensor,
    tail_logp_R: torch.Tensor,
    temperature: float = 1.0,
    beta: float = 0.5,
) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence: beta KL(t || m) + (1 - beta) KL(s || m), m = beta t + (1 - beta) s: [R], nats.

    t teacher, s student, over the K + 1 outcomes; other arguments as forward_kl. Always finite. Divided by beta it goes
    to forward_kl as beta goes to 0, and divided by 1 - beta to reverse_kl as beta goes to 1; at both ends itself is 0,
    so that beta must lie between. Raises ValueError for beta outside (0, 1), and for a temperature that is not above 0.
    Source: arXiv 2306.13649, section 2, on K + 1 outcomes.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta {beta}: wanted a number between 0 and 1; at its ends use forward_kl or reverse_kl")
    teacher_RC, student_RC = _both(logits_RV, ids_RK, logp_RK, tail_logp_R, temperature)
    neither_RC = (teacher_RC == -torch.inf) & (student_RC == -torch.inf)
    filled_RC = teacher_RC.masked_fill(neither_RC, 0.0)  # the gradient of log(0 + 0) is NaN, used or not
    middle_RC = torch.logaddexp(filled_RC + math.log(beta), student_RC + math.log1p(-beta))
    return beta * _kl(teacher_RC, middle_RC) + (1 - beta) * _kl(student_RC, middle_RC)


def _both(
    logits_RV: torch.Tensor, ids_RK: torch.Tensor, logp_RK: torch.Tensor, tail_logp_R: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(teacher, student), log masses [R, K + 1] at the temperature."""
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: wanted a number > 0")
    student_RC = cells(log_probs(logits_RV), ids_RK, logp_RK > -torch.inf)
    teacher_RC = torch.cat([logp_RK, tail_logp_R[:, None]], 1).to(student_RC.dtype)
    if temperature == 1:
        return teacher_RC, student_RC
    return (teacher_RC / temperature).log_softmax(1), (student_RC / temperature).log_softmax(1)


def _kl(a_RC: torch.Tensor, b_RC: torch.Tensor) -> torch.Tensor:
    """sum a (log a - log b) [R] of log masses. Where a is 0 there is no term and no gradient, whatever b is."""
    none_RC = a_RC == -torch.inf  # filled before, not after: the gradient of an unused -inf is NaN
    a, b = a_RC.masked_fill(none_RC, 0.0), b_RC.masked_fill(none_RC, 0.0)
    return (a.exp() * (a - b)).sum(1)
