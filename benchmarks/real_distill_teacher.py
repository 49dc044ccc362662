"""The teacher of benchmarks/real_distill.py: the published model, trained on other problems of GSM8K's train file first.

As published, Qwen2.5-Coder 0.5B Instruct gives GSM8K's answers more bits per byte than SmolLM2-135M does after 32 steps on
them: there is nothing to learn from it about this text that the text does not say better. A teacher that knows its task is
what people distil; published recipes tune theirs the same way.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from shutil import copyfile

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_distill_data import Example, answer_batch, training_precision

BATCH = 4
RATE = 2e-5
ORDER = 11  # seed


def tuned_teacher(published: Path, place: Path, examples: list[Example]) -> Path:
    """One pass over the examples, cross-entropy with their answers; the folder, made once. Embedding and lm_head stay as they
    are: two fifths of this teacher's weights, for its folder has them apart."""
    if (place / "config.json").is_file():
        return place
    tokenizer = AutoTokenizer.from_pretrained(published)
    model = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        layer.requires_grad_(False)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(ORDER)).tolist()
    steps = len(order) // BATCH
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / 5, 1 - step / steps)
        ids_BL, labels_BL = answer_batch(tokenizer, [examples[i] for i in order[step * BATCH : (step + 1) * BATCH]])
        with training_precision():
            logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        keep_BL = labels_BL >= 0
        loss = cross_entropy(logits_BLV[keep_BL].float(), labels_BL[keep_BL])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"teacher: step {step + 1} of {steps}, {loss.item():.3f} nats a token", flush=True)
    model.save_pretrained(place)
    for file in published.iterdir():
        if not (place / file.name).exists() and file.suffix != ".safetensors":
            copyfile(file, place / file.name)
    return place


def fingerprint(place: Path) -> str:
    """Of the weights: teachers made on different machines may differ in the last digits."""
    digest = hashlib.sha256()
    for file in sorted(place.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
