"""Rows of the shards as Hugging Face's `datasets` gives them -> what Trainer and its subclasses take, and the targets beside it.

    rows = datasets.load_dataset("parquet", data_files=[str(f) for f in targets.files], columns=COLUMNS, split="train")
    trainer = SomeTrainer(..., train_dataset=rows.with_format("numpy"), data_collator=RowCollator(begin, begin, targets.top_k))

For trainers that make their own loaders out of rows. Who writes the loop takes `Targets.batches` or `TargetsDataset`.

Letters: B readings of documents, L rows of the longest of them, K stored tokens. The model reads L + 1 tokens, the begin token
first, so that row i goes with the logits at position i, and its label with labels[i + 1], which is the shift that models make
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .row_groups import FLAG_ANEW, FLAG_CONTEXT

COLUMNS = ["token_ids", "scored", "flags", "topk_ids", "topk_logps", "tail_logp"]
"""What the collator needs of a product with the codec topk."""


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Rows of a product -> input_ids, attention_mask, labels int64 [B, L + 1], target_ids int64 and target_logps float32
    [B, L, K], target_tail_logp float32 and target_mask (scored) bool [B, L]. Labels are -100 where nobody asked.

    begin  the token that the student reads first; pad: any token; top_k: of the product
    """

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
        width = {key: self.top_k if key.startswith("topk") else 1 for key in COLUMNS}
        return [
            {key: feature[key][start * n : stop * n] for key, n in width.items()}
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]

    def _behind_begin(self, feature: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without the begin token that a chat template wrote: it is put before the tokens anyway, once."""
        if not (feature["token_ids"][0] == self.begin and feature["flags"][0] & FLAG_CONTEXT):
            return feature
        return {key: values[self.top_k if key.startswith("topk") else 1 :] for key, values in feature.items()}
