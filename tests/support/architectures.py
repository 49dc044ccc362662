"""A tiny model of every causal language model that the installed transformers knows, made from its default configuration.

Nothing is written down for single architectures: sizes are recognised by the names that configurations use. What cannot be
made so is told with the reason, so that a test can count it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MOST_PARAMETERS = 5_000_000
VOCAB = 97

LAYERS = 4  # enough for every kind of layer of a usual pattern

# (part of a name of a whole number in a configuration, what it becomes when it is larger); the first that fits counts
SIZES = (
    ("vocab", VOCAB), ("layers_per", 0), ("_layers", LAYERS), ("n_layer", LAYERS), ("num_blocks", LAYERS),
    ("key_value", 2), ("kv_heads", 2), ("experts_per", 2), ("topk_group", 1), ("n_group", 1), ("experts", 4),
    ("mamba_n_heads", 8), ("head_dim", 8), ("d_head", 8), ("heads", 4), ("n_head", 4), ("q_lora_rank", 16), ("kv_lora_rank", 16),
    ("max_position", 64), ("n_positions", 64), ("intermediate", 48), ("ffn", 48), ("inner", 48), ("d_ff", 48),
    ("hidden_size", 32), ("hidden_dim", 32), ("d_model", 32), ("n_embd", 32), ("embedding_size", 32),
    ("embed_dim", 32), ("emb_dim", 32), ("lru_width", 32),
)  # fmt: skip


def shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    """The configuration's own values with every size made small, parts in parts."""
    layers = {len(value) for value in vars(config).values() if isinstance(value, list | tuple)} & {
        value for name, value in vars(config).items() if "layer" in name and isinstance(value, int)
    }
    values: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        part = vars(config).get(name)
        if isinstance(part, PreTrainedConfig):
            values[name] = shrunk(part)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            size = next((size for fits, size in SIZES if fits in name), None)
            size = VOCAB - 1 if name.endswith("_id") else size
            values[name] = value if not size else min(value, size)
        elif isinstance(value, list) and len(value) in layers and len(value) > LAYERS:
            values[name] = [*value[: LAYERS - 1], value[-1]]  # one entry for each layer; the last is often another kind
        elif name == "per_layer_config" and isinstance(value, dict):
            values[name] = {layer: kept for layer, kept in value.items() if int(layer) < LAYERS}
        elif name == "initializer_range":
            values[name] = 0.1  # distributions that are not flat
        elif name not in ("transformers_version", "architectures"):
            values[name] = value
    return values


# what is put in where a configuration does not hold together: what makes a model that runs, else what makes a model
REPAIRS: tuple[dict[str, Any], ...] = (
    {}, {"head_dim": 8}, {"num_key_value_heads": 2}, {"num_key_value_heads": 4}, {"rotary_dim": 8}, {"num_heads": 8},
    {"is_decoder": True}, {"moe_k": 2}, {"attn_layer_offset": 1}, {"attn_layer_indices": [1]}, {"num_kv_shared_layers": 0},
    {"num_dense_layers": LAYERS}, {"layer_types": ["full_attention", "sliding_attention"] * 2},
    {"layer_types": ["mamba", "attention"] * 2}, {"layer_types": ["linear_attention", "full_attention"] * 2},
    {"default_language": "en_XX"}, {"d_head": 8, "max_position_embeddings": 64},
    {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16, "head_dim": 8, "num_key_value_heads": 4},
)  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """config: of a tiny model, None where none could be made; runs: whether the model scores a plain sequence; why: if not."""

    config: PreTrainedConfig | None
    runs: bool
    why: str


@cache
def tiny(name: str) -> Tiny:
    """The first repair with which the architecture's small configuration makes a model that runs."""
    config_class: Any = CONFIG_MAPPING[name]
    built, why = None, ""
    for repair in REPAIRS:
        try:
            config = config_class(**shrunk(config_class()) | repair)
            with torch.device("meta"):
                count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if count > MOST_PARAMETERS:
                raise ValueError(f"{count} parameters")
            model = build(config)
        except Exception as error:  # whatever it is: the configuration is ours, and no model came of it
            why = why or f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            continue
        try:
            with torch.inference_mode():
                model(input_ids=torch.arange(3, 15)[None])
        except Exception as error:
            built, why = built or config, f"does not run: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            continue
        return Tiny(config, True, "")
    return Tiny(built, False, why)


def build(config: PreTrainedConfig) -> Any:
    """The model, weights by a fixed seed, in float32."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
