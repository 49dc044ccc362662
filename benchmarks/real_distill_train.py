"""One training of benchmarks/real_distill.py, and what is measured of its student.

Forward and backward pass are in bfloat16 where torch's autocast has it so and the processor multiplies it fast, else float32;
weights and optimizer in float32; what is measured of a trained student is float32, but for greedy generation, as in training.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.distill_measure import begin_id, exact_answers
from benchmarks.distill_methods import Context, View, make_context
from benchmarks.real_distill_data import HAS_BFLOAT16, RUNS, Example, Splits, answer_batch, scored, training_precision
from benchmarks.real_distill_methods import OURS, WRONG, drawn, error_against, stored
from engine.losses.sparse import forward_kl
from engine.reader.collate import student_inputs
from engine.reader.targets import Targets

BATCH = 4
ANSWER_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are, and how much of them: all that a row of the table depends on, beside its key and the code."""

    folder: Path
    text: str
    student: str
    model: Path
    teacher: Path
    splits: Splits
    epochs: int

    @property
    def scored(self) -> str:
        """Name of the folder of scoring runs: of the text, the student, the number of documents and the teacher."""
        return f"{self.text}-{self.student}-{len(self.splits.train)}-{self.teacher.name}"

    def run(self, name: str) -> Path:
        """The output of a scoring run of the training split, or ("held") of the held-out one."""
        examples = self.splits.held if name == "held" else self.splits.train
        targets = RUNS["beam" if name == "held" else name]
        return scored(self.folder / self.scored, name, examples, self.teacher, {"small": self.model}, targets)

    def kept(self, name: str, rate: float) -> Path:
        """Weights of the best training of a method so far, from which its figures are taken."""
        return self.folder / "kept" / f"{self.scored}-{self.epochs}-{name}" / f"{rate:g}.safetensors"

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(self.model)


def trained(place: Place, name: str, seed: int, rate: float) -> tuple[PreTrainedModel, float]:
    """A student from its published weights by so many passes over the training split, and seconds per step."""
    method = OURS[name]
    out = place.run(method.run)
    targets = Targets(out, method.product, beside=method.beside)
    model, tokenizer = place.load()
    begin = begin_id(tokenizer)
    context = make_context(out, place.teacher, place.model, targets, model)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        with training_precision():
            return model.lm_head(hidden).float()

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    steps = math.ceil(len(place.splits.train) / BATCH) * place.epochs
    began = time.perf_counter()
    model.train()
    batches = (batch for epoch in range(place.epochs) for batch in targets.batches(BATCH, seed=seed, epoch=epoch))
    for step, batch in enumerate(batches):
        warm = max(1, steps // 10)
        cosine = 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warm, cosine)
        input_ids_BL = student_inputs(batch, begin)
        with training_precision():
            hidden_BLD = model.model(input_ids=input_ids_BL, use_cache=False).last_hidden_state
        loss = method.loss(View(batch, input_ids_BL, hidden_BLD, head), context)
        if not loss.isfinite():
            raise SystemExit(f"{name}, seed {seed}, rate {rate:g}: the loss of step {step} is {loss.item()}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return model, (time.perf_counter() - began) / steps


def keep(model: PreTrainedModel, path: Path) -> None:
    """Weights for `kept_model`; those that the same method kept before go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.iterdir():
        old.unlink()
    save_file({name: tensor.contiguous() for name, tensor in model.named_parameters()}, path)


def kept_model(place: Place, path: Path) -> PreTrainedModel:
    model, _ = place.load()
    own, found = dict(model.named_parameters()), load_file(path)
    if own.keys() != found.keys():
        raise SystemExit(f"{path}: other weights than the student's; remove it")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    return model.eval()


# ---- what is measured ----


def valid_bits_per_byte(place: Place, model: PreTrainedModel) -> float:
    """On the split that chooses rates, under the training's own autocast."""
    _, tokenizer = place.load()
    with training_precision():
        return bits_per_byte(model, tokenizer, place.splits.valid)


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> float:
    size = sum(len(example.completion.encode()) for example in examples)
    return nats_of_answers(model, tokenizer, examples) / math.log(2) / size


def nats_of_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> float:
    """-log of the probability of the completions and the ends behind them; prompts are read, not counted."""
    total, by_length = 0.0, sorted(examples, key=lambda example: len(example.text))
    with torch.inference_mode():
        for chunk in (by_length[i : i + BATCH] for i in range(0, len(by_length), BATCH)):
            ids_BL, labels_BL = answer_batch(tokenizer, chunk)
            logits = model(input_ids=ids_BL, use_cache=False).logits
            total += cross_entropy(logits.float().flatten(0, 1), labels_BL.flatten(), reduction="sum").item()
    return total


def kl_to_teacher(model: PreTrainedModel, out: Path, begin: int) -> float:
    """Mean over the scored positions of an output, nats, by its stored tokens and tails."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in Targets(out, "small").batches(BATCH):
            mask = batch["mask"]
            logits_RV = model(input_ids=student_inputs(batch, begin), use_cache=False).logits[mask]
            kl_R = forward_kl(logits_RV, batch["ids"][mask], batch["logps"][mask], batch["tail_logp"][mask])
            total, count = total + kl_R.sum().item(), count + len(kl_R)
    return total / count


def figures(
    place: Place, model: PreTrainedModel, *, with_kl: bool = True, with_answers: bool = True
) -> dict[str, float]:
    """Of a student on problems that no training saw. Its weights may be bfloat16 after answers."""
    _, tokenizer = place.load()
    found = {"bits_per_byte": bits_per_byte(model, tokenizer, place.splits.held)}
    if with_kl:
        found["kl_nats"] = kl_to_teacher(model, place.run("held"), begin_id(tokenizer))
    if with_answers and place.splits.solve:
        found["solved"] = exact_answers(
            model.bfloat16() if HAS_BFLOAT16 else model, tokenizer, place.splits.solve, longest=ANSWER_TOKENS
        )
    return found


def target_error(place: Place, name: str) -> float:
    """Mean total variation of what a method is trained on to the search with budget 6, over the training split."""
    targets_of = drawn if name == "draws" else WRONG.get(name, stored)
    out = place.run(OURS[name].run)
    beside = ("teacher",) if name in ("first_token", "unconditioned") else ()
    targets, deepest = Targets(out, "small", beside=beside), Targets(place.run("budget6"), "small")
    model, _ = place.load()
    context: Context = make_context(out, place.teacher, place.model, targets, model)
    sums, count = 0.0, 0
    for batch, best in zip(targets.batches(BATCH), deepest.batches(BATCH), strict=True):
        error_R = error_against(best, batch, targets_of, context)
        sums, count = sums + error_R.sum().item(), count + len(error_R)
    return sums / count
