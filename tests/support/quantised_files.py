"""Small checkpoints with quantised weights as their makers publish them, each beside the same numbers unpacked by hand.

Formats: "fp8" (DeepSeek, Qwen: blocks of 32 x 32 with `weight_scale_inv`), "mxfp4" (gpt-oss: `*_blocks` and `*_scales` of the
experts), and of compressed-tensors "float-quantized" (FP8, a scale a row), "int-quantized" (int8, a scale a row) and
"pack-quantized" (int4 in int32, a scale for 32 columns). All else lies there in bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, PreTrainedConfig

BLOCK = 32
FP8 = torch.float8_e4m3fn
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""What the sixteen codes of MXFP4 stand for."""
COMPRESSED = ("float-quantized", "int-quantized", "pack-quantized")
_NOT = ("lm_head", "embed", "norm", "mlp.gate.weight")
Made = tuple[dict[str, torch.Tensor], torch.Tensor]  # tensors by what comes behind the name of the module; unpacked


def write_both(folder: Path, config: PreTrainedConfig, form: str) -> dict[str, torch.Tensor]:
    """`packed` and `plain` in folder; returns the numbers by hand, float32."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "plain")
    said = json.loads((folder / "plain" / "config.json").read_text(encoding="utf-8"))
    packed, plain = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, weight in load_file(folder / "plain" / "model.safetensors").items():
        base, _, last = name.rpartition(".")
        if form == "mxfp4" and last in ("gate_up_proj", "down_proj"):
            made, plain[name] = _mxfp4(weight)
            packed |= {name + ending: t for ending, t in made.items()}
        elif form != "mxfp4" and weight.ndim == 2 and not any(part in name for part in _NOT):
            made, plain[name] = _MAKERS[form](weight)
            packed |= {f"{base}.{ending}": t for ending, t in made.items()}
        else:
            packed[name] = weight.bfloat16()
            plain[name] = packed[name].float()
    (folder / "packed").mkdir()
    save_file(plain, folder / "plain" / "model.safetensors", {"format": "pt"})
    save_file(packed, folder / "packed" / "model.safetensors", {"format": "pt"})
    said |= {"dtype": "bfloat16", "quantization_config": said_of(form)}
    (folder / "packed" / "config.json").write_text(json.dumps(said), encoding="utf-8")
    return plain


def said_of(form: str) -> dict[str, Any]:
    """quantization_config of config.json."""
    if form == "fp8":
        return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    if form == "mxfp4":
        return {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    groups = {"group_0": {"targets": ["Linear"], "format": form, "weights": weights_of(form)}}
    return {
        "quant_method": "compressed-tensors", "config_groups": groups, "format": form, "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }  # fmt: skip


def weights_of(form: str) -> dict[str, Any]:
    """What a group of compressed-tensors says of its weights."""
    if form == "pack-quantized":
        return {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": BLOCK}
    kind = "float" if form == "float-quantized" else "int"
    return {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel"}


def _fp8(weight_RC: torch.Tensor) -> Made:
    rows, columns = weight_RC.shape
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)

    def blocks(t: torch.Tensor) -> torch.Tensor:
        return pad(t, (0, across * BLOCK - columns, 0, down * BLOCK - rows)).view(down, BLOCK, across, BLOCK)

    def whole(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(down * BLOCK, across * BLOCK)[:rows, :columns].contiguous()

    scale = blocks(weight_RC).abs().amax((1, 3)) / 448
    spread = scale[:, None, :, None]
    stored = whole(blocks(weight_RC) / spread).to(FP8)
    return {"weight": stored, "weight_scale_inv": scale}, whole(blocks(stored.float()) * spread)


def _mxfp4(weight_EIO: torch.Tensor) -> Made:
    """Of E experts, I columns in and O rows out: blocks of 32 along I, two codes a byte, the lower four bits first."""
    experts, inner, outer = weight_EIO.shape
    blocks = weight_EIO.transpose(1, 2).reshape(experts, outer, inner // 32, 32)
    power = torch.floor(torch.log2(blocks.abs().amax(-1))) - 2
    scale = torch.exp2(power)[..., None]
    code = ((blocks / scale)[..., None] - E2M1).abs().argmin(-1)
    stored = (code[..., 0::2] | code[..., 1::2] << 4).to(torch.uint8)
    unpacked = (E2M1[code] * scale).reshape(experts, outer, inner).transpose(1, 2).contiguous()
    return {"_blocks": stored, "_scales": (power + 127).to(torch.uint8)}, unpacked


def _rows(weight_RC: torch.Tensor, most: int, dtype: torch.dtype) -> Made:
    scale = weight_RC.abs().amax(1, keepdim=True) / most
    stored = (weight_RC / scale if dtype == FP8 else torch.round(weight_RC / scale)).to(dtype)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def _int4(weight_RC: torch.Tensor) -> Made:
    """Eight codes (value + 8) in an int32, the first in the lowest bits."""
    rows, columns = weight_RC.shape
    groups = weight_RC.view(rows, -1, BLOCK)
    scale = groups.abs().amax(-1) / 7
    value = torch.round(groups / scale[..., None])
    code = (value.view(rows, -1, 8).long() + 8) << (4 * torch.arange(8))
    stored = code.sum(-1)
    stored = torch.where(stored >= 1 << 31, stored - (1 << 32), stored).to(torch.int32)
    shape = torch.tensor([rows, columns])
    unpacked = (value * scale[..., None]).view(rows, columns)
    return {"weight_packed": stored, "weight_scale": scale, "weight_shape": shape}, unpacked


_MAKERS: dict[str, Callable[[torch.Tensor], Made]] = {
    "fp8": _fp8,
    "float-quantized": lambda weight: _rows(weight, 448, FP8),
    "int-quantized": lambda weight: _rows(weight, 127, torch.int8),
    "pack-quantized": _int4,
}
