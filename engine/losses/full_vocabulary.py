"""Forward KL over the whole vocabulary, from hidden states of both sides: no top-k and no tail.

For a student whose tokens are the teacher's own. The teacher's distributions are made again, some rows at a time, from its
stored states and its lm_head; they take D numbers a position on disk instead of V.

Letters: R rows (positions that count), r rows of one chunk, D and E hidden sizes of student and teacher, V vocabulary of the
student, U of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .chunked_head import chunked
from .logmath import wide

Head = Callable[[torch.Tensor], torch.Tensor]
"""States [r, D] -> logits [r, V]."""


def full_kl(logits_RV: torch.Tensor, teacher_logits_RU: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher || student) = sum_v t_v (log t_v - log s_v) over the whole vocabulary: [R], nats.

    t = softmax(teacher_logits / T), s = softmax(logits / T); the usual factor T^2 is left to the caller. Ids where the teacher
    has -inf (rows of an lm_head without a token) give no term. The student is normalised over all its V rows. V may be above U
    (the same tokens, more spare rows): the teacher has no mass there. +inf where the student has exactly none of what the
    teacher has some of.

    Logits float32, bfloat16 or float16: computed in float32 (float64 for float64). The teacher gets no gradient.
    Raises ValueError for a temperature that is not above 0, and where the teacher has logits for ids that the student has not.
    Source: arXiv 1503.02531.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: wanted a number > 0")
    n, V = logits_RV.shape
    teacher_RU = teacher_logits_RU.detach()
    if teacher_RU.shape[1] > V:
        if not bool((teacher_RU[:, V:] == -torch.inf).all()):
            raise ValueError(
                f"the teacher has logits for {teacher_RU.shape[1]} tokens, the student for {V}: not one vocabulary; a student "
                "with other tokens learns from its own product"
            )
        teacher_RU = teacher_RU[:, :V]
    student_RV = (wide(logits_RV) / temperature).log_softmax(1)
    teacher_RU = (wide(teacher_RU).to(student_RV.dtype) / temperature).log_softmax(1)
    none_RU = teacher_RU == -torch.inf  # filled before, not after: 0 * inf is NaN, used or not
    gap_RU = teacher_RU.masked_fill(none_RU, 0.0) - student_RV[:, : teacher_RU.shape[1]].masked_fill(none_RU, 0.0)
    return (teacher_RU.exp() * gap_RU).sum(1)


def full_kl_of_states(
    hidden_RD: torch.Tensor,
    head: Head,
    teacher_hidden_RE: torch.Tensor,
    teacher_head: Head,
    *,
    temperature: float = 1.0,
    rows_per_chunk: int = 256,
) -> torch.Tensor:
    """`full_kl(head(hidden_RD), teacher_head(teacher_hidden_RE))` [R]: the same values and gradients, no [R, V] as a whole.

    hidden_RD          the student's last states (behind its final norm), with their gradient; head: its lm_head (gradients, too)
    teacher_hidden_RE  batch["hidden"] of the same rows, bfloat16; teacher_head: `engine.reader.teacher_head(out)`, or any other
                       function of states. No gradient goes there

    Memory: 7.5 * rows_per_chunk * V * 4 bytes whatever R is (counted over all tensors alive, float32), but not less than about 5
    times the gradient of the head's weight. See `chunked`: the price is both heads once more in the backward pass. Raises
    ValueError as `full_kl` and `chunked` do.
    """
    return chunked(
        partial(_of_chunk, teacher_head=teacher_head, temperature=temperature),
        hidden_RD,
        head,
        teacher_hidden_RE.detach(),
        rows_per_chunk=rows_per_chunk,
    )


def _of_chunk(
    logits_rV: torch.Tensor, teacher_hidden_rE: torch.Tensor, teacher_head: Head, temperature: float
) -> torch.Tensor:
    with torch.no_grad():
        teacher_logits_rU = teacher_head(teacher_hidden_rE)
    return full_kl(logits_rV, teacher_logits_rU, temperature)
