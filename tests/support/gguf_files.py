"""A GGUF file of the demo's teacher, written by the gguf library: weights, tokens and merges, and a name for its cuts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from transformers import AutoModelForCausalLM

from tests.support.runs import ASSETS

TEACHER = ASSETS / "teacher"
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}  # fmt: skip


def write_gguf(
    file: Path, pre: str = "llama-bpe", kind: str = "Q8_0", change: Callable[[GGUFWriter], None] | None = None
) -> Path:
    """pre: the name of its pre-tokenizer. kind: of the matrices, in ggml's words. change: told to put in more."""
    model: Any = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)
    config = model.config
    writer = GGUFWriter(str(file), "llama")
    writer.add_name("demo")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _tokenizer(writer, pre)
    if change is not None:
        change(writer)
    weights = dict(model.named_parameters())  # tied ones once
    for name, tensor in weights.items():
        array = tensor.detach().numpy()
        for long, short in _NAMES.items():
            name = name.replace(long, short)
        if ".attn_q." in name or ".attn_k." in name:
            heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            packed = GGMLQuantizationType[kind]
            writer.add_tensor(name, quants.quantize(np.ascontiguousarray(array), packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tokenizer(writer: GGUFWriter, pre: str) -> None:
    spec = json.loads((TEACHER / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((TEACHER / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary, merges = spec["model"]["vocab"], spec["model"]["merges"]
    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    ids = {**vocabulary, **special}
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for role, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        if (name := settings.get(f"{role}_token")) in ids:
            add(ids[name])
    writer.add_add_bos_token(True)
