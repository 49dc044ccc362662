"""A loss on stored targets for any subclass of Hugging Face's Trainer: TRL's SFTTrainer, Axolotl's, one's own.

    class StudentTrainer(TargetsLoss, SFTTrainer): ...

Batches are those of the reader's RowCollator. Nothing of the trainer's own is used but `compute_loss`: mixed precision, several
devices, accumulation, checkpoints and logging stay as they are. Letters: B documents, L rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .sparse import forward_kl

TARGETS = ("target_ids", "target_logps", "target_tail_logp", "target_mask")


class TargetsLoss:
    """kd * divergence + (1 - kd) * cross-entropy, nats per position asked for, of all batches of a step together.

    kd          weight of the divergence
    divergence  (logits [R, V], ids, logps, tail_logp) -> [R]: any loss of rows of engine/losses/sparse.py; more arguments by
                functools.partial. Set either on the class or on the trainer
    """

    kd: float = 0.8
    divergence: Callable[..., torch.Tensor] = staticmethod(forward_kl)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **_: Any,
    ) -> Any:
        """The loss, and the model's outputs if asked for. A batch of template text alone has a loss of 0.

        Raises ValueError for batches without targets (of another collator, or of a trainer that has dropped what it does not
        know: `remove_unused_columns=False`).
        """
        if lost := [name for name in TARGETS if name not in inputs]:
            raise ValueError(
                f"no {', '.join(lost)} in the batch, which has {', '.join(inputs)}: give the trainer "
                "data_collator=RowCollator(...) and remove_unused_columns=False"
            )
        mask, labels = inputs["target_mask"], inputs["labels"][:, 1:]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        logits = outputs.logits[:, :-1].float()
        ids, logps, tail_logp = (inputs[name][mask] for name in TARGETS[:3])
        ce = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss = self.kd * self.divergence(logits[mask], ids, logps, tail_logp).sum() + (1 - self.kd) * ce
        asked = (labels != -100).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = loss / asked.clamp(min=1).to(loss.device)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:  # type: ignore[attr-defined]
            # it counts those of all processes, and their gradients are averaged: as Trainer does for its own loss
            loss = loss * self.accelerator.num_processes  # type: ignore[attr-defined]
        return (loss, outputs) if return_outputs else loss
