"""What stored targets are worth to a student: python -m benchmarks.distill --out FOLDER

The same small student, from the same weights per seed, with the same batches in the same order, optimiser and schedule, is
trained by every method of distill_methods.py on what one scoring run has stored, in two settings (distill_data.py). Measured
on texts that no training saw (distill_measure.py): bits per byte and exact answers, mean and standard deviation over seeds;
seconds of processor time per step, relative to cross-entropy alone; bytes on disk for each student position. The learning
rate is the best of three for cross-entropy alone (of each tokenizer), by its held-out bits per byte, and is used for all: a
choice in its favour.

`own_ce` and `own_kl` train a student with the teacher's tokenizer, for which targets need no translation: the ceiling for
what a translation can keep. Their vocabulary differs, hence compare their gain over each other, not their level.

Finished (setting, method, seed) are kept in FOLDER/results.jsonl and not run again; scored runs neither. --quick takes
minutes; the whole table two hours of processor time, a fifth of them CDM's: run one setting on each of two cores. Letters:
B documents of a batch, L positions.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.distill_data import SETTINGS, Setting, scored, stored_bytes
from benchmarks.distill_measure import begin_id, bits_per_byte, end_id, exact_answers
from benchmarks.distill_methods import METHODS, View, make_context
from engine.reader.collate import student_inputs
from engine.reader.targets import Targets

RUNS = {  # [targets] of each scoring run
    "topk": "top_k = 64\nbytes = true\nteacher_stats = true\nhidden = true",
    "sample": 'codec = "sample"\ndraws = 50\nteacher = false',
}
DOCUMENTS = {
    "arithmetic": 1000,
    "stories": 400,
}  # of training: few, as what a student learns from the text alone is the question
RATES = (4e-3, 8e-3, 16e-3)


@dataclass(frozen=True, slots=True)
class Protocol:
    """All that the result of a (setting, method, seed) depends on, beside the code."""

    documents: int
    steps: int
    hidden: int = 64
    layers: int = 3
    device: str = "cpu"


def make_student(protocol: Protocol, vocab_size: int, begin: int, end: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=protocol.hidden,
        intermediate_size=protocol.hidden * 8 // 3,
        num_hidden_layers=protocol.layers,
        num_attention_heads=protocol.hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
    )
    return LlamaForCausalLM(config)  # on the CPU, so that weights do not depend on the device


def epochs(targets: Targets, batch: int, seed: int, device: str) -> Iterator[dict[str, Any]]:
    epoch = 0
    while True:
        yield from targets.batches(batch, seed=seed, epoch=epoch, device=device)
        epoch += 1


def train(setting: Setting, name: str, seed: int, rate: float, protocol: Protocol, folder: Path) -> dict[str, Any]:
    """One student from random weights to its figures."""
    method = METHODS[name]
    out = folder / method.run
    targets = Targets(out, method.product, beside=method.beside)
    place = setting.teacher if method.product == "teacher" else setting.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(place)
    begin, end = begin_id(tokenizer), end_id(tokenizer)
    model = make_student(protocol, targets.vocab_size, begin, end, seed)
    torch.nn.Module.to(model, protocol.device)
    context = make_context(out, setting.teacher, place, targets, model)
    weights = list(model.parameters())
    if method.make_module is not None:
        context.module = method.make_module(context, protocol.hidden).to(protocol.device)
        weights += list(context.module.parameters())
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    batches, warm = epochs(targets, setting.batch, seed, protocol.device), max(1, protocol.steps // 20)
    began, last = time.process_time(), []
    for step in range(protocol.steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, protocol.steps - warm))
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warm, cosine)
        batch = next(batches)
        input_ids_BL = student_inputs(batch, begin)
        hidden_BLD = model.model(input_ids=input_ids_BL, use_cache=False).last_hidden_state
        loss = method.loss(View(batch, input_ids_BL, hidden_BLD, model.lm_head), context)
        if not loss.isfinite():
            raise SystemExit(f"{setting.name}, {name}, seed {seed}: the loss of step {step} is {loss.item()}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = [*last[-49:], loss.item()]
    seconds = (time.process_time() - began) / protocol.steps
    model.eval()
    figures = {"held": bits_per_byte(model, tokenizer, setting.held), "loss": sum(last) / len(last)}
    figures["train"] = bits_per_byte(model, tokenizer, setting.train[: len(setting.held)])
    if setting.longer:
        figures["longer"] = bits_per_byte(model, tokenizer, setting.longer)
    for kind, problems in setting.problems.items():
        figures[kind] = exact_answers(model, tokenizer, problems)
    return {
        **figures,
        "seconds": seconds,
        "bytes": stored_bytes(out, method.needs, method.product),
        "parameters": model.num_parameters(),
    }


class Results:
    """FOLDER/results.jsonl: one line for each finished training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.found = {self._key(record): record for record in map(json.loads, lines)}

    @staticmethod
    def _key(record: dict[str, Any]) -> str:
        keys = ("setting", "method", "seed", "rate", "protocol")
        return json.dumps([record[key] for key in keys], sort_keys=True)

    def get(
        self, setting: Setting, method: str, seed: int, rate: float, protocol: Protocol, folder: Path
    ) -> dict[str, Any]:
        record: dict[str, Any] = {"setting": setting.name, "method": method, "seed": seed, "rate": rate}
        record["protocol"] = asdict(protocol)
        key = self._key(record)
        if key not in self.found:
            record |= train(setting, method, seed, rate, protocol, folder)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.found[key] = record
            print(
                f"{setting.name} {method} seed {seed} rate {rate:g}: {record['held']:.4f} bits per byte",
                file=sys.stderr,
            )
        return self.found[key]


HEADS = {"held": "bits/byte", "longer": "longer texts", "solve": "solved %", "step": "last step %", "long": "longer %"}


def table(records: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, from at least one record of `ce`: mean and standard deviation over seeds. `gain`: bits per byte below
    cross-entropy alone with the same seed and tokenizer."""
    kinds = [kind for kind in HEADS if kind in records["ce"][0]]
    heads = ["method", *(HEADS[kind] for kind in kinds[:1]), "gain", *(HEADS[kind] for kind in kinds[1:])]
    lines = [f"| {' | '.join([*heads, 'time', 'bytes/position'])} |", "|---" + "|---:" * (len(heads) + 1) + "|"]
    step = {name: statistics.median(run["seconds"] for run in runs) for name, runs in records.items()}
    for name, runs in records.items():
        base = "own_ce" if METHODS[name].product == "teacher" else "ce"
        scale = {"held": (1, 4), "longer": (1, 4)}  # all others are shares, shown in per cent
        cells = []
        for kind in kinds:
            factor, digits = scale.get(kind, (100, 1))
            cells.append(_spread([factor * run[kind] for run in runs], digits))
        gains = [other["held"] - run["held"] for run, other in zip(runs, records.get(base, []), strict=False)]
        cells.insert(1, "" if name == base or not gains else _spread(gains, 4))
        cells += [f"{step[name] / step['ce']:.2f}", f"{runs[0]['bytes']:.0f}"]
        lines.append(f"| {METHODS[name].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def best_rate(results: Results, setting: Setting, protocol: Protocol, folder: Path, method: str) -> float:
    return min(RATES, key=lambda rate: results.get(setting, method, 0, rate, protocol, folder)["held"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of scored runs and results")
    parser.add_argument("--setting", action="append", choices=sorted(SETTINGS), help="default: all")
    parser.add_argument("--methods", help=f"comma-separated; default: {','.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--documents", type=int, help=f"of training; default: {DOCUMENTS}")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--hidden", type=int, default=64, help="hidden size of the student, in heads of 32")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of the student; cuda pays from some ten million parameters on")
    parser.add_argument("--rate", type=float, help="learning rate; default: the best of three for cross-entropy")
    parser.add_argument("--quick", action="store_true", help="200 documents, 100 steps, one seed")
    args = parser.parse_args()
    if args.quick:
        args.documents, args.steps, args.seeds = 200, 100, 1
    names = args.methods.split(",") if args.methods else list(METHODS)
    names = list(dict.fromkeys(["ce", *names]))  # all are measured against it
    if unknown := set(names) - set(METHODS):
        raise SystemExit(f"no method {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "results.jsonl")
    for kind in args.setting or SETTINGS:
        protocol = Protocol(args.documents or DOCUMENTS[kind], args.steps, args.hidden, args.layers, args.device)
        folder = args.out / f"{kind}-{protocol.documents}"
        setting = SETTINGS[kind](protocol.documents, folder)
        scored(setting, folder, RUNS["topk"], "topk")
        base = {name: "own_ce" if METHODS[name].product == "teacher" else "ce" for name in names}
        tuned = {
            ce: args.rate or best_rate(results, setting, protocol, folder, ce) for ce in dict.fromkeys(base.values())
        }
        records, ready = {}, {"topk"}
        for name in names:
            if (run := METHODS[name].run) not in ready:
                scored(setting, folder, RUNS[run], run)
                ready.add(run)
            seeds = range(args.seeds)
            rate = tuned[base[name]]
            records[name] = [results.get(setting, name, seed, rate, protocol, folder) for seed in seeds]
        print(f"\n{kind}: {protocol}, rates {tuned}, {args.seeds} seeds\n\n{table(records)}", flush=True)


if __name__ == "__main__":
    main()
