"""The methods of benchmarks/real_distill.py: right targets, wrong ones on purpose, and heuristics in use.

Beside those of distill_methods.py:
  fast, budget1, budget2, budget6   forward KL on targets of other regimes and budgets: what does an error of them cost?
  renormalised                      the stored top-k alone, made to sum to 1, as most public code has it
  shuffled                          all but the likeliest stored tokens change places: a wrong target, on purpose
  first_token                       the teacher's top-k by string: each of its tokens counts for the student token that
                                    begins it, where both sides begin a token, renormalised: a heuristic in use
  unconditioned                     the same at every position: inside a teacher token stands what the teacher said before
                                    that token, without the condition on the bytes between

A wrong target is a row of (ids, log-probabilities, tail) like a stored one, so that its error can be measured like one.
Letters: B documents, L positions, R rows that count, V student vocabulary, K stored tokens, W teacher ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.distill_methods import METHODS, MIX, Context, Loss, Method, View, document
from engine.bpe.vocabulary import load_vocabulary
from engine.losses.sparse import forward_kl


@dataclass(frozen=True, slots=True)
class Rows:
    """Targets of the rows of a batch that `mask_BL` names. Padding has log-probability -inf."""

    mask_BL: Tensor
    ids_RK: Tensor
    logp_RK: Tensor
    tail_logp_R: Tensor


TargetsOf = Callable[[dict[str, Any], Context], Rows]


def stored(batch: dict[str, Any], _: Context) -> Rows:
    mask = batch["mask"]
    return Rows(mask, *(batch[key][mask] for key in ("ids", "logps", "tail_logp")))


def drawn(batch: dict[str, Any], context: Context) -> Rows:
    """Shares of the draws."""
    assert context.targets.draws is not None
    mask = batch["mask"]
    logp_RK = (batch["counts"][mask] / context.targets.draws).log()
    return Rows(mask, batch["ids"][mask], logp_RK, torch.full((len(logp_RK),), -math.inf))


def renormalised(batch: dict[str, Any], context: Context) -> Rows:
    rows = stored(batch, context)
    logp_RK = rows.logp_RK - rows.logp_RK.logsumexp(1, keepdim=True)
    return replace(rows, logp_RK=logp_RK, tail_logp_R=torch.full_like(rows.tail_logp_R, -math.inf))


def shuffled(batch: dict[str, Any], context: Context) -> Rows:
    """The likeliest token stays; behind it probabilities go down the row as they are, and the tokens come in another order."""
    rows = stored(batch, context)
    padding_RK = rows.logp_RK == -math.inf
    noise_RK = torch.rand(rows.ids_RK.shape, generator=torch.Generator().manual_seed(int(rows.ids_RK.sum()) % 2**31))
    noise_RK[:, 0], noise_RK[padding_RK] = -1.0, 2.0  # first stays first, and padding last
    return replace(rows, ids_RK=rows.ids_RK.gather(1, noise_RK.argsort(1)))


@cache
def first_tokens(student: str, teacher: str, specials: tuple[tuple[int, int], ...]) -> Tensor:
    """int64 [W]: the student's first token of each teacher token's text; -1 where it is no text. Both by their folders;
    specials: pairs of a teacher's and a student's id."""
    pieces = load_vocabulary(teacher).token_bytes
    texts = [(i, piece.decode()) for i, piece in enumerate(pieces) if piece and _is_text(piece)]
    tokenizer = AutoTokenizer.from_pretrained(student)
    encoded = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
    first_W = torch.full((len(pieces),), -1)
    for (i, _), ids in zip(texts, encoded, strict=True):
        if ids:  # SmolLM2's has no token for some bytes, and drops them
            first_W[i] = ids[0]
    for teacher_id, student_id in specials:
        first_W[teacher_id] = student_id
    return first_W


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def by_string(batch: dict[str, Any], context: Context, *, everywhere: bool) -> Rows:
    """Rows of the teacher's own tokens, each counted for the student's first token of it. everywhere False: only where both
    sides begin a token."""
    first_W = first_tokens(context.student.name, context.teacher.name, tuple(context.specials.items()))
    mask_BL, ids, logps = torch.zeros_like(batch["mask"]), [], []
    for b, n in enumerate(batch["lengths"].tolist()):
        student, teacher = document(b, batch), document(b, batch["teacher"])
        begin_S, begin_T = (
            torch.cat([side["byte_end"].new_zeros(1), side["byte_end"][:-1]]) for side in (student, teacher)
        )
        at_S = torch.searchsorted(begin_T, begin_S, right=True) - 1  # the last teacher row that begins there or before
        taken_S = student["mask"] & teacher["mask"][at_S] & (everywhere | (begin_T[at_S] == begin_S))
        mask_BL[b, :n] = taken_S
        ids_RK, logp_RK = (teacher[key][at_S[taken_S]] for key in ("ids", "logps"))
        to_RK = torch.where(logp_RK > -math.inf, first_W[ids_RK.clamp(min=0)], -1)
        ids.append(to_RK)
        logps.append(logp_RK.masked_fill(to_RK < 0, -math.inf))
    ids_RK, logp_RK = _merged(torch.cat(ids), torch.cat(logps))
    logp_RK = logp_RK - logp_RK.logsumexp(1, keepdim=True)  # the heuristic's own renormalisation
    return Rows(mask_BL, ids_RK, logp_RK, torch.full((len(ids_RK),), -math.inf))


def _merged(ids_RK: Tensor, logp_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Each token once a row, with the sum of its probabilities, the likeliest first."""
    sorted_RK, order_RK = ids_RK.sort(1)
    p_RK = logp_RK.exp().gather(1, order_RK)
    new_RK = torch.ones_like(sorted_RK, dtype=torch.bool)
    new_RK[:, 1:] = sorted_RK[:, 1:] != sorted_RK[:, :-1]
    sums_RK = torch.zeros_like(p_RK).scatter_add_(1, new_RK.cumsum(1) - 1, p_RK)
    first_RK = torch.full_like(sorted_RK, -1).scatter_(1, new_RK.cumsum(1) - 1, sorted_RK)
    p_RK, order_RK = sums_RK.sort(1, descending=True)
    return first_RK.gather(1, order_RK), p_RK.log()


def first_token(batch: dict[str, Any], context: Context) -> Rows:
    return by_string(batch, context, everywhere=False)


def unconditioned(batch: dict[str, Any], context: Context) -> Rows:
    return by_string(batch, context, everywhere=True)


WRONG: dict[str, TargetsOf] = {
    "renormalised": renormalised,
    "shuffled": shuffled,
    "first_token": first_token,
    "unconditioned": unconditioned,
}


def kl_on(targets_of: TargetsOf) -> Loss:
    """Forward KL on such targets with cross-entropy beside it, as distill_methods.py has it on right ones."""

    def loss(view: View, context: Context) -> Tensor:
        rows = targets_of(view.batch, context)
        kl_R = forward_kl(view.logits_at(rows.mask_BL), rows.ids_RK, rows.logp_RK, rows.tail_logp_R)
        return MIX * kl_R.mean() + (1 - MIX) * view.ce()

    return loss


KL = METHODS["forward_kl"]
_TEACHER = {"teacher": ("topk_ids", "topk_logps")}
OURS: dict[str, Method] = {
    "untrained": replace(METHODS["ce"], title="not trained"),
    **{name: METHODS[name] for name in ("ce", "forward_kl", "partial_kl", "alm", "uld", "gold")},
    "draws": replace(METHODS["sampled_ce"], title="50 draws", run="draws"),
    "fast": replace(KL, title="forward KL, fast targets", run="fast"),
    **{f"budget{n}": replace(KL, title=f"forward KL, budget {n}", run=f"budget{n}") for n in (1, 2, 6)},
    "renormalised": replace(KL, title="forward KL, top-k renormalised", loss=kl_on(renormalised)),
    "shuffled": replace(KL, title="forward KL, shuffled behind the first", loss=kl_on(shuffled)),
    "first_token": Method("first token by string", kl_on(first_token), _TEACHER),
    "unconditioned": Method("first token by string, everywhere", kl_on(unconditioned), _TEACHER),
}
OURS = {name: replace(method, run="beam" if method.run == "topk" else method.run) for name, method in OURS.items()}
COMPARED = ("ce", "forward_kl", "fast", "draws", "partial_kl", "alm", "uld", "gold", "first_token")
ERRORS = ("budget1", "budget2", "budget6", "renormalised", "shuffled", "unconditioned")
"""Trained like forward_kl, at its rate: the target is all that differs. `fast` is budget 0 (in COMPARED, with its own rate)."""
MEASURED = ("forward_kl", "fast", "draws", "first_token", *ERRORS)
"""Methods whose targets are distributions over the student's vocabulary: their error can be measured."""


def error_against(deepest: dict[str, Any], batch: dict[str, Any], targets_of: TargetsOf, context: Context) -> Tensor:
    """Total variation [R] of a batch's targets to the deepest search's, over the stored tokens and the tail as one outcome (a
    lower bound), where both have a row."""
    best, rows = stored(deepest, context), targets_of(batch, context)
    both_BL = best.mask_BL & rows.mask_BL
    p_RV, q_RV = (_dense(side, both_BL, len(context.student.token_bytes)) for side in (best, rows))
    known_RV = (p_RV > 0) & (q_RV > 0)
    moved_RV = torch.where(known_RV, (p_RV - q_RV).abs(), 0.0).sum(1)
    rest = [torch.where(known_RV, 0.0, side).sum(1) for side in (p_RV, q_RV)]
    return 0.5 * (moved_RV + (rest[0] - rest[1]).abs())


def _dense(rows: Rows, both_BL: Tensor, size: int) -> Tensor:
    """Probabilities [R, V + 1] of the rows named, the tail behind all tokens."""
    keep_R = both_BL[rows.mask_BL]
    ids_RK, p_RK = rows.ids_RK[keep_R], rows.logp_RK[keep_R].exp()
    ids_RK = torch.where(p_RK > 0, ids_RK, size)
    dense_RV = torch.zeros(len(ids_RK), size + 1).scatter_add_(1, ids_RK, p_RK)
    dense_RV[:, size] += rows.tail_logp_R[keep_R].exp()
    return dense_RV
