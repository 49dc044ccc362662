"""The teacher's lm_head, out of an output that has its hidden states: states go in, logits over the whole vocabulary come out.

    head = teacher_head("out").to("cuda")
    logits_RV = head(batch["hidden"][batch["mask"]])

Letters: R rows, D hidden size, V ids below the product's `vocab_size`.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from .run_files import OutputFolder, Run, TargetsError

HEAD_FILE = "_engine/teacher_head.safetensors"
TOKENS_FILE = "_engine/vocabulary/teacher.parquet"


class TeacherHead(torch.nn.Module):
    """logits [R, V] of states [R, D]: (lm_head h + bias) * scale, then softcap * tanh(logits / softcap) unless that is 0.

    weight_VD, bias_V (may be None), scale, softcap   as docs/format.md has them; nothing of them is trained
    real_V     bool: ids that are tokens. Models may have more rows than tokens: of others the logit is -inf, so that a softmax is
               the teacher's distribution as the engine takes it

    Computed in the format of the weights (float32, unless another was asked for), given back in float32 or float64.
    """

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None
    real_V: torch.Tensor

    def __init__(
        self,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None = None,
        *,
        scale: float = 1.0,
        softcap: float = 0.0,
        real_V: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        real_V = torch.ones(len(weight_VD), dtype=torch.bool) if real_V is None else real_V
        for name, tensor in (("weight_VD", weight_VD), ("bias_V", bias_V), ("real_V", real_V)):
            self.register_buffer(name, tensor, persistent=False)
        self.scale, self.softcap, self._all_real = scale, softcap, bool(real_V.all())

    def forward(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        logits_RV = hidden_RD.to(self.weight_VD.dtype) @ self.weight_VD.T
        logits_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
        if self.bias_V is not None:
            logits_RV = logits_RV + self.bias_V.to(logits_RV.dtype)
        if self.scale != 1:
            logits_RV = logits_RV * self.scale
        if self.softcap:
            logits_RV = self.softcap * torch.tanh(logits_RV / self.softcap)
        return logits_RV if self._all_real else logits_RV.masked_fill(~self.real_V, -torch.inf)


def teacher_head(
    out: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    storage_options: dict[str, Any] | None = None,
    allow_partial: bool = False,
) -> TeacherHead:
    """The head that stands in an output beside its hidden states; the teacher's checkpoint is not needed.

    dtype  of the weights in memory. They are stored in bfloat16: float32 keeps what they say; bfloat16 takes half the memory and
           rounds each logit to 8 bits, as a teacher run in bfloat16 does
    Other arguments as in `Targets`. Needs the library safetensors. Raises TargetsError: no hidden states in this output, the
    file is missing, damaged, or not the one that the manifest names.
    """
    folder = OutputFolder(out, storage_options)
    run = Run(folder, allow_partial)
    if "hidden" not in run.products:
        raise TargetsError(
            f"{folder.url}: no hidden states here ({', '.join(sorted(run.products))}), so no head either: score it with "
            "`[targets] hidden = true`"
        )
    vocab_size = int(run.products["hidden"].get("vocab_size") or 0)
    with folder.reading(HEAD_FILE):
        tensors, metadata = _load(folder, run)
        weight, bias = tensors["lm_head"], tensors.get("bias")
        if weight.dim() != 2 or len(weight) < vocab_size or (bias is not None and len(bias) != len(weight)):
            raise TargetsError(
                f"{folder.place(HEAD_FILE)}: lm_head {list(weight.shape)}, wanted a row for each of {vocab_size} tokens; "
                "copy the file again"
            )
        size = vocab_size or len(weight)
        return TeacherHead(
            weight[:size].to(dtype),
            None if bias is None else bias[:size].clone(),
            scale=float(metadata["scale"]),
            softcap=float(metadata["softcap"]),
            real_V=_real(folder, size),
        )


def _load(folder: OutputFolder, run: Run) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors.torch import load

    if folder.size(HEAD_FILE) is None:
        raise TargetsError(
            f"{folder.place(HEAD_FILE)}: missing; copy the folder whole, or run `targetsmith score` again: it is made anew"
        )
    with folder.open(HEAD_FILE) as file:
        data = file.read()
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        metadata = json.loads(data[8:end])["__metadata__"]
        wanted, found = metadata.get("sha256"), hashlib.sha256(data[end:]).hexdigest()
        whole = hashlib.sha256(data).hexdigest()
        listed = (run.head or {}).get("sha256")
        if wanted not in (None, found) or listed not in (None, whole):
            raise TargetsError(
                f"{folder.place(HEAD_FILE)}: not the numbers that were written (sha256 {whole[:12]}…): damaged, or of another "
                "run; copy the file again"
            )
        return load(data), metadata
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TargetsError(
            f"{folder.place(HEAD_FILE)}: cannot be read ({type(error).__name__}: {error}); copy the file again"
        ) from error


def _real(folder: OutputFolder, size: int) -> torch.Tensor:
    """bool [size]. Outputs from before 0.7.0 have no table of tokens: all ids are taken for tokens there."""
    if folder.size(TOKENS_FILE) is None:
        return torch.ones(size, dtype=torch.bool)
    with folder.reading(TOKENS_FILE), folder.open(TOKENS_FILE) as file:
        table = pq.read_table(io.BytesIO(file.read()), columns=["id", "role"])
    if table.num_rows != size:
        raise TargetsError(
            f"{folder.place(TOKENS_FILE)}: {table.num_rows} tokens, the hidden states are of {size}; copy the folder again"
        )
    return torch.from_numpy(np.array(table["role"].to_pylist()) != "none")
