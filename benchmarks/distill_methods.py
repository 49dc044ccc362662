"""The methods that benchmarks/distill.py compares: each is a loss of one batch, from what a run has stored.

Every loss is whole: it has the cross-entropy with the text in it, with the weight of the method's paper where that trains on
texts, else a half. The divergences on the student's own vocabulary share one mix, KD of 0.8 and cross-entropy of 0.2 (the
omega of partial KL). Losses of rows are means over the scored rows of a batch, losses of documents are means over a
document's rows, chunks or groups and then over the documents.

Letters: B documents, L positions, V student vocabulary, R rows that count, S, T rows of one document on either side, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.losses import cdm as cdm_losses
from engine.losses import gold as gold_losses
from engine.losses.align import Alignment, TokenSpans, align
from engine.losses.alm import TAU, alm, merge_at_spaces
from engine.losses.bytes_head import ByteHead, byte_loss, byte_rows
from engine.losses.dskd import DSKD, ModelStates
from engine.losses.multilevel import multilevel_ot
from engine.losses.partial import partial_kl
from engine.losses.sampled import sampled_ce
from engine.losses.sparse import forward_kl, jsd, reverse_kl
from engine.losses.strings import ids_of
from engine.losses.uld import uld
from engine.reader.targets import Targets

MIX = 0.8  # of the divergences; 1 - MIX is the cross-entropy's
CANDIDATES = 5  # of partial KL; its published runs have 1 to 5
CDM_TOP = 16  # stored tokens that CDM maps, of the teacher and of the student; all 64 would take 4 times as long
_SPACE = b" \n\t\r\v\f"


@dataclass(frozen=True)
class View:
    """One batch as the student sees it. Row i predicts token i, after input_ids_BL[.., : i + 1]."""

    batch: dict[str, Any]
    input_ids_BL: Tensor
    hidden_BLD: Tensor  # behind the final norm
    head: Callable[[Tensor], Tensor]  # hidden states [.., D] -> logits [.., V]

    @cached_property
    def logits_BLV(self) -> Tensor:
        """Of all positions, prompts and padding too."""
        return self.head(self.hidden_BLD)

    @cached_property
    def _asked_NV(self) -> Tensor:
        return self.head(self.hidden_BLD[self.batch["loss_mask"]])

    def logits_at(self, mask_BL: Tensor) -> Tensor:
        """[R, V] of these positions, all of them asked for. A vocabulary of 262,144 makes a gigabyte of 1,000 positions'
        logits, and half of those are prompts': these are worked out only where a method wants `logits_BLV`."""
        if "logits_BLV" in self.__dict__:
            return self.logits_BLV[mask_BL]
        asked_BL = self.batch["loss_mask"]
        assert not bool((mask_BL & ~asked_BL).any())
        return self._asked_NV[mask_BL[asked_BL]]

    def ce(self) -> Tensor:
        """Cross-entropy with the text, mean over the positions asked for."""
        mask = self.batch["loss_mask"]
        return cross_entropy(self.logits_at(mask), self.batch["token_ids"][mask])

    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """logits [R, V], ids and logps [R, K], tail_logp [R] of the scored positions."""
        mask = self.batch["mask"]
        return (self.logits_at(mask), *(self.batch[key][mask] for key in ("ids", "logps", "tail_logp")))


@dataclass
class Context:
    """What a method needs beside the batches: both vocabularies, the run's folder, modules trained beside the student."""

    out: Path
    student: Vocabulary
    teacher: Vocabulary
    targets: Targets
    model: Any
    module: torch.nn.Module | None = None
    _aligned: dict[tuple[int, bool], Alignment] = field(default_factory=dict)  # of a document: it does not change

    @cached_property
    def student_bytes(self) -> list[bytes]:
        return [piece or b"" for piece in self.student.token_bytes]

    @cached_property
    def teacher_bytes(self) -> list[bytes]:
        return [piece or b"" for piece in self.teacher.token_bytes]

    @cached_property
    def specials(self) -> dict[int, int]:
        """Teacher id -> student id of the end token: the one special that a text has."""
        assert self.teacher.eos_id is not None and self.student.eos_id is not None
        return {self.teacher.eos_id: self.student.eos_id}

    @cached_property
    def space_V(self) -> Tensor:
        """bool: tokens that begin with white space or are special, as the teacher's `space_logp` counts them."""
        return torch.tensor(
            [piece is None or piece[:1] in _SPACE and piece != b"" for piece in self.student.token_bytes]
        )

    @cached_property
    def student_id_of(self) -> dict[bytes, int]:
        return ids_of(self.student_bytes)

    @cached_property
    def match_W(self) -> Tensor:
        return gold_losses.matched_ids(self.teacher_bytes, self.student_bytes, self.specials)

    def alignment(self, b: int, batch: dict[str, Any], *, merged: bool) -> Alignment:
        """Chunks of document b; merged: joined until the teacher expects a space (ALM)."""
        key = (int(batch["doc_row"][b]), merged)
        if key not in self._aligned:
            student, teacher = document(b, batch), document(b, batch["teacher"])
            found = align(
                TokenSpans.teacher(teacher["byte_end"], teacher["roles"], teacher["mask"]),
                TokenSpans.student(student["byte_end"], student["flags"], student["loss_mask"]),
            )
            if merged:
                found = merge_at_spaces(found, teacher["space_logp"], teacher["mask"], len(student["flags"]))
            self._aligned[key] = found
        return self._aligned[key]


Loss = Callable[[View, Context], Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """loss: of one batch, nats. product and beside: what the reader reads. needs: product -> the stored columns that the loss
    takes from it, which is what it costs on disk (the text's own tokens, masks and byte ends are not counted)."""

    title: str
    loss: Loss
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    product: str = "small"
    run: str = "topk"
    make_module: Callable[[Any, int], torch.nn.Module] | None = (
        None  # (context, hidden size), trained beside the student
    )

    @property
    def beside(self) -> tuple[str, ...]:
        return tuple(product for product in self.needs if product != self.product)


def document(b: int, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of document b without its padding."""
    n = int(batch["lengths"][b])
    return {key: x[b, :n] for key, x in batch.items() if isinstance(x, Tensor) and x.dim() >= 2}


def documents(view: View) -> Iterator[tuple[int, Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """(b, logits [S, V], student's tensors, teacher's tensors) of every document."""
    for b, n in enumerate(view.batch["lengths"].tolist()):
        yield b, view.logits_BLV[b, :n], document(b, view.batch), document(b, view.batch["teacher"])


def mean_of(parts: list[Tensor]) -> Tensor:
    """Mean over documents of the mean over a document's terms; documents without any have no part in it."""
    return torch.stack([part.mean() for part in parts if part.numel()]).mean()


# ---- on the student's own vocabulary ----


def ce_loss(view: View, _: Context) -> Tensor:
    return view.ce()


def forward_kl_loss(view: View, _: Context) -> Tensor:
    return MIX * forward_kl(*view.rows()).mean() + (1 - MIX) * view.ce()


def reverse_kl_loss(view: View, _: Context) -> Tensor:
    return MIX * reverse_kl(*view.rows(), empty_tail_logp=math.log(1e-6)).mean() + (1 - MIX) * view.ce()


def jsd_loss(view: View, _: Context) -> Tensor:
    return MIX * jsd(*view.rows()).mean() + (1 - MIX) * view.ce()


def partial_kl_loss(view: View, _: Context) -> Tensor:
    gold_R = view.batch["token_ids"][view.batch["mask"]]
    return partial_kl(*view.rows(), gold_R, omega=MIX, candidates=CANDIDATES).mean()


def sampled_ce_loss(view: View, context: Context) -> Tensor:
    mask, draws = view.batch["mask"], context.targets.draws
    assert draws is not None
    drawn = sampled_ce(view.logits_at(mask), view.batch["ids"][mask], view.batch["counts"][mask], draws)
    return MIX * drawn.mean() + (1 - MIX) * view.ce()


# ---- on the teacher's vocabulary or on bytes ----


def alm_loss(view: View, context: Context) -> Tensor:
    """CE + tau * ALM. At tau = 100 the gradient of ALM in a chunk's log-probability is (l_T / l_S - 1) / tau: the factor
    gives it the size of the cross-entropy's, which is what the paper's weighting by gradient sizes is for."""
    parts = []
    for b, logits_SV, student, teacher in documents(view):
        chunks = context.alignment(b, view.batch, merged=True)
        statistics = (teacher["gold_logp"], teacher["space_logp"], teacher["mask"])
        parts.append(alm(logits_SV, student["token_ids"], *statistics, context.space_V.to(logits_SV.device), chunks))
    return TAU * mean_of(parts) + view.ce()


def uld_loss(view: View, _context: Context) -> Tensor:
    parts = [
        uld(logits_SV[student["loss_mask"]], teacher["logps"][teacher["mask"]], teacher["tail_logp"][teacher["mask"]])
        for _, logits_SV, student, teacher in documents(view)
    ]
    return 1.5 * mean_of(parts) + view.ce()


def multilevel_ot_loss(view: View, _context: Context) -> Tensor:
    parts = []
    for _, logits_SV, student, teacher in documents(view):
        keys = ("ids", "logps", "logz", "logit_std", "logz_scaled")
        ids, logps, logz, std, logz_scaled = (teacher[key][teacher["mask"]] for key in keys)
        parts.append(multilevel_ot(logits_SV[student["loss_mask"]], ids, logps, logz, std, logz_scaled))
    return 1.5 * mean_of(parts) + view.ce()


def cdm_loss(view: View, context: Context) -> Tensor:
    parts = []
    for _, logits_SV, student, teacher in documents(view):
        mask, keep = teacher["mask"], student["loss_mask"]
        logp_TK = teacher["logps"][mask]
        tail_T = torch.logaddexp(teacher["tail_logp"][mask], logp_TK[:, CDM_TOP:].logsumexp(1))
        rows = cdm_losses.TeacherInputs(
            teacher["token_ids"][mask],
            teacher["ids"][mask, :CDM_TOP],
            logp_TK[:, :CDM_TOP],
            tail_T,
            teacher["entropy"][mask],
        )
        spelled = (context.teacher_bytes, context.student_bytes, context.student_id_of)
        parts.append(cdm_losses.cdm(logits_SV[keep], student["token_ids"][keep], rows, *spelled, context.specials))
    return 0.5 * mean_of(parts) + 0.5 * view.ce()


def gold_loss(view: View, context: Context) -> Tensor:
    parts = []
    for b, logits_SV, student, teacher in documents(view):
        rows = gold_losses.TeacherInputs(
            *(teacher[key] for key in ("token_ids", "ids", "logps", "tail_logp", "gold_logp"))
        )
        chunks = context.alignment(b, view.batch, merged=False)
        parts.append(
            gold_losses.gold(logits_SV, student["token_ids"], rows, context.match_W.to(logits_SV.device), chunks)
        )
    return 0.5 * mean_of(parts) + 0.5 * view.ce()


def make_byte_head(context: Context, hidden_size: int) -> torch.nn.Module:
    return ByteHead(hidden_size)


def bld_loss(view: View, context: Context) -> Tensor:
    batch, total, count = view.batch, view.hidden_BLD.new_zeros(()), 0
    assert context.module is not None
    end = context.student.eos_id
    for b, n in enumerate(batch["lengths"].tolist()):
        student, rows = document(b, batch), document(b, batch["bytes"])
        first_S, length_S = byte_rows(
            student["token_ids"], student["byte_end"], rows["token_ids"], rows["byte_end"], end
        )
        stored = (rows["token_ids"], rows["ids"], rows["logps"], rows["tail_logp"])
        total = total + byte_loss(context.module(view.hidden_BLD[b, :n]), first_S, length_S, *stored).sum()
        count += n
    return total / count + view.ce()


def make_dskd(context: Context, hidden_size: int) -> torch.nn.Module:
    head = _teacher_head(context)
    sums, count = 0.0, 0
    for found in Targets(context.out, "hidden").batches(64):
        h = found["hidden"][found["mask"]].double()
        sums, count = sums + h.square().sum().item(), count + h.numel()
    return DSKD(
        hidden_size, head["embedding"].shape[1], math.sqrt(sums / count), head["embedding"].double().std().item()
    )


def dskd_loss(view: View, context: Context) -> Tensor:
    head, module = _teacher_head(context), context.module
    assert isinstance(module, DSKD)
    table = context.model.get_input_embeddings().weight, context.model.get_output_embeddings().weight
    total, count = view.hidden_BLD.new_zeros(()), 0
    for b, n in enumerate(view.batch["lengths"].tolist()):
        student, seen = document(b, view.batch), document(b, view.batch["hidden"])
        begin = context.teacher.eos_id if context.teacher.bos_id is None else context.teacher.bos_id
        read = torch.cat([seen["token_ids"].new_tensor([begin]), seen["token_ids"][:-1]])
        teacher = ModelStates(seen["hidden"], read, seen["token_ids"], seen["mask"], head["embedding"], head["lm_head"])
        own = ModelStates(
            view.hidden_BLD[b, :n], view.input_ids_BL[b, :n], student["token_ids"], student["loss_mask"], *table
        )
        terms = module(own, teacher, view.logits_BLV[b, :n])
        total = total + terms.t2s_ce_S.sum() + terms.t2s_kd_S.sum() + terms.s2t_kd_T.sum()
        count += len(terms.t2s_ce_S)
    return 0.5 * total / count + 0.5 * view.ce()


def _teacher_head(context: Context) -> dict[str, Tensor]:
    key = str(context.out)
    if key not in _HEADS:
        tensors = load_file(context.out / "_engine" / "teacher_head.safetensors")
        _HEADS[key] = {name: tensor.float().to(context.model.device) for name, tensor in tensors.items()}
    return _HEADS[key]


_HEADS: dict[str, dict[str, Tensor]] = {}

_TOP = ("topk_ids", "topk_logps", "tail_logp")
_SAMPLES = ("sample_sizes", "sample_ids", "sample_counts")

METHODS: dict[str, Method] = {
    "ce": Method("cross-entropy only", ce_loss),
    "forward_kl": Method("forward KL", forward_kl_loss, {"small": _TOP}),
    "reverse_kl": Method("reverse KL", reverse_kl_loss, {"small": _TOP}),
    "jsd": Method("JSD", jsd_loss, {"small": _TOP}),
    "partial_kl": Method(f"partial KL, {CANDIDATES} tokens", partial_kl_loss, {"small": _TOP}),
    "sampled_ce": Method("RS, sampled tokens", sampled_ce_loss, {"small": _SAMPLES}, run="sample"),
    "alm": Method("ALM", alm_loss, {"teacher": ("gold_logp", "space_logp")}),
    "bld": Method("BLD", bld_loss, {"bytes": _TOP}, make_module=make_byte_head),
    "uld": Method("ULD", uld_loss, {"teacher": _TOP[1:]}),
    "multilevel_ot": Method(
        "MultiLevelOT", multilevel_ot_loss, {"teacher": (*_TOP[:2], "logz", "logit_std", "logz_scaled")}
    ),
    "cdm": Method("CDM", cdm_loss, {"teacher": (*_TOP, "entropy")}),
    "gold": Method("GOLD", gold_loss, {"teacher": (*_TOP, "gold_logp")}),
    "dskd": Method("DSKD", dskd_loss, {"hidden": ("hidden",)}, make_module=make_dskd),
    "own_ce": Method("teacher's tokenizer: cross-entropy", ce_loss, product="teacher"),
    "own_kl": Method("teacher's tokenizer: forward KL", forward_kl_loss, {"teacher": _TOP}, product="teacher"),
}


def make_context(out: Path, teacher: Path, tokenizer: Path, targets: Targets, model: Any) -> Context:
    student = load_vocabulary(str(tokenizer))
    return Context(out, student, load_vocabulary(str(teacher)), targets, model)
