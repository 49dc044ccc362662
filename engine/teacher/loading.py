"""A teacher's files -> a model of transformers on its devices, complete, with its adapter in it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.distributed.configuration_utils import DistributedConfig

from engine.teacher.adapter import with_adapter
from engine.teacher.gguf_weights import check_all_taken
from engine.teacher.quantised import check_all_scaled, in_one_format, packed, unpacking
from engine.teacher.self_check import first_line
from schemas.address import gguf_parts
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOADING = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def load_model(config: TeacherConfig, path: str, device: torch.device, adapter: str | None, split: str) -> Any:
    """In evaluation mode. path: a folder, a Hub id or a GGUF file; the other arguments: as for `load_teacher`. Raises
    TeacherError."""
    place, gguf = gguf_parts(path)
    dtype: Any = "auto" if config.dtype == "auto" else _DTYPES[config.dtype]
    if config.dtype == "auto" and (device.type == "cpu" or gguf):
        dtype = torch.float32  # half precision on a CPU is slower and less exact; blocks of GGUF stand for float32
    try:
        unpacked = _of_gguf(gguf) if gguf else unpacking(path, place, config.revision, device)
        # transformers chooses the attention: SDPA where the architecture has it, else its own plain one (Gemma-2)
        with warnings.catch_warnings():  # what is passed is the model's own, but for one switch
            warnings.filterwarnings("ignore", "You passed `quantization_config`")
            made: Any = AutoModelForCausalLM.from_pretrained(
                place,
                revision=config.revision,
                dtype=dtype,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
                **unpacked,
                **_placement(split, device),
            )
    except TeacherError:
        raise
    except Exception as error:  # damaged and hostile files make the libraries raise anything
        if type(error).__name__ == "UnpicklingError":
            raise TeacherError(
                f"[teacher] model {path!r}: a .bin file holds more than weights, and such files can hold code, so it was not "
                "loaded. Want model.safetensors; convert the model where you trust it, or take another."
            ) from error
        if not isinstance(error, _LOADING):
            raise
        if isinstance(error, ImportError):
            raise TeacherError(
                f"[teacher] model {path!r}: a library that its files need is missing: {first_line(error)}. Install it on all "
                "nodes ('targetsmith[gguf]', 'targetsmith[bitsandbytes]', 'targetsmith[torchao]' and "
                "'targetsmith[compressed-tensors]' bring theirs)"
            ) from error
        raise TeacherError(
            f"[teacher] model {path!r} cannot be loaded: {first_line(error)}. Want a folder (or Hub id) with config.json "
            "and weights of a causal language model that transformers knows."
        ) from error
    model, report = made
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills them with random numbers and only warns
        raise TeacherError(
            f"[teacher] model {path!r}: the weights lack {len(missing)} tensor(s), such as {missing[0]}. Want the complete "
            "weights of a causal language model; fetch them again, or check that config.json belongs to them."
        )
    check_all_scaled(path, report["unexpected_keys"])
    if gguf:
        check_all_taken(model, place, gguf, config.revision)
    elif unpacked:
        in_one_format(model)
    if adapter is not None:
        if method := packed(model):
            raise TeacherError(
                f"[teacher] adapter with model {path!r}: its weights are quantised ({method}) and stay packed, so that merging "
                "would round the adapter away. Name the model that is not quantised, or one with the adapter merged before"
            )
        model = with_adapter(model, adapter, config.adapter_revision)
    if split == "layers":
        _refuse_host(model, path)
    elif split == "one" and not packed(model):
        model = model.to(device)  # an adapter may have been merged elsewhere
    return model.eval()


def number_format(model: Any) -> torch.dtype:
    """What the model computes in, also where the first of its weights are packed."""
    return model.get_input_embeddings().weight.dtype if packed(model) else model.dtype


def _of_gguf(file: str) -> dict[str, Any]:
    return {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}


def _placement(split: str, device: torch.device) -> dict[str, Any]:
    """Where the weights go, for `from_pretrained`: straight to their devices, file by file, so that host memory never holds them
    all."""
    if split == "layers":
        return {"device_map": "balanced"}
    if split == "one":
        return {} if device.type == "cpu" else {"device_map": {"": torch.cuda.current_device()}}
    count = torch.distributed.get_world_size()
    return {"distributed_config": DistributedConfig(tp_size=count, ep_size=count if split == "experts" else 1)}


def _refuse_host(model: Any, path: str) -> None:
    """Raises TeacherError for layers that found no place on a GPU: accelerate would fetch them from host memory or disk for every
    pass."""
    placed = getattr(model, "hf_device_map", {})
    outside = [name for name, where in placed.items() if where in ("cpu", "disk")]
    if outside:
        raise TeacherError(
            f"[teacher] model {path!r}: {len(outside)} of {len(placed)} parts, such as {outside[0]}, found no room on the GPUs "
            f"({torch.cuda.device_count()} here). Raise [ray] num_gpus, or take larger GPUs or a smaller dtype"
        )
