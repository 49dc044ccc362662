"""ALM, approximate likelihood matching (arXiv 2503.20083): one binary event per chunk of text that both sides share.

Letters: T teacher rows, S student rows, V student vocabulary, C chunks. Row i predicts token i. Log-probabilities in nats.
One document at a time. The alignment lies on the CPU, the rest on one device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .align import NONE, Alignment, first_and_last, keep
from .logmath import gold_logp, log1mexp, wide

TAU, GAMMA = 100.0, 0.1
ROUNDING = 1e-6  # docs/format.md: stored log-probabilities are at most this


def merge_at_spaces(
    alignment: Alignment, space_logp_T: Tensor, known_T: Tensor, students: int, gamma: float = GAMMA
) -> Alignment:
    """Chunks that end where the teacher expects a space or a special: P(space after the chunk) > gamma.

    A chunk whose end is not such joins the chunk behind it, and so on. Ends of a text are never joined, and nothing is
    joined over a gap (specials, dropped chunks): a run that is left without a certain end is dropped whole, like the
    unclosed tail of a text. So is a chunk with no row behind it, where P(space) is unknown.

    space_logp_T f32 [T] of row i's own distribution, so P(space after token i) is row i + 1's; known_T bool [T]: the
    teacher scored the row; students: S. Counts are merged once: the mean over the result's chunks is the mean over merged
    chunks (the public code merges the count a second time and inflates the loss by about 1.8).
    """
    chunk_t, chunk_s, is_end = alignment
    count = len(is_end)
    (first_t, last_t), (first_s, last_s) = first_and_last(chunk_t, count), first_and_last(chunk_s, count)
    closed = is_end | has_row_behind(alignment, known_T, students)
    rows = torch.nonzero(closed & ~is_end).squeeze(1)
    closed[rows] &= space_logp_T.cpu()[last_t[rows] + 1] > torch.log(torch.tensor(gamma))
    beside = (first_t[1:] == last_t[:-1] + 1) & (first_s[1:] == last_s[:-1] + 1) & ~is_end[1:]
    joins = torch.cat([~closed[:-1] & beside, closed.new_zeros(1)])[:count]  # with the next chunk
    run = torch.cumsum(~joins, 0) - (~joins).long()  # [C] its last chunk is the one that does not join
    run = torch.cat([run, torch.tensor([NONE])])  # the last one: of NONE
    return keep(Alignment(run[chunk_t], run[chunk_s], is_end[~joins]), closed[~joins])


def has_row_behind(alignment: Alignment, known_T: Tensor, students: int) -> Tensor:
    """bool [C]: a student row follows the chunk, and a teacher row that is scored."""
    count = len(alignment.is_end)
    behind_t = first_and_last(alignment.chunk_of_t, count)[1] + 1
    behind_s = first_and_last(alignment.chunk_of_s, count)[1] + 1
    known = torch.cat([known_T.cpu(), torch.zeros(1, dtype=torch.bool)])
    return known[behind_t] & (behind_s < students)


def alm(
    logits_SV: Tensor,
    gold_S: Tensor,
    gold_logp_T: Tensor,
    space_logp_T: Tensor,
    known_T: Tensor,
    space_V: Tensor,
    alignment: Alignment,
    *,
    tau: float = TAU,
    debias: bool = True,
) -> Tensor:
    """One loss per chunk, [C] nats; empty where there is none. The document's loss is their mean.

        l = sum of the chunk's gold log-probabilities + log P(space or special behind it)     (teacher, student)
        L = -[ e^(l_T/tau) l_S/tau + (1 - e^(l_T/tau)) log(1 - e^(l_S/tau)) ]

    arXiv 2503.20083, the binarised form; least, and its gradient in l_S zero, exactly where l_S = l_T.

    debias adds the second term of l: without it, tokens that go on past the boundary count against the chunk on one side
    only. Ends of a text have none; a chunk of text without a row behind it is left out (merge_at_spaces has dropped these
    already). Only the chunk's end is corrected: what the start of a chunk rules out stays, except at certain boundaries.

    gold_S int64 [S]; gold_logp_T, space_logp_T f32 [T]; known_T bool [T]: scored; space_V bool [V]: student tokens that
    begin with white space or are special. Raises ValueError where the teacher's l is above what rounding explains.
    """
    logits_SV, device = wide(logits_SV), logits_SV.device
    if debias:
        alignment = keep(alignment, alignment.is_end | has_row_behind(alignment, known_T, len(logits_SV)))
    chunk_t, chunk_s, is_end = alignment
    rows_t, rows_s = (torch.nonzero(chunk != NONE).squeeze(1) for chunk in (chunk_t, chunk_s))
    gold_at_s = gold_logp(logits_SV[rows_s.to(device)], gold_S[rows_s.to(device)])
    l_S = gold_at_s.new_zeros(len(is_end)).index_add(0, chunk_s[rows_s].to(device), gold_at_s)
    at_t = gold_logp_T[rows_t.to(device)].to(l_S)
    l_T = torch.zeros_like(l_S).index_add(0, chunk_t[rows_t].to(device), at_t)
    terms = torch.bincount(chunk_t[rows_t], minlength=len(is_end)).to(device)
    if debias:
        text = torch.nonzero(~is_end).squeeze(1)
        behind_t, behind_s = ((first_and_last(c, len(is_end))[1][text] + 1).to(device) for c in (chunk_t, chunk_s))
        l_T = l_T.index_add(0, text.to(device), space_logp_T[behind_t].to(l_T))
        l_S = l_S.index_add(0, text.to(device), space_logp(logits_SV[behind_s], space_V))
        terms = terms + 1
    return binary_cross_entropy(l_T, l_S, tau, ROUNDING * terms)


def binary_cross_entropy(l_T: Tensor, l_S: Tensor, tau: float, rounding: Tensor) -> Tensor:
    """-[ q log p + (1 - q) log(1 - p) ] with q = e^(l_T/tau), p = e^(l_S/tau); all [C].

    The public code takes 1e-6 off l/tau and clips it at 0. Here the student's l is below 0 as computed, see
    logmath.gold_logp. A teacher's l in (0, rounding] is a probability of 1 in stored values and counts as 1: then the
    second term is 0. Raises ValueError above it. Infinite where the student is certain, to 100 nats, and the teacher not; the
    gradient of such a chunk is 0, so that it spoils no other and can be left out.
    """
    if (l_T > rounding).any():
        raise ValueError(f"a teacher's log-probability of a chunk is {l_T.max().item()}: wanted at most 1e-6 per term")
    y_T, y_S = torch.where(l_T > 0, 0.0, l_T) / tau, l_S / tau
    rest = -torch.expm1(y_T)
    certain = (y_S == 0) & (rest != 0)
    # where rest is 0 the term is 0 whatever the student says: -1 keeps 0 * inf out of the value and the gradient
    cross = -(torch.exp(y_T) * y_S + rest * log1mexp(torch.where((rest == 0) | certain, -1.0, y_S)))
    return cross.masked_fill(certain, torch.inf)


def space_logp(logits_RV: Tensor, space_V: Tensor) -> Tensor:
    """log P(next token begins with white space or is special), [R]: below 0 as computed, like logmath.gold_logp."""
    inside_R, outside_R = (logits_RV[:, chosen].logsumexp(1) for chosen in (space_V, ~space_V))
    return logsigmoid(inside_R - outside_R)
