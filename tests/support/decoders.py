"""Small decoders of many architectures with random weights, token trees, and each context scored quite alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    JambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RecurrentGemmaConfig,
    RwkvConfig,
    Starcoder2Config,
)

from engine.teacher.model import Teacher, load_teacher
from engine.teacher.packing import Window
from schemas.settings import TeacherConfig

VOCAB = 97
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.25, **ENDS,
}  # fmt: skip
GROUPED = {key: value for key, value in SMALL.items() if key != "head_dim"}
PLAIN = {key: value for key, value in GROUPED.items() if key != "num_key_value_heads"}
CAPS: dict[str, Any] = {
    "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FULL: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.25, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": GPTNeoXConfig(**PLAIN),
    "phi3": Phi3Config(**GROUPED),
    "olmo2": Olmo2Config(**GROUPED),
    "granite": GraniteConfig(**GROUPED, logits_scaling=2.0, attention_multiplier=0.3, embedding_multiplier=3.0),
    "starcoder2": Starcoder2Config(**GROUPED),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "mistral-wide": MistralConfig(**SMALL, sliding_window=64),
    "gemma2-wide": Gemma2Config(**SMALL, **CAPS, sliding_window=64),
    "gemma3-wide": Gemma3TextConfig(**SMALL, sliding_window=64, query_pre_attn_scalar=8),
}  # fmt: skip
SLIDING: dict[str, PreTrainedConfig] = {
    "mistral-window": MistralConfig(**SMALL, sliding_window=6),
    "phi3-window": Phi3Config(**GROUPED, sliding_window=7),
    "starcoder2-window": Starcoder2Config(**GROUPED, sliding_window=5),
    "gemma2-window": Gemma2Config(**SMALL, **CAPS, sliding_window=6),
    "gemma3-window": Gemma3TextConfig(**SMALL, sliding_window=9, query_pre_attn_scalar=8, layer_types=MIXED),
    "qwen2-last-layers": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen2-all-layers": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=0),
    "qwen3-window": Qwen3Config(**SMALL, use_sliding_window=True, sliding_window=1, layer_types=MIXED),
    "gpt_oss": GptOssConfig(**SMALL, sliding_window=6, num_local_experts=4, num_experts_per_tok=2),
}
TREES = FULL | SLIDING
RECURRENT: dict[str, PreTrainedConfig] = {
    "mamba": MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, initializer_range=0.25, **ENDS),
    "mamba2": Mamba2Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=8,
        initializer_range=0.25, **ENDS,
    ),
    "rwkv": RwkvConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, context_length=64, bos_token_id=1, eos_token_id=2),
    "jamba": JambaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8, use_mamba_kernels=False,
        initializer_range=0.25, **ENDS,
    ),
    "recurrent_gemma": RecurrentGemmaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4, lru_width=32,
        attention_window_size=8, w_init_variance_scale=0.5, **ENDS,
    ),
    "gpt_neo": GPTNeoConfig(  # attention, but its local layers look back by the place in the batch, whatever the mask
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=30,
        max_position_embeddings=64, initializer_range=0.25, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


def save(root: Path, configs: dict[str, PreTrainedConfig]) -> Path:
    """A folder for each, with weights that depend on its place in the list."""
    for seed, (name, config) in enumerate(configs.items()):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).eval().save_pretrained(root / name)
    return root


def load(path: Path, **settings: Any) -> Teacher:
    config = TeacherConfig.model_validate({"model": str(path), "device": "cpu"} | settings)
    return load_teacher(config, str(path), tokenizer_end=2)


@cache
def loaded(path: Path) -> Teacher:
    """One teacher for many tests; whoever changes it takes `load`."""
    return load(path)


@cache
def reference(path: Path) -> Any:
    """The model as transformers loads it when attention is computed in the plainest way."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def random_window(seed: int, size: int) -> Window:
    """A trunk with branches of several lengths hanging off random nodes."""
    generator = torch.Generator().manual_seed(seed)
    token = torch.randint(0, VOCAB, (size,), generator=generator).tolist()
    trunk = max(1, size // 2)
    parent = [*range(-1, trunk - 1)]
    for node in range(trunk, size):
        parent.append(int(torch.randint(0, node, (1,), generator=generator)))
    depth: list[int] = []
    for p in parent:
        depth.append(0 if p < 0 else depth[p] + 1)
    return Window(token, parent, depth)


def chain(seed: int, size: int) -> Window:
    token = torch.randint(0, VOCAB, (size,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Window(token, list(range(-1, size - 1)), list(range(size)))


@torch.inference_mode()
def alone(model: Any, window: Window) -> torch.Tensor:
    """fp32 log-probabilities [n, V] of every node's context as a sequence of its own, by the model's own forward."""
    rows = []
    for node in range(len(window.token)):
        path = [node]
        while window.parent[path[-1]] >= 0:
            path.append(window.parent[path[-1]])
        ids = torch.tensor([[window.token[n] for n in reversed(path)]])
        rows.append(torch.log_softmax(model(input_ids=ids).logits[0, -1].float(), -1))
    return torch.stack(rows)


def logps(teacher: Teacher, windows: list[Window]) -> list[torch.Tensor]:
    return [torch.log_softmax(teacher.logits(hidden), -1) for hidden in teacher.hidden(windows)]
