"""The same with Hugging Face's Trainer: python examples/hf_trainer.py OUT MODEL --save FOLDER      (needs `accelerate`)

`RowCollator` takes rows of the shards as they are and returns what Trainer expects, `input_ids`, `attention_mask`, `labels`, and
beside them the targets. `TargetsLoss` adds the divergence to Trainer's loss. Nothing else is special: mixed precision, several
devices, accumulation and logging are Trainer's own. examples/trl_trainer.py is the same for TRL.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import datasets
import datasets.exceptions
import torch
from train_student import begin_id, load_student, readable_targets
from transformers import Trainer, TrainingArguments

from engine.losses.trainer_loss import TargetsLoss
from engine.reader.row_collator import COLUMNS, RowCollator
from engine.reader.run_files import TargetsError
from engine.reader.targets import Targets


class StudentTrainer(TargetsLoss, Trainer):
    """kd * KL(teacher || student) + (1 - kd) * cross-entropy, nats per position asked for."""


def rows_of(targets: Targets) -> datasets.Dataset:
    """The documents of a product as a dataset, columns as they are stored."""
    files = [str(file) for file in targets.files]
    try:
        found = datasets.load_dataset("parquet", data_files=files, columns=COLUMNS, split="train")
    except datasets.exceptions.DatasetGenerationError as error:  # it does not say of which file
        raise TargetsError(
            f"{targets.product}: a file of it is damaged; `targetsmith verify OUT` tells which"
        ) from error
    return found.with_format("numpy")  # type: ignore[union-attr]


@readable_targets()
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
    targets = Targets(args.out, args.student)
    model, tokenizer = load_student(args.model, "cpu")  # Trainer puts it where it belongs
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
        data_collator=RowCollator(begin, begin, targets.top_k),
        train_dataset=rows_of(targets),
        processing_class=tokenizer,
    )
    trainer.kd = args.kd
    trainer.train()
    trainer.save_model(args.save)


if __name__ == "__main__":
    main()
