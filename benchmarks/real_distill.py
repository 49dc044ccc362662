"""What stored targets are worth to a real student: python -m benchmarks.real_distill --out FOLDER [--hours 2]

A real teacher (Qwen2.5-Coder 0.5B Instruct) scores GSM8K's answers once (real_distill_data.py); a real student with a
foreign vocabulary (SmolLM2-135M, or Gemma 3 270M by --student gemma) is trained from its own weights by every method, on
the same documents in the same order, all weights, one pass. TARGETSMITH_MODELS names the folder with both (folders qwen,
smollm2, gemma).

The learning rate is chosen for each method by bits per byte on a validation split of its own; then come the other seeds.
Measured on problems that no training saw: bits per byte of the answers, KL(teacher || student) over the student's
vocabulary on beam targets (nats a position), exact answers by greedy generation. Beside that seconds of a step, and stored
bytes a position that the loss reads.

Methods beside those of distill_methods.py:
  fast, budget1, budget2, budget6   forward KL on targets of other regimes and budgets: what does an error of them cost?
  renormalised                      the stored top-k alone, made to sum to 1, as most public code has it
  shuffled                          all but the likeliest stored tokens change places: a wrong target, on purpose
  first_token                       the teacher's top-k by string: each of its tokens counts for the student token that
                                    begins it, where both sides begin a token, renormalised: a heuristic in use, with
                                    the conditioning on the boundary left out

Every figure is kept in FOLDER/runs.parquet, a row for each (student, method, seed, rate); what is there is not run again,
so the command can be stopped at any time. --hours: no training is begun after that. The report is made of the table:
--report prints it and trains nothing.
Letters: B documents, L positions, R rows that count, V student vocabulary, K stored tokens, Vt teacher ids.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.distill_data import stored_bytes
from benchmarks.distill_measure import begin_id, end_id, exact_answers
from benchmarks.distill_methods import METHODS, MIX, Context, Method, View, document, make_context, mean_of
from benchmarks.real_distill_data import RUNS, Example, Splits, gsm8k_splits, scored
from engine.bpe.vocabulary import load_vocabulary
from engine.losses.sparse import forward_kl
from engine.reader.collate import student_inputs
from engine.reader.targets import Targets

MODELS = Path(os.environ.get("TARGETSMITH_MODELS", ""))
RATES = (1e-5, 3e-5, 1e-4)
BATCH = 8


def renormalised_loss(view: View, _: Context) -> Tensor:
    logits_RV, ids_RK, logp_RK, _tail = view.rows()
    logp_RK = logp_RK - logp_RK.logsumexp(1, keepdim=True)
    return (
        MIX * forward_kl(logits_RV, ids_RK, logp_RK, torch.full_like(_tail, -math.inf)).mean() + (1 - MIX) * view.ce()
    )


def shuffled_loss(view: View, _: Context) -> Tensor:
    """The likeliest token stays; behind it probabilities go down the row as they are, and the tokens come in another order."""
    logits_RV, ids_RK, logp_RK, tail_R = view.rows()
    stored_RK = ids_RK >= 0
    noise_RK = torch.rand(ids_RK.shape, generator=torch.Generator().manual_seed(int(ids_RK.sum()) % 2**31))
    noise_RK[:, 0], noise_RK[~stored_RK] = -1.0, 2.0  # first stays first, and padding last
    mixed_RK = ids_RK.gather(1, noise_RK.argsort(1))
    return MIX * forward_kl(logits_RV, mixed_RK, logp_RK, tail_R).mean() + (1 - MIX) * view.ce()


@cache
def first_tokens(student: str, teacher: str, specials: tuple[tuple[int, int], ...]) -> Tensor:
    """int64 [Vt]: the student's first token of each teacher token's text; -1 where it is no text. Both by their folders;
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


def first_token_loss(view: View, context: Context) -> Tensor:
    first_W = first_tokens(context.student.name, context.teacher.name, tuple(context.specials.items()))
    parts = []
    for b, n in enumerate(view.batch["lengths"].tolist()):
        student, teacher = document(b, view.batch), document(b, view.batch["teacher"])
        begins = [torch.cat([side["byte_end"].new_zeros(1), side["byte_end"][:-1]]) for side in (student, teacher)]
        at_S = torch.searchsorted(begins[1], begins[0], right=True) - 1  # the last teacher row that begins there
        both_S = student["mask"] & (begins[1][at_S] == begins[0]) & teacher["mask"][at_S]
        ids_RK, logp_RK = (teacher[key][at_S[both_S]] for key in ("ids", "logps"))
        to_RK = torch.where(ids_RK >= 0, first_W[ids_RK.clamp(min=0)], -1)
        p_RK = torch.where(to_RK >= 0, logp_RK.exp(), 0.0)
        p_RK = p_RK / p_RK.sum(1, keepdim=True).clamp(min=1e-9)  # the heuristic's own renormalisation
        logq_RV = view.logits_BLV[b, :n][both_S].log_softmax(1)
        parts.append(-(p_RK * logq_RV.gather(1, to_RK.clamp(min=0))).sum(1))
    return MIX * mean_of(parts) + (1 - MIX) * view.ce()


KL = METHODS["forward_kl"]
OURS: dict[str, Method] = {
    **{name: METHODS[name] for name in ("ce", "forward_kl", "partial_kl", "alm", "uld", "gold")},
    "draws": replace(METHODS["sampled_ce"], run="draws"),
    "fast": replace(KL, title="forward KL, fast targets", run="fast"),
    **{name: replace(KL, title=f"forward KL, {name}", run=name) for name in ("budget1", "budget2", "budget6")},
    "renormalised": replace(KL, title="forward KL, top-k renormalised", loss=renormalised_loss),
    "shuffled": replace(KL, title="forward KL, shuffled behind the first", loss=shuffled_loss),
    "first_token": Method("first token by string", first_token_loss, {"teacher": ("topk_ids", "topk_logps")}),
}
FIRST = ("ce", "forward_kl", "fast", "draws", "partial_kl", "alm", "uld", "first_token", "gold")


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are, and how much of them: all that a row of the table depends on, beside its key and the code."""

    folder: Path
    student: str
    splits: Splits

    @property
    def model(self) -> Path:
        return MODELS / self.student

    def run(self, name: str) -> Path:
        """The output of a scoring run of the training split, or ("held") of the held-out one."""
        examples = self.splits.held if name == "held" else self.splits.train
        folder = self.folder / f"{self.student}-{len(self.splits.train)}"
        targets = RUNS["beam" if name in ("held", "topk") else name]
        return scored(folder, name, examples, MODELS / "qwen", {"small": self.model}, targets)


def nats_of_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> float:
    """-log of the probability of the completions and the ends behind them; prompts are read, not counted."""
    begin, end, total = begin_id(tokenizer), end_id(tokenizer), 0.0
    rows: list[tuple[list[int], int]] = []
    for example in examples:
        parts = [
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (example.prompt, example.completion)
        ]
        rows.append(([begin, *parts[0], *parts[1], end], 1 + len(parts[0])))  # pyright: ignore[reportArgumentType]
    rows.sort(key=lambda row: len(row[0]))
    with torch.inference_mode():
        for chunk in (rows[i : i + BATCH] for i in range(0, len(rows), BATCH)):
            width = max(len(ids) for ids, _ in chunk)
            ids_BL = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in chunk])
            labels_BL = torch.full_like(ids_BL, -100)
            for b, (ids, given) in enumerate(chunk):
                labels_BL[b, given - 1 : len(ids) - 1] = ids_BL[b, given : len(ids)]
            logits = model(input_ids=ids_BL, use_cache=False).logits
            total += cross_entropy(logits.flatten(0, 1), labels_BL.flatten(), reduction="sum").item()
    return total


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> float:
    size = sum(len(example.completion.encode()) for example in examples)
    return nats_of_answers(model, tokenizer, examples) / math.log(2) / size


def kl_to_teacher(model: PreTrainedModel, out: Path, begin: int) -> float:
    """Mean over the scored positions of an output, nats, by its stored tokens and tails."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in Targets(out, "small").batches(BATCH):
            mask = batch["mask"]
            logits_RV = model(input_ids=student_inputs(batch, begin), use_cache=False).logits[mask]
            total += (
                forward_kl(logits_RV, batch["ids"][mask], batch["logps"][mask], batch["tail_logp"][mask]).sum().item()
            )
            count += int(mask.sum())
    return total / count


def train(place: Place, name: str, seed: int, rate: float, figures: bool) -> dict[str, float]:
    """One student from its published weights to its figures. figures False: the validation split only."""
    method = OURS[name]
    out = place.run(method.run)
    targets = Targets(out, method.product, beside=method.beside)
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    model = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32)
    begin = begin_id(tokenizer)
    context = make_context(out, MODELS / "qwen", place.model, targets, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    steps = math.ceil(len(place.splits.train) / BATCH)
    began = time.perf_counter()
    model.train()
    for step, batch in enumerate(targets.batches(BATCH, seed=seed)):
        warm = max(1, steps // 10)
        cosine = 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warm, cosine)
        input_ids_BL = student_inputs(batch, begin)
        hidden_BLD = model.model(input_ids=input_ids_BL, use_cache=False).last_hidden_state
        loss = method.loss(View(batch, input_ids_BL, hidden_BLD, model.lm_head(hidden_BLD)), context)
        if not loss.isfinite():
            raise SystemExit(f"{name}, seed {seed}, rate {rate:g}: the loss of step {step} is {loss.item()}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    step_s = (time.perf_counter() - began) / steps
    model.eval()
    found = {"valid_bits_per_byte": bits_per_byte(model, tokenizer, place.splits.valid), "step_s": step_s}
    return found | (measured(place, model, tokenizer) if figures else {})


def measured(place: Place, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    return {
        "bits_per_byte": bits_per_byte(model, tokenizer, place.splits.held),
        "kl_nats": kl_to_teacher(model, place.run("held"), begin_id(tokenizer)),
        "solved": exact_answers(model, tokenizer, place.splits.solve, longest=160),
    }


class Table:
    """FOLDER/runs.parquet: a row for each training."""

    KEY = ("student", "documents", "method", "seed", "rate")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = pl.read_parquet(path).to_dicts() if path.is_file() else []

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self.rows if all(row[name] == value for name, value in key.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        old = self.find(**{name: row[name] for name in self.KEY})
        self.rows = [other for other in self.rows if other is not old] + [row]
        part = self.path.with_suffix(".part")
        pl.DataFrame(self.rows, infer_schema_length=None).write_parquet(part)
        part.replace(self.path)


def run_all(place: Place, names: list[str], seeds: int, table: Table, until: float) -> None:
    """Rates first, by seed 0, then the chosen rate's figures for all seeds. Ends where time is up."""

    def get(name: str, seed: int, rate: float, figures: bool) -> dict[str, Any] | None:
        documents = len(place.splits.train)
        key = {"student": place.student, "documents": documents, "method": name, "seed": seed, "rate": rate}
        row = table.find(**key)
        if row is None or (figures and row.get("bits_per_byte") is None):
            if time.time() > until:
                return None
            method = OURS[name]
            row = key | train(place, name, seed, rate, figures)
            row["bytes"] = stored_bytes(place.run(method.run), method.needs, "small") if method.needs else 0.0
            table.add(row)
            print({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        return row

    for name in names:
        tried = [get(name, 0, rate, False) for rate in RATES]
        known = [row for row in tried if row is not None]
        if len(known) < len(RATES):
            return
        best = min(known, key=lambda row: row["valid_bits_per_byte"])["rate"]
        for seed in range(seeds):
            if get(name, seed, best, True) is None:
                return


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown, of the rows that have all figures: mean and standard deviation over seeds; gain: bits per byte below
    cross-entropy with the same seed."""
    done = [row for row in rows if row.get("bits_per_byte") is not None]
    lines = [
        "| student | documents | method | rate | seeds | bits/byte | gain | KL, nats | solved % | s/step | bytes/position |"
    ]
    lines += ["|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    kinds = list(dict.fromkeys((row["student"], row["documents"], row["method"]) for row in done))
    for student, documents, method in kinds:
        mine = [r for r in done if (r["student"], r["documents"], r["method"]) == (student, documents, method)]
        base = {r["seed"]: r for r in done if (r["student"], r["documents"], r["method"]) == (student, documents, "ce")}
        gains = [base[r["seed"]]["bits_per_byte"] - r["bits_per_byte"] for r in mine if r["seed"] in base]
        cells = [
            _spread([r["bits_per_byte"] for r in mine], 4),
            "" if method == "ce" else _spread(gains, 4),
            _spread([r["kl_nats"] for r in mine], 4),
            _spread([100 * r["solved"] for r in mine], 1),
            _spread([r["step_s"] for r in mine], 1),
            f"{mine[0]['bytes']:.0f}",
        ]
        title = OURS[method].title if method in OURS else method
        lines.append(f"| {student} | {documents} | {title} | {mine[0]['rate']:g} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    tensor = torch.tensor(values, dtype=torch.float64)
    return f"{tensor.mean():.{digits}f}" + (f" ± {tensor.std():.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of scored runs and of the table")
    parser.add_argument("--student", choices=("smollm2", "gemma"), default="smollm2")
    parser.add_argument("--methods", default=",".join(FIRST), help=f"comma between; there are {', '.join(OURS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=256, help="of training, each seen once")
    parser.add_argument("--valid", type=int, default=48)
    parser.add_argument("--held", type=int, default=96)
    parser.add_argument("--solve", type=int, default=200, help="problems answered by greedy generation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hours", type=float, default=6.0, help="no training is begun after so long")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    names = args.methods.split(",")
    if unknown := set(names) - set(OURS):
        raise SystemExit(f"no method {', '.join(sorted(unknown))}; there are {', '.join(OURS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    table = Table(args.out / "runs.parquet")
    if not args.report:
        torch.set_num_threads(args.threads)
        splits = gsm8k_splits(args.documents, args.valid, args.held, args.solve)
        place = Place(args.out, args.student, splits)
        names = list(dict.fromkeys(["ce", *names]))  # all are measured against it
        run_all(place, names, args.seeds, table, time.time() + 3600 * args.hours)
    print(report(table.rows))


if __name__ == "__main__":
    main()
