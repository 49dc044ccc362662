"""Checkpoints whose weights are quantised: how they are run, and a refusal where they would be run as other numbers.

Such weights are run in one of two ways. *Unpacked*: floats are made of them as they are loaded, and the model is a plain one
(GGUF; FP8 and MXFP4 on a CPU; compressed-tensors). *Packed*: they stay as they are and kernels of a library compute with them
(bitsandbytes, torchao, GPTQ, AWQ, HQQ; FP8 and MXFP4 on a GPU); such a model has noise (engine/teacher/gauge.py).

transformers 5 makes other numbers of some checkpoints and says nothing, or only logs it: where it does not know the method,
where scales lie beside weights and it does not read them, where FP8 blocks are cut off at an edge, and where compressed-tensors
has several kinds of layers. All four are refused here.

config.json + heads of the weight files -> arguments for `from_pretrained`; loaded model -> one number format; or a TeacherError
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig
from transformers.utils.hub import cached_file

from schemas.errors import TeacherError

_FP8 = ("fp8", "mxfp8")
_LIBRARIES = {"gptq": ("gptqmodel", "optimum"), "awq": ("gptqmodel",), "compressed-tensors": ("compressed_tensors",)}
"""Which transformers asks for, one after the other, and not always by their names."""
_SCALES = (("_scale_inv", ""), (".scale", ".weight"), (".qscale_weight", ".weight"))
"""How scales of FP8 weights are called, and what comes in place of that in the names of the weights."""
_OTHERWISE = "Take the model unquantised, or quantised in another way (docs/runfile.md, Quantised teachers)"
_KIND = ("num_bits", "type", "symmetric", "strategy", "group_size")


def unpacking(name: str, place: str, revision: str | None, device: torch.device) -> dict[str, Any]:
    """For `from_pretrained`; empty where weights are plain or stay packed. So it does not hang on what else is installed
    (kernels, triton). name: of the model, for errors; place: a folder or Hub id. Raises TeacherError."""
    known, _ = PreTrainedConfig.get_config_dict(place, revision=revision)
    said = known.get("quantization_config") or {}
    method = said.get("quant_method")
    if method is None:
        return {}
    if not AutoHfQuantizer.supports_quant_method(said):
        raise TeacherError(
            f"[teacher] model {name!r}: its weights are quantised by {method!r}, which transformers does not know: it would "
            f"take them for plain numbers. {_OTHERWISE}"
        )
    if lacking := [library for library in _LIBRARIES.get(method, ()) if find_spec(library) is None]:
        packages = " ".join(library.replace("_", "-") for library in lacking)
        raise TeacherError(
            f"[teacher] model {name!r}: its weights are quantised by {method}, and what loads them is not installed here. "
            f"`pip install {packages}` on all nodes, or take the model unquantised"
        )
    if not _unpacks(method, device):
        return {}
    if method in _FP8:
        _refuse_cut_blocks(name, place, revision, said)
    elif method == "compressed-tensors":
        _refuse_several_kinds(name, said)
    return {"quantization_config": AutoQuantizationConfig.from_dict({**said, "dequantize": True})}


def _unpacks(method: str, device: torch.device) -> bool:
    if method in _FP8:
        return device.type == "cpu" or torch.cuda.get_device_capability(device) < (8, 9)
    return method == "compressed-tensors" or (method == "mxfp4" and device.type == "cpu")


def packed(model: Any) -> str:
    """The method by which weights of a loaded model are quantised and stay so; "" where all are plain numbers."""
    quantizer = getattr(model, "hf_quantizer", None)
    settings = getattr(quantizer, "quantization_config", None)
    if settings is None or getattr(settings, "dequantize", False):
        return ""
    return str(getattr(settings.quant_method, "value", settings.quant_method))


def in_one_format(model: Any) -> None:
    """All numbers of a model that was unpacked in the format that it was asked for, but for those that the architecture wants in
    float32: transformers leaves what was not quantised as it lies in the file, and some experts in the format of their scales."""
    wanted = model.config.dtype
    kept = model._get_dtype_plan(wanted)  # no other place tells
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(part in name for part in kept):
            parameter.data = parameter.data.to(wanted)


def check_all_scaled(name: str, unexpected: Iterable[str]) -> None:
    """unexpected: names of tensors in the files that found no place in the model. Raises TeacherError where one belongs to a
    weight that did (`x.weight_scale` to `x.weight`): that one is only a part of its numbers."""
    left = set(unexpected)
    lost = sorted(key for key in left if ".weight_" in key and f"{key.rpartition('.weight_')[0]}.weight" not in left)
    if lost:
        raise TeacherError(
            f"[teacher] model {name!r}: its files hold {len(lost)} tensor(s), such as {lost[0]}, by which weights were "
            f"quantised, and transformers does not read them, so that its weights would be other numbers. {_OTHERWISE}"
        )


def _refuse_several_kinds(name: str, said: dict[str, Any]) -> None:
    """Raises TeacherError for layers that are quantised in several ways, as far as transformers unpacks all of them in the
    first: it tells experts from other layers and nothing more."""
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for preset, group in (said.get("config_groups") or {}).items():
        if isinstance(group, list):  # names of layers under the name of a way
            group = {"targets": group, "weights": {"type": preset}}
        weights = group.get("weights") or {}
        experts = any(target.startswith("re:") and "experts" in target for target in group["targets"])
        kinds[experts].add(repr([group.get("format"), *(weights.get(key) for key in _KIND)]))
    if max(map(len, kinds.values())) > 1:
        raise TeacherError(
            f"[teacher] model {name!r}: its layers are quantised in several ways (config_groups of compressed-tensors), and "
            "transformers unpacks all of them as the first. Take the model unquantised, or quantised in one way"
        )


def _refuse_cut_blocks(name: str, place: str, revision: str | None, said: dict[str, Any]) -> None:
    """Raises TeacherError where the last block of a weight is smaller than the others: transformers takes all for equal."""
    sides = said.get("weight_block_size") or (1, 1)
    for weight, shape, grid in _scaled(place, revision):
        cut = [
            n > 1 and size % side and n == -(-size // side) for size, side, n in zip(shape, sides, grid, strict=True)
        ]
        if any(cut):
            raise TeacherError(
                f"[teacher] model {name!r}: {weight} has {shape[0]} x {shape[1]} numbers in FP8 blocks of {sides[0]} x {sides[1]}"
                ", the last of which are cut off, and transformers unpacks such weights with wrong scales or not at all. Take "
                "the model unquantised, or a GPU of compute capability 8.9 or more, on which FP8 stays packed"
            )


def _scaled(place: str, revision: str | None) -> Iterator[tuple[str, list[int], list[int]]]:
    """(name, last two sizes of it, last two sizes of its scales) of all weights that have such, from the heads of the files."""
    shapes: dict[str, list[int]] = {}
    for file in _files(place, revision):
        with safe_open(file, "pt") as tensors:
            shapes |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}
    for key, grid in shapes.items():
        for ending, instead in _SCALES:
            weight = key.removesuffix(ending) + instead
            if key.endswith(ending) and weight in shapes and min(len(grid), len(shapes[weight])) >= 2:
                yield weight, shapes[weight][-2:], grid[-2:]


def _files(place: str, revision: str | None) -> list[str]:
    """The weights in safetensors that transformers has found or will find."""

    def found(file: str) -> str | None:
        return cached_file(place, file, revision=revision, _raise_exceptions_for_missing_entries=False)

    index = None if (whole := found("model.safetensors")) else found("model.safetensors.index.json")
    if index is None:
        return [whole] if whole else []
    with open(index, encoding="utf-8") as stream:
        parts = sorted(set(json.load(stream)["weight_map"].values()))
    return [file for part in parts if (file := found(part))]
