"""The teacher's lm_head and embedding as one file of the output, for losses on stored hidden states.

A loss on hidden states (engine/losses/dskd.py) needs the two matrices once; with them no teacher is loaded while a student
trains. OUT/_engine/teacher_head.safetensors: `lm_head` [Vt, D] and `embedding` [Vt, D], bfloat16, and `bias` [Vt], float32,
where the lm_head has one; in its metadata `scale` and `softcap`: logits = (lm_head h + bias) * scale, then
softcap * tanh(logits / softcap) unless softcap is 0; `sha256` of the numbers.
"""

from __future__ import annotations

import hashlib
import json

import torch
from safetensors.torch import save

from engine.dataset.sidecars import DIGEST, LM_HEAD, header_and_tensors
from engine.dataset.store import Out, open_store
from engine.teacher.model import Teacher, logits_form


def publish_head(out: Out, teacher: Teacher) -> None:
    """Write the file unless it is there: any actor may be the first, all have the same numbers. Raises OutputError."""
    store = open_store(out)
    if store.exists(LM_HEAD):
        return
    scale, softcap = logits_form(teacher.model)
    tensors, metadata = head_tensors(teacher), {"scale": repr(scale), "softcap": repr(softcap)}
    body = header_and_tensors(save(tensors))[1]  # the same whatever the metadata
    store.put_if_absent(LM_HEAD, _ordered(save(tensors, metadata | {DIGEST: hashlib.sha256(body).hexdigest()})))


def head_tensors(teacher: Teacher) -> dict[str, torch.Tensor]:
    """What the file has of a teacher."""
    # clone: tied weights are one tensor, which safetensors refuses to store under two names
    dtype = {"bias": torch.float32}
    return {
        name: weight.detach().to("cpu", dtype.get(name, torch.bfloat16)).clone()
        for name, weight in teacher.head_weights().items()
    }


def _ordered(data: bytes) -> bytes:
    """The same file with the keys of its head in order: the library writes them in a new order each time, and a file that
    is made again should be the same."""
    old, body = header_and_tensors(data)
    head = json.dumps(json.loads(old), sort_keys=True, separators=(",", ":")).encode()
    return data[:8] + head.ljust(len(old)) + body
