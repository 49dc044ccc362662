"""How large a teacher is, before any of its weights is read: numbers of its configuration and of the heads of its files.

config.json + the heads of *.safetensors (else the architecture without memory behind it) -> TeacherSize
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from engine.plan.teacher_config import teacher_config
from engine.plan.teacher_files import teacher_files
from engine.plan.teacher_place import teacher_gguf
from schemas.errors import TeacherError
from schemas.runfile import RunConfig

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16}
"""Of a number in a safetensors file by the name of its type; all others have 8 or fewer and are packed into 8."""
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_RECURRENT = ("linear_attention", "mamba", "recurrent", "conv", "moe", "mlp")
"""Kinds of layers, as configurations name them, that keep no keys and values."""


@dataclass(frozen=True, slots=True)
class TeacherSize:
    """What a teacher takes, whole, in bytes.

    parameters: numbers in its weights (of packed quantised ones: as they lie in the file). weights_bytes: of all of them in the
    format in which they are run; dtype: that of the others, where some are quantised. layers: blocks of the decoder.
    cache_bytes_per_token: keys and values of all layers. pass_bytes_per_token: what one layer holds at a time while it works (an
    estimate: residual and normed states, queries, keys and values with their rotated and repeated copies, the widest of the
    MLP). state_bytes: of one last hidden state. vocabulary: rows of the lm_head. packed: quantised weights stay as they lie in
    the files, whatever the dtype. recurrent: some layers have states that are no keys and values.
    """

    parameters: int
    weights_bytes: int
    dtype: str
    layers: int
    cache_bytes_per_token: int
    pass_bytes_per_token: int
    state_bytes: int
    vocabulary: int
    packed: bool = False
    recurrent: bool = False

    @property
    def number_bytes(self) -> int:
        """Bytes of one number of an activation."""
        return BYTES_OF.get(self.dtype, 4)


def teacher_size(run: RunConfig, *, on_cpu: bool) -> TeacherSize:
    """The size of the teacher of a run. on_cpu: there `dtype = "auto"` is float32. Raises TeacherError for files that are missing
    or that are no weights."""
    files, config = teacher_files(run), teacher_config(run)
    heads = [file for file in files if file.suffix == ".safetensors"]
    floats = unpacked(config, on_cpu)
    if heads and not floats:
        tensors = list(_tensors(heads))
    else:  # a .bin file tells its shapes only to whoever unpickles it; unpacked weights are those of the architecture
        tensors = _without_memory(config, run.teacher.trust_remote_code)
    dtype = run.teacher.dtype
    if dtype == "auto" and teacher_gguf(run) is not None:
        dtype = "float32"
    return size_of(
        config, tensors, _dtype(dtype, config, tensors, on_cpu), packed=bool(heads and method_of(config) and not floats)
    )


def method_of(config: Any) -> str:
    """How the weights are quantised, as a configuration of transformers names it; "" where they are not."""
    said = getattr(config, "quantization_config", None) or {}
    return str((said if isinstance(said, dict) else said.to_dict()).get("quant_method", ""))


def unpacked(config: Any, on_cpu: bool) -> bool:
    """Whether plain numbers are made of quantised weights as they are loaded (engine/teacher/quantised.py)."""
    method = method_of(config)
    return method == "compressed-tensors" or (on_cpu and method in ("fp8", "mxfp8", "mxfp4"))


def _dtype(asked: str, config: Any, tensors: Iterable[tuple[str, int]], on_cpu: bool) -> str:
    """As `load_teacher` and transformers choose it."""
    if asked != "auto":
        return asked
    if on_cpu:
        return "float32"
    named = str(getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None) or "")
    found = next((_FLOATS[kind] for kind, _ in tensors if kind in _FLOATS), "float32")
    return named.removeprefix("torch.") or found


def size_of(config: Any, tensors: Iterable[tuple[str, int]], dtype: str, *, packed: bool = False) -> TeacherSize:
    """From a configuration of transformers and its tensors, each as (type as safetensors names it, count of numbers). packed:
    some of these are quantised and stay as they are; beside them scales stay in float32 and all else becomes `dtype`."""
    text = config.get_text_config()
    number = BYTES_OF.get(dtype, 4)
    parameters = weights = 0
    for kind, count in tensors:
        own = max(8, _BITS.get(kind, 8)) // 8
        parameters += count
        weights += count * (own if kind not in _FLOATS else max(own, number) if packed else number)
    heads, head = _numbers(text, "num_attention_heads", "n_head"), _numbers(text, "head_dim")
    hidden, layers = _numbers(text, "hidden_size", "n_embd", "d_model"), _numbers(text, "num_hidden_layers", "n_layer")
    head = head or (hidden // heads if heads else 0)
    keys = _numbers(text, "num_key_value_heads") or heads
    key, value = _numbers(text, "qk_head_dim") or head, _numbers(text, "v_head_dim") or head
    kept = keys * (key + value)
    if latent := _numbers(text, "kv_lora_rank"):  # multi-head latent attention: the cache has what both are made of
        keys, key = heads, _numbers(text, "qk_nope_head_dim") + _numbers(text, "qk_rope_head_dim") or key
        kept = latent + _numbers(text, "qk_rope_head_dim")
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
    attending = sum(not any(part in kind for part in _RECURRENT) for kind in kinds)
    experts = _numbers(text, "num_experts_per_tok", "top_k_experts") if _experts(text) else 0
    inner = max(
        _numbers(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        experts
        * (_numbers(text, "moe_intermediate_size", "expert_ffn_hidden_size") or _numbers(text, "intermediate_size")),
    )
    attention = 2 * heads * key + 2 * keys * (key + value) + heads * (key + 2 * value)
    widest = 8 * hidden + max(attention, 3 * inner)  # measured on a CPU: within a fifth of it
    return TeacherSize(
        parameters,
        weights,
        dtype,
        layers,
        cache_bytes_per_token=attending * kept * number,
        pass_bytes_per_token=widest * number,
        state_bytes=hidden * number,
        vocabulary=_numbers(text, "vocab_size"),
        packed=packed,
        recurrent=attending < len(kinds),
    )


def _numbers(text: Any, *names: str) -> int:
    """The first of these that the configuration has as a whole number; 0 where it has none. A list has one for each layer."""
    for name in names:
        found = getattr(text, name, None)
        if isinstance(found, list | tuple) and found and all(isinstance(one, int) for one in found):
            return max(found)
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    return 0


def _experts(text: Any) -> bool:
    return bool(_numbers(text, "num_experts", "num_local_experts", "n_routed_experts"))


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, int]]:
    """(type, count of numbers) of all tensors, from the heads of the files. Raises TeacherError: a file without such a head."""
    for file in files:
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if not 2 <= length <= file.stat().st_size - 8:
                    raise ValueError(f"its head is said to have {length} bytes")
                head = json.loads(stream.read(length))
            yield from ((one["dtype"], prod(one["shape"])) for name, one in head.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TeacherError(
                f"[teacher] model: {file} is no file of safetensors ({error}); fetch it again"
            ) from error


def _without_memory(config: Any, trusted: bool) -> list[tuple[str, int]]:
    """The same of the architecture itself, made without memory behind its tensors; tied ones once. Raises TeacherError where
    the architecture cannot be made of this configuration."""
    try:
        with init_empty_weights(include_buffers=True):  # else each tensor is there for a moment
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    except Exception as error:  # code of every architecture there is: it may raise anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TeacherError(
            f"[teacher] model: no model can be made of its config.json ({first}); fetch the files again, or update transformers"
        ) from error
    return [("F32", parameter.numel()) for parameter in model.parameters()]
