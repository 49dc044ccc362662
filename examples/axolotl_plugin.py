"""A plugin for Axolotl: its trainer learns from a run of targetsmith, its own config file says the rest (examples/axolotl.yaml).

    PYTHONPATH=examples axolotl train examples/axolotl.yaml

The plugin gives Axolotl the documents (`load_datasets`: nothing is tokenized, mapped or cached), the collator and the loss;
models, adapters, precision, devices and checkpoints are Axolotl's. Packing is left off: a row of a batch is a document.
"""

# pyright: reportMissingImports=false
# (Axolotl wants libraries in versions of its own, so it is not in this project's environment.)

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

from axolotl.common.datasets import TrainDatasetMeta
from axolotl.integrations.base import BasePlugin
from hf_trainer import rows_of
from pydantic import BaseModel
from train_student import begin_id, readable_targets

from engine.losses.trainer_loss import TargetsLoss
from engine.reader.row_collator import RowCollator
from engine.reader.targets import Targets


class TargetsArgs(BaseModel):
    """Keys of the config file."""

    targets_output: str  # output folder of `targetsmith score`
    targets_student: str | None = None  # name of the student in the run; may be left out when there is one
    targets_kd: float = 0.8  # weight of the divergence; the rest is cross-entropy


class TargetsPlugin(BasePlugin):
    def register(self, cfg: dict) -> None:
        if cfg.get("sample_packing"):
            raise ValueError(
                "sample_packing: got true; write false: a row of a batch is a document with its distributions"
            )
        # Axolotl wants a dataset in every config; it reads none, since load_datasets gives it
        cfg["datasets"] = cfg.get("datasets") or [{"path": cfg["targets_output"], "type": "completion"}]

    def get_input_args(self) -> str:
        return f"{__name__}.TargetsArgs"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> TrainDatasetMeta:
        rows = rows_of(_targets(cfg))
        at_once = cfg.micro_batch_size * cfg.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))
        steps = cfg.max_steps or math.ceil(len(rows) / at_once * cfg.num_epochs)
        return TrainDatasetMeta(train_dataset=rows, total_num_steps=steps)

    def get_trainer_cls(self, cfg: Any) -> type:
        from axolotl.core.trainers.base import AxolotlTrainer

        class StudentAxolotlTrainer(TargetsLoss, AxolotlTrainer):
            kd = cfg.targets_kd

        return StudentAxolotlTrainer

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"remove_unused_columns": False}

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[Any, dict[str, Any]]:
        return partial(_collator, top_k=_targets(cfg).top_k, max_rows=cfg.sequence_len), {}


@readable_targets()
def _targets(cfg: Any) -> Targets:
    return Targets(cfg.targets_output, cfg.targets_student)


def _collator(tokenizer: Any, *, top_k: int, max_rows: int, **_: Any) -> RowCollator:
    """The other arguments are of Axolotl's own collators: paddings and their multiples."""
    begin = begin_id(tokenizer)
    return RowCollator(begin, begin, top_k, max_rows)
