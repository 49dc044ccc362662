"""GOLD (TRL's general online logit distillation), the part that needs no live teacher: hybrid of JSD and sorted L1.

Letters: T teacher rows, S student rows, V, Vt vocabularies of student and teacher, K stored tokens, G groups (chunks of
align.py). Row i predicts token i. Log-probabilities in nats. One document at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .align import NONE, Alignment, first_and_last
from .logmath import gold_logp, jsd_cells, log1mexp, wide
from .strings import ids_of

MANTISSA = 2.0**-11  # stored values are rounded to this relative error, docs/format.md


class TeacherInputs(NamedTuple):
    """The teacher's rows of one document; those in chunks must be scored."""

    token_ids: Tensor  # int64 [T]
    ids: Tensor  # int64 [T, K]
    logp: Tensor  # f32 [T, K] nats, falling; -inf: no token
    tail_logp: Tensor  # f32 [T] nats
    gold_logp: Tensor  # f32 [T] nats


def gold(
    logits_SV: Tensor,
    gold_S: Tensor,
    teacher: TeacherInputs,
    match_W: Tensor,
    alignment: Alignment,
    *,
    beta: float = 0.5,
    weights: tuple[float, float] | None = None,
) -> Tensor:
    """One loss per group, [G] nats; the document's loss is their mean. weights: of the matched and the unmatched part.

        L = w_m JSD_beta(matched tokens, the realised group, the rest) + w_u L1(sorted unmatched probabilities)

    Both sides are read at the first row of a group: these rows share the boundary, so "the next token is x" is the same
    event for byte-equal x. (The public code's "bayesian" merging takes the last row times the probabilities before it. The
    last tokens then follow different prefixes, " hel" + "lo" beside "" + " hello", and equal ids mean different texts.) The
    chain rule enters as a cell of its own: the realised group, log P = sum of its gold log-probabilities. Its mass is
    taken out of the group's first token (`split_off`), so that cells never overlap: where first token and group are the
    same the group's cell replaces the token's, else the token's cell keeps "this token, but not this group". (A token that
    spells the group on the side that cut it otherwise keeps its cell: little mass where texts are encoded canonically.)

    match_W int64 [Vt]: student id of the teacher's token, NONE (-1) without one, see `matched_ids`; no student id twice.
    weights None: (share of matched tokens in the teacher's vocabulary, 1 - share), the public code's adaptive rule. Matched
    tokens outside the stored K are in the rest cell on both sides; the public code has no rest, so every token outside the
    sub-vector is pushed down. Raises ValueError where an id is matched twice.
    """
    matched = match_W[match_W != NONE]
    if len(matched.unique()) != len(matched):
        raise ValueError(f"{len(matched)} tokens are matched to {len(matched.unique())} student ids: wanted one to one")
    share = len(matched) / len(match_W)
    w_m, w_u = (share, 1 - share) if weights is None else weights
    logits_SV, device = wide(logits_SV), logits_SV.device
    match_W, matched = match_W.to(device), matched.to(device)
    groups, known_S = len(alignment.is_end), (alignment.chunk_of_s != NONE).to(device)
    first_t, first_s = (first_and_last(chunk, groups)[0].to(device) for chunk in alignment[:2])
    gold_at_s = logits_SV.new_zeros(len(logits_SV)).masked_scatter(
        known_S, gold_logp(logits_SV[known_S], gold_S[known_S])
    )
    continued_t = continuation(teacher.gold_logp.to(gold_at_s), alignment.chunk_of_t, first_t)
    continued_s = continuation(gold_at_s, alignment.chunk_of_s, first_s)
    teacher_cells = split_teacher(teacher, first_t, continued_t)
    student_GV = torch.log_softmax(logits_SV[first_s], 1)
    row_gold = gold_S[first_s].unsqueeze(1)
    student_GV = student_GV.scatter(1, row_gold, split_off(gold_at_s[first_s], continued_s).unsqueeze(1))
    group_s = gold_at_s[first_s] + continued_s
    target_GC = torch.where(teacher_cells.ids == NONE, NONE, match_W[teacher_cells.ids.clamp(min=0)])
    loss_G = w_m * jsd_with_rest(teacher_cells, student_GV, group_s, target_GC, beta)
    return loss_G + w_u * unmatched_l1(teacher_cells, student_GV, target_GC, matched) if w_u else loss_G


def matched_ids(
    teacher_bytes: Sequence[bytes], student_bytes: Sequence[bytes], specials: Mapping[int, int] | None = None
) -> Tensor:
    """int64 [Vt]: the student token with the same bytes, NONE without one; tokens without bytes only by `specials`, which
    maps teacher ids to student ids of the same role. The lowest id where several tokens have the same bytes."""
    match = torch.full((len(teacher_bytes),), NONE)
    student_id_of = ids_of(student_bytes)
    for token, i in ids_of(teacher_bytes).items():
        match[i] = student_id_of.get(token, NONE)
    for i, j in (specials or {}).items():
        match[i] = j
    return match


def continuation(gold_logp_N: Tensor, chunk_of: Tensor, first: Tensor) -> Tensor:
    """log P(the group's tokens behind its first one), [G]: 0 for groups of one token."""
    later = (chunk_of != NONE).to(first.device).index_fill(0, first, False)
    rows = torch.nonzero(later).squeeze(1)
    return gold_logp_N.new_zeros(len(first)).index_add(0, chunk_of.to(first.device)[rows], gold_logp_N[rows])


def split_off(first_G: Tensor, continued_G: Tensor) -> Tensor:
    """log P(first token, but not the group), [G]: -inf for groups of one token."""
    whole = continued_G >= 0  # above 0 only by the rounding of stored values, which split_teacher checks
    return torch.where(whole, -torch.inf, first_G + log1mexp(torch.where(whole, -1.0, continued_G)))


class Cells(NamedTuple):
    """The teacher at the first rows of groups, as cells that add up to 1. The last column is for a first token that is
    not in the top K."""

    ids: Tensor  # int64 [G, K + 1], NONE: no token
    logp: Tensor  # [G, K + 1] nats
    group: Tensor  # [G] nats, of the realised group
    tail: Tensor  # [G] nats, of what is in no other cell
    least: Tensor  # [G] nats, of the K-th token: no token of the tail exceeds it


def split_teacher(teacher: TeacherInputs, first_t: Tensor, continued_t: Tensor) -> Cells:
    """Raises ValueError where gold_logp lies above 0, or above the tail that holds it, by more than rounding explains."""
    gold_G, tail_G = (x[first_t].to(continued_t) for x in (teacher.gold_logp, teacher.tail_logp))
    logp_GK, token_G = teacher.logp[first_t].to(continued_t), teacher.token_ids[first_t]
    ids_GK = torch.where(logp_GK.isneginf(), NONE, teacher.ids[first_t])
    stored = (ids_GK == token_G[:, None]).any(1) | gold_G.isneginf()  # a token without mass needs no cell
    over = torch.maximum(continued_t, torch.where(stored, -torch.inf, gold_G - tail_G))
    slack = 1e-6 * len(teacher.token_ids) + MANTISSA * torch.where(stored, 0.0, gold_G.abs() + tail_G.abs())
    if (over > slack).any():
        raise ValueError(f"gold_logp is {over.max().item()} nats above what it is part of: wanted at most its rounding")
    ids_GC = torch.cat([ids_GK, torch.where(stored, NONE, token_G)[:, None]], 1)
    logp_GC = torch.cat([logp_GK, torch.where(stored, -torch.inf, gold_G)[:, None]], 1)
    left_G = split_off(gold_G, continued_t)
    logp_GC = torch.where(ids_GC == token_G[:, None], left_G[:, None], logp_GC)
    tail_G = torch.where(stored, tail_G, split_off(tail_G, gold_G - tail_G))
    return Cells(ids_GC, logp_GC, gold_G + continued_t, tail_G, logp_GK[:, -1])


def jsd_with_rest(teacher: Cells, student_GV: Tensor, group_s: Tensor, target_GC: Tensor, beta: float) -> Tensor:
    """JSD over the stored matched tokens, the group, and one cell for all else, [G]."""
    none_GC = target_GC == NONE
    rest_t = torch.logsumexp(torch.cat([teacher.logp.masked_fill(~none_GC, -torch.inf), teacher.tail[:, None]], 1), 1)
    t_GC = torch.cat([teacher.logp.masked_fill(none_GC, -torch.inf), teacher.group[:, None], rest_t[:, None]], 1)
    in_cells_GV = torch.zeros((len(group_s), student_GV.shape[1] + 1), dtype=torch.bool, device=group_s.device)
    in_cells_GV = in_cells_GV.scatter(1, torch.where(none_GC, student_GV.shape[1], target_GC), True)[:, :-1]
    rest_s = torch.logsumexp(student_GV.masked_fill(in_cells_GV, -torch.inf), 1)
    matched_s = student_GV.gather(1, target_GC.clamp(min=0)).masked_fill(none_GC, -torch.inf)
    return jsd_cells(t_GC, torch.cat([matched_s, group_s[:, None], rest_s[:, None]], 1), beta)


def unmatched_l1(teacher: Cells, student_GV: Tensor, target_GC: Tensor, matched: Tensor) -> Tensor:
    """Sorted L1 between the unmatched tokens of both sides over the first K + 1 ranks, a lower bound, [G].

    The teacher's ranks are exact down to its K-th probability c; of what lies behind, each is in [0, c], and the least
    difference to the student's s is counted: max(s - c, 0).
    """
    known = (target_GC == NONE) & ~teacher.logp.isneginf() & (teacher.logp >= teacher.least[:, None])
    t_GC = torch.where(known, teacher.logp.exp(), 0.0).sort(1, descending=True).values
    others = torch.ones(student_GV.shape[1], dtype=torch.bool, device=matched.device).index_fill(0, matched, False)
    left_GV = student_GV[:, others]
    ranks = t_GC.shape[1]
    s_GC = torch.topk(left_GV, min(ranks, left_GV.shape[1]), 1).values.exp()
    s_GC = torch.nn.functional.pad(s_GC, (0, ranks - s_GC.shape[1]))
    rank_C = torch.arange(ranks, device=matched.device)
    beyond_GC = s_GC - torch.minimum(s_GC, teacher.least[:, None].exp())
    return torch.where(rank_C < known.sum(1, keepdim=True), (s_GC - t_GC).abs(), beyond_GC).sum(1)
