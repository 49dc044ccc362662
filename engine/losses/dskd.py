"""Dual-space distillation with attention across the models (DSKD with CMA, version 1), on stored hidden states.

Source: arXiv 2406.17328 and its released code. One document at a time: its attention is over one document anyhow, and
nothing here depends on what else is in the batch. Where the released code divides by standard deviations of the batch at
hand, padding included, these are constants of the data set. Version 2 and its exact alignment (ETA) are left out.

Letters: L positions of a side (S the student's, T the teacher's), d and D hidden sizes of student and teacher, E either,
V vocabulary of a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, kl_div

from .chunked_head import chunked


@dataclass(frozen=True, slots=True)
class ModelStates:
    """One model's view of one document. Row i predicts token i.

    hidden_LE     float, behind the final norm; of the student with its gradient, of the teacher the product `hidden`
    input_ids_L   int64, the token that row i read: begin token, then token_ids without the last
    token_ids_L   int64, the token that row i predicts
    mask_L        bool, the rows that count; all others have no part in anything, attention included
    embedding_VE, head_VE   float, the model's input embedding and lm_head (real ids only): never trained here
    bias_V, scale, softcap  what else the model makes its logits with; of the teacher as `teacher_head.safetensors` has them
    """

    hidden_LE: torch.Tensor
    input_ids_L: torch.Tensor
    token_ids_L: torch.Tensor
    mask_L: torch.Tensor
    embedding_VE: torch.Tensor
    head_VE: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    def embeddings(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(of inputs, of predicted tokens), [rows that count, E], without gradient."""
        table = self.embedding_VE.detach()
        return table[self.input_ids_L[self.mask_L]].to(dtype), table[self.token_ids_L[self.mask_L]].to(dtype)

    def logits(self, hidden_LE: torch.Tensor) -> torch.Tensor:
        """Through the detached head, in the head's own precision."""
        logits_LV = (hidden_LE.to(self.head_VE.dtype) @ self.head_VE.detach().T).to(hidden_LE.dtype)
        if self.bias_V is not None:
            logits_LV = logits_LV + self.bias_V.detach().to(logits_LV.dtype)
        if self.scale != 1:
            logits_LV = logits_LV * self.scale
        return self.softcap * torch.tanh(logits_LV / self.softcap) if self.softcap else logits_LV


class Terms(NamedTuple):
    """Unreduced, nats, over the rows that count. The paper's loss of a batch is
    0.5 CE + 0.5 (sum t2s_ce + sum t2s_kd + sum s2t_kd) / (number of student rows), CE the student's own mean."""

    t2s_ce_S: torch.Tensor  # cross-entropy of the teacher's states seen in the student's space
    t2s_kd_S: torch.Tensor  # KL(those states || the student), 0 where not agreed
    s2t_kd_T: torch.Tensor  # KL(teacher || the student's states seen in the teacher's space)
    agreed_S: torch.Tensor  # bool: the likeliest token of t2s is the document's own


class DSKD(torch.nn.Module):
    """The three projections, trained beside the student (published learning rate 1e-3): W_q 2d -> 2D, t2s D -> d, s2t d -> D.

    std_h, std_e: standard deviations of the teacher's stored hidden states and of its embeddings, over the data set; frozen,
    and kept with the weights. Raises ValueError where they are not finite and above 0.
    """

    std_h: torch.Tensor
    std_e: torch.Tensor

    def __init__(self, student_size: int, teacher_size: int, std_h: float, std_e: float) -> None:
        super().__init__()
        if not (0 < std_h < math.inf and 0 < std_e < math.inf):
            raise ValueError(f"std_h {std_h} and std_e {std_e}: wanted finite numbers > 0")
        self.query = torch.nn.Linear(2 * student_size, 2 * teacher_size)
        self.t2s = torch.nn.Linear(teacher_size, student_size)
        self.s2t = torch.nn.Linear(student_size, teacher_size)
        self.register_buffer("std_h", torch.tensor(std_h))
        self.register_buffer("std_e", torch.tensor(std_e))

    def forward(
        self,
        student: ModelStates,
        teacher: ModelStates,
        logits_SV: torch.Tensor,
        temperature: float = 2.0,
        rows_per_chunk: int = 256,
    ) -> Terms:
        """x inputs, y predicted tokens, e embeddings, h hidden states; softmax over the rows that count:

            A = W_q [e_S(x); e_S(y)] ([e_T(x); e_T(y)] / std_e)^T / sqrt(2 D)
            h_t2s = softmax(A) t2s(h_T / std_h + e_T(y) / std_e)     logits through the student's detached head
            h_s2t = softmax(A^T) s2t(h_S)                            logits through the teacher's head
            CE(t2s, y) + 1[argmax t2s = y] KL(t2s.detach || student) + KL(teacher || s2t)

        logits_SV are the student's own, all S rows, with their gradient: the only path of the second term. Both KL divide
        the logits of both sides by the temperature, as the released code does (its further teacher temperature is 1),
        without a factor T^2. They are over full vocabularies; the teacher's is never whole: rows_per_chunk rows at a time.
        Computed in the precision of the projections (float32).

        Raises ValueError where a side has no row that counts, and for a temperature that is not above 0.
        """
        counts = int(student.mask_L.sum()), int(teacher.mask_L.sum())
        if 0 in counts or not temperature > 0:
            raise ValueError(
                f"{counts} rows of student and teacher count, temperature {temperature}: wanted at least 1 row of each, and > 0"
            )
        dtype = self.query.weight.dtype
        in_s, out_s = student.embeddings(dtype)
        in_t, out_t = teacher.embeddings(dtype)
        h_s = student.hidden_LE[student.mask_L].to(dtype)
        h_t = teacher.hidden_LE[teacher.mask_L].detach().to(dtype)
        key = torch.cat([in_t, out_t], 1) / self.std_e
        align_ST = self.query(torch.cat([in_s, out_s], 1)) @ key.T / math.sqrt(key.shape[1])

        t2s_Sd = align_ST.softmax(1) @ self.t2s(h_t / self.std_h + out_t / self.std_e)
        t2s_SV, gold_S = student.logits(t2s_Sd), student.token_ids_L[student.mask_L]
        agreed_S = t2s_SV.argmax(1) == gold_S
        own_SV = logits_SV[student.mask_L].to(dtype)
        t2s_kd_S = _dense_kl(t2s_SV.detach(), own_SV, temperature).masked_fill(~agreed_S, 0.0)

        s2t_TD = align_ST.T.softmax(1) @ self.s2t(h_s)
        to_teacher = partial(_kl_of_states, teacher=teacher, temperature=temperature)
        s2t_kd_T = chunked(to_teacher, s2t_TD, teacher.logits, h_t, rows_per_chunk=rows_per_chunk)
        return Terms(cross_entropy(t2s_SV, gold_S, reduction="none"), t2s_kd_S, s2t_kd_T, agreed_S)


def _kl_of_states(
    s2t_logits_TV: torch.Tensor, h_TD: torch.Tensor, teacher: ModelStates, temperature: float
) -> torch.Tensor:
    return _dense_kl(teacher.logits(h_TD), s2t_logits_TV, temperature)


def _dense_kl(target_RV: torch.Tensor, logits_RV: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(softmax(target / T) || softmax(logits / T)) [R], nats."""
    target_RV, logits_RV = (target_RV / temperature).log_softmax(1), (logits_RV / temperature).log_softmax(1)
    return kl_div(logits_RV, target_RV, reduction="none", log_target=True).sum(1)
