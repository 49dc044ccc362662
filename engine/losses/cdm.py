"""CDM, contextual dynamical mapping (arXiv 2502.11104): warped token alignment, and a map between two top-K lists per row.

Letters: T teacher rows, S student rows, V student vocabulary, K stored tokens, G groups of rows, M mapped tokens of a
group. Rows are the scored ones of each side, in order; row i predicts token i. One document at a time, no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .logmath import group_logmean, wide
from .strings import cost_matrix, edit_distances, warp

MAX_RATIO = 0.3


class TeacherInputs(NamedTuple):
    """The teacher's scored rows of one document."""

    token_ids: Tensor  # int64 [T]
    ids: Tensor  # int64 [T, K]
    logp: Tensor  # f32 [T, K] nats; -inf: no token
    tail_logp: Tensor  # f32 [T] nats
    entropy: Tensor  # f32 [T] nats


def cdm(
    logits_SV: Tensor,
    gold_S: Tensor,
    teacher: TeacherInputs,
    teacher_bytes: Sequence[bytes],
    student_bytes: Sequence[bytes],
    student_id_of: Mapping[bytes, int],
    specials: Mapping[int, int] | None = None,
) -> Tensor:
    """KL(teacher || student) of each group of aligned rows, [G] nats; the document's loss is their mean.

    1. Rows are aligned by dynamic time warping over the realised tokens, cost(i, j) = editdistance(a_i, v_j) f_T(i) f_S(j)
       in bytes, f from the entropies (`weights`; the student's is live, without gradient).
    2. Rows of a group are averaged in probability (the public code averages logits).
    3. The group's teacher tokens are mapped to student tokens (`mapped_tokens`).
    4. KL over the mapped tokens and one cell for all other mass on each side. The public code gives -1e4 to the logits of
       unmapped tokens and renormalises what is left; here their mass stays visible. Stored values are not renormalised.

    teacher_bytes, student_bytes: the bytes of each token id, b"" for those that are no text; student_id_of: bytes -> id
    (strings.ids_of); specials: teacher id -> student id of tokens with the same role, such as ends. Runs in Python per row of
    the document, for the edit distances: 7 ms each at K = 64 where hardly a token has the same bytes on the other side, less
    in proportion where they have. Gradients go to the student's logits only.
    """
    logits_SV, device = wide(logits_SV), logits_SV.device
    if len(logits_SV) == 0 or len(teacher.token_ids) == 0:
        return logits_SV.sum(1)[:0]
    logp_SV = torch.log_softmax(logits_SV, 1)
    frozen_SV = logp_SV.detach()
    entropy_S = -torch.special.xlogy(frozen_SV.exp(), frozen_SV.exp()).sum(1)
    texts_t = [teacher_bytes[i] for i in teacher.token_ids.tolist()]
    texts_s = [student_bytes[i] for i in gold_S.tolist()]
    f_T, f_S = weights(teacher.entropy), weights(entropy_S)
    group_t, group_s = warp(cost_matrix(texts_t, texts_s) * f_T[:, None] * f_S)
    groups = int(group_s[-1]) + 1
    rows_s = torch.from_numpy(group_s).to(device)
    list_GK = torch.topk(
        group_logmean(frozen_SV, rows_s, groups), min(teacher.ids.shape[1], logp_SV.shape[1]), 1
    ).indices
    q_g = [
        mapped_tokens(tokens, lists, teacher_bytes, student_bytes, student_id_of, specials or {})
        for tokens, lists in zip(group_lists(teacher, group_t), list_GK.tolist(), strict=True)
    ]
    return kl_with_rest(logits_SV, logp_SV, rows_s, [q for q, _ in q_g], [rest for _, rest in q_g])


def weights(entropy_N: Tensor) -> npt.NDArray[np.int64]:
    """f = int(3 sigmoid(4 h - 2) + 3) in {3, 4, 5}, [N]; h the entropy min-max scaled over the rows, 0 if it is constant."""
    entropy = entropy_N.detach().cpu().double().numpy()
    low, high = entropy.min(), entropy.max()
    h = (entropy - low) / (high - low) if high > low else np.zeros_like(entropy)
    return (3 / (1 + np.exp(2 - 4 * h)) + 3).astype(np.int64)


def group_lists(teacher: TeacherInputs, group_t: npt.NDArray[np.int64]) -> list[tuple[dict[int, float], float]]:
    """Per group: mean probability of each stored token over the group's rows, and of what is not stored."""
    probability = teacher.logp.double().exp().tolist()
    lists, tails = teacher.ids.tolist(), teacher.tail_logp.double().exp().tolist()
    counts = np.bincount(group_t)
    found: list[tuple[dict[int, float], float]] = [({}, 0.0) for _ in counts]
    for row, group in enumerate(group_t.tolist()):
        tokens, tail = found[group]
        for i, p in zip(lists[row], probability[row], strict=True):
            if p > 0:
                tokens[i] = tokens.get(i, 0.0) + p / counts[group]
        found[group] = tokens, tail + tails[row] / counts[group]
    return found


def mapped_tokens(
    teacher: tuple[dict[int, float], float],
    student: list[int],
    teacher_bytes: Sequence[bytes],
    student_bytes: Sequence[bytes],
    student_id_of: Mapping[bytes, int],
    specials: Mapping[int, int],
) -> tuple[dict[int, float], float]:
    """Student id -> teacher probability, and the probability of everything else (unmapped and not stored).

    First tokens of the same role or the same bytes. Then, of those left in the two lists, the pair of the least
    editdistance / (sum of lengths) below 0.3, each token once; ties go to the more probable teacher token, then student
    token. Depends on nothing but its arguments (the public code's map grows with the batches it has seen).
    """
    tokens, rest = teacher
    q: dict[int, float] = {}
    left: list[int] = []
    for i, p in sorted(tokens.items(), key=lambda item: (-item[1], item[0])):
        target = specials.get(i, student_id_of.get(teacher_bytes[i]))
        if target is None:
            left.append(i)
        else:
            q[target] = q.get(target, 0.0) + p
    free = [
        j for j in student if j not in q and j < len(student_bytes) and student_bytes[j]
    ]  # an lm_head may have more rows
    texts = [student_bytes[j] for j in free]
    pairs = []
    for rank, i in enumerate(left):
        text = teacher_bytes[i]
        near = [n for n, other in enumerate(texts) if abs(len(text) - len(other)) < MAX_RATIO * len(text + other)]
        for n, distance in zip(near, edit_distances(text, [texts[n] for n in near]).tolist(), strict=True):
            pairs.append((distance / (len(text) + len(texts[n])), rank, n))
    done_t: set[int] = set()
    for _, rank, n in sorted(pair for pair in pairs if pair[0] < MAX_RATIO):
        if rank not in done_t and free[n] not in q:
            done_t.add(rank)
            q[free[n]] = tokens[left[rank]]
    return q, rest + sum(tokens[i] for rank, i in enumerate(left) if rank not in done_t)


def kl_with_rest(
    logits_SV: Tensor, logp_SV: Tensor, group_S: Tensor, q_g: list[dict[int, float]], rest_g: list[float]
) -> Tensor:
    """KL over each group's mapped tokens and one rest cell, [G]; the student's cells are means over the group's rows."""
    width = max(1, max(len(q) for q in q_g))
    padded = [[*q, *[next(iter(q), 0)] * (width - len(q))] for q in q_g]  # with the first: masked once more below
    values = [[*q.values(), *[0.0] * (width - len(q)), rest] for q, rest in zip(q_g, rest_g, strict=True)]
    ids_GM = torch.tensor(padded, device=logits_SV.device)
    q_GM = torch.tensor(values, dtype=logits_SV.dtype, device=logits_SV.device)
    ids_SM = ids_GM[group_S]
    empty_G = torch.tensor([not q for q in q_g], device=logits_SV.device)
    others_S = torch.logsumexp(logits_SV.scatter(1, ids_SM, -torch.inf), 1) - torch.logsumexp(logits_SV, 1)
    others_S = torch.where(empty_G[group_S], 0.0, others_S)  # nothing mapped: all of it is rest
    cells_SM = torch.cat([logp_SV.gather(1, ids_SM), others_S[:, None]], 1)
    p_GM = group_logmean(cells_SM, group_S, len(q_g))
    zero = q_GM == 0
    return (torch.xlogy(q_GM, q_GM) - q_GM * torch.where(zero, 0.0, p_GM)).sum(1)
