"""Train a student on stored targets, without the teacher: python examples/train_student.py OUT MODEL --save FOLDER

OUT is the output folder of `targetsmith score`, MODEL a folder with a Hugging Face causal language model's config.json (and
weights, else it starts from random ones) and the tokenizer that the targets were made for. Plain torch, one device.

    loss = kd * KL(teacher || student) + (1 - kd) * (-log student(token of the text)),   nats per token

The divergence is over the K stored tokens and, as one more outcome, all others. Row i of a document predicts token i given
the tokens before it, so the student reads the begin token and then token_ids without the last.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pyarrow.parquet as pq
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from engine.losses.sparse import forward_kl
from engine.reader.collate import student_feed, student_inputs
from engine.reader.run_files import TargetsError
from engine.reader.targets import Targets


def stop(message: str) -> NoReturn:
    """What was named on the command line is wrong: one line, and exit code 2."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def readable_targets() -> Iterator[None]:
    """Around a `main`: targets that are missing, unfinished or damaged end it with the reader's message, no traceback."""
    try:
        yield
    except TargetsError as error:
        stop(str(error))


def load_student(folder: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint, or a new model where the folder has a configuration only. float32: mixed precision is autocast's work."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if any(Path(folder).glob("*.safetensors")) or not Path(folder).is_dir():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    except (OSError, ValueError) as error:
        found = str(error).splitlines()[0]
        stop(f"{folder}: no student; want a folder with config.json and tokenizer.json, or a Hub id ({found})")
    return model.to(device), tokenizer  # pyright: ignore[reportArgumentType]  (a decorator of transformers hides the type)


def begin_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What the student reads before the first token: the begin token, or the end token where there is none."""
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not isinstance(begin, int):
        stop(f"{tokenizer.name_or_path}: neither a begin nor an end token; want a tokenizer with one of the two")
    return begin


def check_tokenizer(out: str, product: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Stops where the student's ids are not those that the targets are of: a run says what each of its ids spells.
    Nothing is checked of an output without that table (of version 0.6 and before)."""
    table = Path(out) / "_engine" / "vocabulary" / f"{product}.parquet"
    if not table.is_file():
        return
    spelled = [row for row in pq.read_table(table).to_pylist() if row["role"] == "text" and row["bytes"]]
    for row in spelled[:: max(1, len(spelled) // 2000)]:
        try:
            wanted = row["bytes"].decode().strip()  # SentencePiece's decoders drop a space in front
        except UnicodeDecodeError:
            continue
        mine = str(tokenizer.decode([row["id"]])).strip() if row["id"] < len(tokenizer) else ""
        if mine != wanted:
            stop(
                f"{tokenizer.name_or_path}: token {row['id']} is {mine!r}, in the targets it is {wanted!r}: another tokenizer. "
                "Give the folder with the tokenizer that the run file names for this student"
            )


def losses(model: PreTrainedModel, batch: dict[str, torch.Tensor], begin: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(divergence, cross-entropy), nats: means over the positions with a distribution, and over those asked for; 0 where a batch
    has none."""
    inputs, at = student_feed(batch, begin)
    logits = model(input_ids=inputs, use_cache=False).logits.float()
    scored, asked = batch["mask"], batch["loss_mask"]
    ids, logps, tail_logp = (batch[key][scored] for key in ("ids", "logps", "tail_logp"))
    divergence = forward_kl(_of_rows(logits, at, scored), ids, logps, tail_logp).sum() / scored.sum().clamp(min=1)
    ce = cross_entropy(_of_rows(logits, at, asked), batch["token_ids"][asked], reduction="sum")
    return divergence, ce / asked.sum().clamp(min=1)


def _of_rows(logits: torch.Tensor, at: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows of the mask, V]"""
    document, row = mask.nonzero(as_tuple=True)
    return logits[document, at[document, row]]


def epochs(
    targets: Targets, batch_size: int, seed: int, max_length: int, device: str
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches without end, every epoch in an order of its own; those without a position that is asked for are left out."""
    while True:
        some = False
        for batch in targets.batches(batch_size, seed=seed, max_length=max_length, device=device):
            if batch["loss_mask"].any():
                some = True
                yield batch
        if not some:
            stop(f"no position is asked for within --max-length {max_length}: nothing to train on; give a larger one")
        seed += 1


@torch.inference_mode()
def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """-log2 of the probability of each text's tokens and its end, summed, by the bytes of the texts. One by one: no padding."""
    nats, begin = 0.0, begin_id(tokenizer)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        token_ids = torch.tensor([ids], device=model.device)
        logits = model(input_ids=student_inputs({"token_ids": token_ids}, begin), use_cache=False).logits
        nats += cross_entropy(logits[0].float(), token_ids[0], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@readable_targets()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="output folder of `targetsmith score`")
    parser.add_argument("model", help="folder (or hub id) with config.json, tokenizer and maybe weights")
    parser.add_argument("--student", help="name of the student in the run; may be left out when there is one")
    parser.add_argument("--save", required=True, help="folder for the trained student")
    parser.add_argument("--held-out", type=Path, help='JSON lines with a "text", for bits per byte')
    parser.add_argument("--kd", type=float, default=0.8, help="weight of the divergence; 0 is cross-entropy alone")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="documents of a step")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a document; the rest of it is left out")
    parser.add_argument(
        "--rate", type=float, default=1e-3, help="highest learning rate: 5 %% warm-up, then a cosine to 0"
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the documents, and new weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    targets = Targets(args.out, args.student)
    model, tokenizer = load_student(args.model, args.device)
    begin = begin_id(tokenizer)
    if targets.vocab_size > model.config.vocab_size:
        stop(
            f"targets over {targets.vocab_size} tokens, a student of {model.config.vocab_size}: another tokenizer. Give the "
            "student whose tokenizer the run file names"
        )
    check_tokenizer(args.out, targets.product, tokenizer)
    held_out = [json.loads(line)["text"] for line in args.held_out.open(encoding="utf-8")] if args.held_out else []
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, i - warm) / max(1, args.steps - warm))),
    )
    model.train()
    began = time.monotonic()
    batches = epochs(targets, args.batch, args.seed, args.max_length, args.device)
    for step in range(args.steps):
        divergence, ce = losses(model, next(batches), begin)
        loss = args.kd * divergence + (1 - args.kd) * ce
        if not loss.isfinite():
            raise SystemExit(
                f"step {step}: the loss is {loss.item()}; nothing is saved. Lower --rate, or look at the targets"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == args.steps - 1:
            terms = f"divergence {divergence.item():.4f}, cross-entropy {ce.item():.4f}"
            print(
                f"step {step:5d}  loss {loss.item():.4f} nats/token ({terms})  {time.monotonic() - began:.0f} s",
                flush=True,
            )
    model.eval().save_pretrained(args.save)
    tokenizer.save_pretrained(args.save)
    if held_out:
        print(f"held-out: {bits_per_byte(model, tokenizer, held_out):.4f} bits per byte")


if __name__ == "__main__":
    main()
