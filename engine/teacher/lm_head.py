"""What belongs to stored hidden states: the teacher's lm_head and embedding as one file, and how large the states will be.

A loss on hidden states (engine/losses/dskd.py) needs the two matrices once; with them no teacher is loaded while a student
trains. OUT/_engine/teacher_head.safetensors: `lm_head` [Vt, D] and `embedding` [Vt, D], bfloat16, and `bias` [Vt], float32,
where the lm_head has one; in its metadata `scale` and `softcap`: logits = (lm_head h + bias) * scale, then
softcap * tanh(logits / softcap) unless softcap is 0; `sha256` of the numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress

import torch
from safetensors.torch import save

from engine.corpus import Document
from engine.store import Out, open_store
from engine.teacher import Teacher, logits_form
from engine.vocab import Vocabulary
from schemas.errors import BadDocument

HEAD = "_engine/teacher_head.safetensors"
DIGEST = "sha256"
"""Key of the metadata: of the numbers in the file."""


def publish_head(out: Out, teacher: Teacher) -> None:
    """Write the file unless it is there: any actor may be the first, all have the same numbers. Raises OutputError."""
    store = open_store(out)
    if store.exists(HEAD):
        return
    scale, softcap = logits_form(teacher.model)
    tensors, metadata = head_tensors(teacher), {"scale": repr(scale), "softcap": repr(softcap)}
    body = _parts(save(tensors))[1]  # the same whatever the metadata
    store.put_if_absent(HEAD, _ordered(save(tensors, metadata | {DIGEST: hashlib.sha256(body).hexdigest()})))


def head_tensors(teacher: Teacher) -> dict[str, torch.Tensor]:
    """What the file has of a teacher."""
    head = teacher.model.get_output_embeddings()
    weights = {"lm_head": head.weight, "embedding": teacher.model.get_input_embeddings().weight}
    # clone: tied weights are one tensor, which safetensors refuses to store under two names
    tensors = {name: weight.detach().to("cpu", torch.bfloat16).clone() for name, weight in weights.items()}
    if (bias := getattr(head, "bias", None)) is not None:
        tensors["bias"] = bias.detach().to("cpu", torch.float32).clone()
    return tensors


def damage(data: bytes) -> str | None:
    """Why the bytes of such a file cannot be what was written; None when they can. Up to 0.5.0 they had no digest."""
    try:
        head, body = _parts(data)
        wanted = json.loads(head)["__metadata__"].get(DIGEST)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"not readable: {type(error).__name__}: {error}"
    found = hashlib.sha256(body).hexdigest()
    return (
        None if wanted in (None, found) else f"its numbers have the sha256 {found[:12]}…, it says {str(wanted)[:12]}…"
    )


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """(JSON, numbers) of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def _ordered(data: bytes) -> bytes:
    """The same file with the keys of its head in order: the library writes them in a new order each time, and a file that
    is made again should be the same."""
    old, body = _parts(data)
    head = json.dumps(json.loads(old), sort_keys=True, separators=(",", ":")).encode()
    return data[:8] + head.ljust(len(old)) + body


def hidden_size_note(sample: Sequence[Document], documents: int, vocabulary: Vocabulary, size: int) -> str:
    """How large the hidden states of a corpus will be, in words, from a sample of its documents. size: numbers per state."""
    counts = []
    for document in sample:
        with suppress(BadDocument):
            counts.append(len(vocabulary.encode(document.text)[0]) if document.text else 0)
    if not counts:
        return (
            f"hidden states: {size} numbers of 2 bytes at each teacher token; no document to estimate their number from"
        )
    tokens = sum(counts) / len(counts) * documents
    return (
        f"hidden states: {size} numbers of 2 bytes at each teacher token, about {tokens:,.0f} tokens (from the first "
        f"{len(counts)} documents): about {_in_units(tokens * size * 2)} before compression"
    )


def _in_units(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
