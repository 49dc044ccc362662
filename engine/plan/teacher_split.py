"""How a teacher is shared out among the GPUs of an actor.

[teacher] split and [ray] num_gpus of the run file + the teacher's configuration -> one way of four

one      a whole teacher on one device
layers   one process; each GPU has some of the layers, one after the other (device_map of transformers)
tensor   a process for each GPU; each has a part of every layer, all work at the same time (its tensor parallelism)
experts  the same, but each expert of a mixture is whole, on one of the GPUs (its expert parallelism)
"""

from __future__ import annotations

from typing import Any, Literal

from engine.plan.teacher_config import teacher_config
from engine.plan.teacher_place import teacher_gguf
from schemas.errors import RunFileError
from schemas.runfile import RunConfig

Split = Literal["one", "layers", "tensor", "experts"]
IN_RANKS = ("tensor", "experts")
"""Ways that take a process for each GPU."""


def gpus_of(run: RunConfig) -> int:
    """GPUs that an actor has whole; 1 also where it has a part of one, or none."""
    return 1 if run.teacher.device == "cpu" else max(1, int(run.ray.num_gpus or 1))


def split_of(run: RunConfig) -> Split:
    """The way that this run takes. Raises RunFileError for one that is asked for and not possible with this teacher."""
    gpus = gpus_of(run)
    if gpus == 1:
        return "one"
    changed = "an adapter cannot be merged into weights that lie in parts" if run.teacher.adapter is not None else ""
    if teacher_gguf(run) is not None:
        changed = "a GGUF file is unpacked whole"
    return choose_split(teacher_config(run), run.teacher.split, gpus, changed=changed)


def choose_split(config: Any, asked: str, gpus: int, *, changed: str = "") -> Split:
    """config: of transformers; asked: [teacher] split; changed: what stands between the files and the weights.

    auto is tensor where transformers has a plan for the architecture, the heads can be shared out evenly, and nothing stands
    between the files and the weights (adapters, quantisation); else layers, which any architecture takes. Raises RunFileError.
    """
    tensor = _against_tensor(config, gpus, changed)
    if asked == "auto":
        quantised = getattr(config, "quantization_config", None) is not None
        return "layers" if tensor or quantised else "tensor"
    against = {"layers": "", "tensor": tensor, "experts": tensor or _against_experts(config, gpus)}[asked]
    if against:
        raise RunFileError(
            f'[teacher] split = "{asked}" with [ray] num_gpus = {gpus}: {against}. Take split = "auto" or "layers", or '
            "another number of GPUs"
        )
    return "layers" if asked == "layers" else "tensor" if asked == "tensor" else "experts"


def _against_tensor(config: Any, gpus: int, changed: str) -> str:
    """Why layers cannot be shared out in parts; "" where they can."""
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        return f"transformers has no plan of tensor parallelism for model_type {config.model_type!r}"
    if changed:
        return changed
    heads = {"attention heads": "num_attention_heads", "key and value heads": "num_key_value_heads"}
    for what, name in heads.items():
        count = getattr(text, name, None)
        if isinstance(count, int) and count % gpus and not getattr(text, "kv_lora_rank", None):
            return f"its {count} {what} cannot be shared out evenly"
    return ""


def _against_experts(config: Any, gpus: int) -> str:
    text = config.get_text_config()
    if not getattr(text, "base_model_ep_plan", None):
        return f"transformers has no plan of expert parallelism for model_type {config.model_type!r}"
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    count = next((n for name in names if isinstance(n := getattr(text, name, None), int)), 0)
    return "" if count and count % gpus == 0 else f"its {count} experts cannot be shared out evenly"
