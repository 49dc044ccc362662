"""Small models that see what is before a token through states: hybrid and recurrent ones of every family, random weights."""

from __future__ import annotations

from typing import Any

from transformers import (
    BambaConfig,
    DeepseekV4Config,
    FalconH1Config,
    GPTNeoConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    Mamba2Config,
    MambaConfig,
    NemotronHConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    Zamba2Config,
)

from tests.support.decoders import ENDS, VOCAB


def more(**given: Any) -> dict[str, Any]:
    """Settings that a configuration takes without declaring them."""
    return given


LENGTH = 256  # tokens that each of them takes
BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.25, "max_position_embeddings": LENGTH, **ENDS,
}  # fmt: skip
BARE = {key: BASE[key] for key in ("vocab_size", "hidden_size", "initializer_range", *ENDS)}
SSM: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
}
DELTA: dict[str, Any] = {
    "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
COMPRESSED = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
HYBRIDS: dict[str, PreTrainedConfig] = {
    "qwen3_next": Qwen3NextConfig(
        **BASE, **DELTA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "qwen3_5": Qwen3_5TextConfig(**BASE, **DELTA),
    "mamba": MambaConfig(**BARE, num_hidden_layers=2),
    "mamba2": Mamba2Config(**BARE, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=8),
    "jamba": JambaConfig(
        **BASE, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8, use_mamba_kernels=False
    ),
    "granite_hybrid": GraniteMoeHybridConfig(
        **BASE, **SSM, layer_types=["linear_attention", "full_attention"] * 2, num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=16, position_embedding_type="rope",
    ),
    "nemotron_h": NemotronHConfig(
        **BASE, layers_block_type=["linear_attention", "moe", "full_attention", "mlp"], mamba_num_heads=8, mamba_head_dim=8,
        ssm_state_size=8, n_groups=2, chunk_size=8, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16, n_group=1, topk_group=1, **more(head_dim=8),
    ),
    "falcon_h1": FalconH1Config(
        **BASE, **more(head_dim=8),
        mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8, mamba_n_groups=1
    ),
    "lfm2": Lfm2Config(
        **BASE, layer_types=["conv", "full_attention", "conv", "conv"], conv_L_cache=3, block_auto_adjust_ff_dim=False
    ),
    "lfm2_moe": Lfm2MoeConfig(
        **BASE, layer_types=["conv", "full_attention", "conv", "conv"], conv_L_cache=3, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, num_dense_layers=1,
    ),
    "recurrent_gemma": RecurrentGemmaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4, lru_width=32,
        attention_window_size=8, w_init_variance_scale=0.5, **more(max_position_embeddings=LENGTH), **ENDS,
    ),
    "rwkv": RwkvConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, context_length=LENGTH,
        **more(max_position_embeddings=LENGTH),
        bos_token_id=1, eos_token_id=2,
    ),
    "bamba": BambaConfig(**BASE, **SSM, attn_layer_indices=[1, 3]),
    "zamba2": Zamba2Config(
        **BASE, mamba_d_state=8, n_mamba_heads=8, chunk_size=8, layers_block_type=["mamba", "hybrid"] * 2,
        adapter_rank=4, **more(mamba_headdim=8, attention_head_dim=16), num_mem_blocks=1,
    ),
    "deepseek_v4": DeepseekV4Config(  # keys and values of several tokens in one, and few of them chosen
        vocab_size=VOCAB, hidden_size=32, moe_intermediate_size=16, num_hidden_layers=4, num_attention_heads=4, head_dim=16,
        q_lora_rank=16, num_experts_per_tok=2, n_routed_experts=4, compress_rates=COMPRESSED, sliding_window=8, o_groups=2,
        o_lora_rank=8, index_n_heads=24, index_head_dim=16, index_topk=3, max_position_embeddings=LENGTH, hc_mult=2,
        initializer_range=0.25, layer_types=["sliding_attention", *COMPRESSED, "compressed_sparse_attention"], **ENDS,
    ),
    "gpt_neo": GPTNeoConfig(  # attention, but its local layers look back by the place in the batch, whatever the mask
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=30,
        max_position_embeddings=LENGTH, initializer_range=0.25, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip
