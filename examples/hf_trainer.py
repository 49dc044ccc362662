"""The same with Hugging Face's Trainer: python examples/hf_trainer.py OUT MODEL --save FOLDER      (needs `accelerate`)

`Collator` takes rows of the shards as they are (a list of dicts, one for each document) and returns what Trainer and TRL's
trainers expect, `input_ids`, `attention_mask`, `labels`, and beside them the targets. `StudentTrainer` adds the divergence to
Trainer's loss. Nothing else is special: mixed precision, several devices, accumulation and logging are Trainer's own.

Letters: B documents, L rows of the longest of them, K stored tokens. The model reads L + 1 tokens, the begin token first, so
that row i goes with the logits at position i, and its label with labels[i + 1], which is the shift that models make themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.functional import cross_entropy
from train_student import begin_id, load_student
from transformers import Trainer, TrainingArguments

from engine.losses.sparse import forward_kl
from engine.reader.targets import Targets

COLUMNS = ["token_ids", "scored", "flags", "topk_ids", "topk_logps", "tail_logp"]
FLAG_CONTEXT = 64  # of `flags`: not asked for (chat template, other roles)
FLAG_ANEW = 128  # a model reads anew from here: a row of its own


@dataclass(frozen=True, slots=True)
class Collator:
    """Rows of a product -> input_ids, attention_mask, labels int64 [B, L + 1], target_ids int64 and target_logps float32
    [B, L, K], target_tail_logp float32 and target_mask (scored) bool [B, L]. Labels are -100 where nobody asked."""

    begin: int
    pad: int
    top_k: int
    max_length: int = 1024  # rows of a document; the rest of it is left out

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        features = [self._behind_begin(reading) for feature in features for reading in self._readings(feature)]
        rows = [min(len(feature["token_ids"]), self.max_length) for feature in features]
        shape = (len(rows), max(rows))
        ids, logps = np.zeros((*shape, self.top_k), np.int64), np.full((*shape, self.top_k), -np.inf, np.float32)
        tail, mask, tokens = np.zeros(shape, np.float32), np.zeros(shape, np.bool_), np.full(shape, self.pad, np.int64)
        asked = np.zeros(shape, np.bool_)
        for b, (feature, n) in enumerate(zip(features, rows, strict=True)):
            tokens[b, :n], mask[b, :n], tail[b, :n] = (feature[key][:n] for key in ("token_ids", "scored", "tail_logp"))
            asked[b, :n] = np.asarray(feature["flags"][:n]) & FLAG_CONTEXT == 0
            stored = np.asarray(feature["topk_ids"][: n * self.top_k]).reshape(n, self.top_k)
            ids[b, :n] = np.maximum(stored, 0)  # -1, no token: its log-probability is -inf
            logps[b, :n] = np.asarray(feature["topk_logps"][: n * self.top_k]).reshape(n, self.top_k)
        first = np.full((len(rows), 1), self.begin)
        seen = np.arange(shape[1] + 1) <= np.array(rows)[:, None]
        batch = {
            "input_ids": np.concatenate([first, tokens], 1),
            "attention_mask": seen.astype(np.int64),
            "labels": np.concatenate([np.full_like(first, -100), np.where(asked, tokens, -100)], 1),
            "target_ids": ids,
            "target_logps": logps,
            "target_tail_logp": tail,
            "target_mask": mask,
        }
        return {key: torch.from_numpy(array) for key, array in batch.items()}

    def _readings(self, feature: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The document cut where a model reads anew: earlier turns of a conversation may be written otherwise later on."""
        anew = [int(at) for at in np.flatnonzero(np.asarray(feature["flags"]) & FLAG_ANEW) if at]
        bounds = [0, *anew, len(feature["token_ids"])]
        width = {key: self.top_k if key.startswith("topk") else 1 for key in feature}
        return [
            {key: values[start * width[key] : stop * width[key]] for key, values in feature.items()}
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]

    def _behind_begin(self, feature: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without the begin token that a chat template wrote: it is put before the tokens anyway, once."""
        if not (feature["token_ids"][0] == self.begin and feature["flags"][0] & FLAG_CONTEXT):
            return feature
        return {key: values[self.top_k if key.startswith("topk") else 1 :] for key, values in feature.items()}


class StudentTrainer(Trainer):
    """kd * KL(teacher || student) + (1 - kd) * cross-entropy, nats per position asked for, of all batches of a step together."""

    kd = 0.8

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        mask, labels = inputs["target_mask"], inputs["labels"][:, 1:]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        logits = outputs.logits[:, :-1].float()
        ids, logps, tail_logp = (inputs[f"target_{name}"][mask] for name in ("ids", "logps", "tail_logp"))
        ce = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss = self.kd * forward_kl(logits[mask], ids, logps, tail_logp).sum() + (1 - self.kd) * ce
        asked = (labels != -100).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = loss / asked.clamp(min=1)  # a batch of template text alone has a loss of 0
        return (loss, outputs) if return_outputs else loss


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="output folder of `targetsmith score`")
    parser.add_argument("model", help="folder (or hub id) with config.json, tokenizer and maybe weights")
    parser.add_argument("--student", help="name of the student in the run; may be left out when there is one")
    parser.add_argument("--save", required=True, help="folder for the trained student")
    parser.add_argument("--kd", type=float, default=0.8, help="weight of the divergence")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="documents of a step and device")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    model, tokenizer = load_student(args.model, "cpu")  # Trainer puts it where it belongs
    targets = Targets(args.out, args.student)
    rows = datasets.load_dataset(
        "parquet", data_files=[str(file) for file in targets.files], columns=COLUMNS, split="train"
    ).with_format("numpy")
    settings = TrainingArguments(
        output_dir=args.save,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=args.rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, args.steps // 20),
        weight_decay=0.05,
        seed=args.seed,
        logging_steps=max(1, args.steps // 20),
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,  # or Trainer drops the columns that the model does not know
    )
    begin = begin_id(tokenizer)
    trainer = StudentTrainer(
        model,
        settings,
        data_collator=Collator(begin, begin, targets.top_k),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.kd = args.kd
    trainer.train()
    trainer.save_model(args.save)


if __name__ == "__main__":
    main()
