"""The same with TRL: python examples/trl_trainer.py OUT MODEL --save FOLDER      (needs `trl`)

`SFTTrainer` with `TargetsLoss` before it: its arguments, callbacks, PEFT and logging, our loss. Two settings are ours: the
dataset is prepared already (`skip_prepare_dataset`), and its columns stay (`remove_unused_columns=False`). Packing is left off:
a row of a batch is a document, since each has distributions of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from hf_trainer import rows_of
from train_student import begin_id, load_student, readable_targets
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from engine.losses.trainer_loss import TargetsLoss
from engine.reader.row_collator import RowCollator
from engine.reader.targets import Targets


class StudentSFTTrainer(TargetsLoss, SFTTrainer):
    """kd * KL(teacher || student) + (1 - kd) * cross-entropy, nats per position asked for."""


def settings(folder: str, **more: Any) -> SFTConfig:
    """An SFTConfig that leaves stored targets as they are; more: anything else of it."""
    return SFTConfig(
        output_dir=folder,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,  # or the columns that the model does not know are dropped
        packing=False,
        **more,
    )


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
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a document; the rest of it is left out")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    targets = Targets(args.out, args.student)
    model, tokenizer = load_student(args.model, "cpu")  # the trainer puts it where it belongs
    begin = begin_id(tokenizer)
    gpu = torch.cuda.is_available()
    trainer = StudentSFTTrainer(
        model,
        settings(
            args.save,
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
            bf16=gpu,
            dataloader_pin_memory=gpu,
        ),
        data_collator=RowCollator(begin, begin, targets.top_k, args.max_length),
        train_dataset=rows_of(targets),
        processing_class=tokenizer,
    )
    trainer.kd = args.kd
    trainer.train()
    trainer.save_model(args.save)


if __name__ == "__main__":
    main()
