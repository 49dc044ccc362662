"""Chat templates faithful to published ones, and tokenizers with their specials, for tests of conversations.

The tokenizers are the demo's (and toys): special tokens are added at their end, which changes no text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.support.runs import ASSETS

CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) or message.role == 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SPECIALS = {
    "chatml": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "llama2": (),
}
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "llama2": LLAMA2}
END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
_BOS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>"}


def with_template(source: Path, folder: Path, style: str, *, template: str | None = None) -> Path:
    """A copy of a tokenizer folder with the specials and the template of a style. Special tokens get the next free ids."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors", "*config.json"))
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    known = {token["content"] for token in spec["added_tokens"]}
    size = max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]) + 1
    for content in SPECIALS[style]:
        if content not in known:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            spec["added_tokens"].append({"id": size, "content": content, **flags})
            size += 1
    config["chat_template"] = template or TEMPLATES[style]
    if style in _BOS:
        config["bos_token"] = _BOS[style]
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def chat_teacher(folder: Path, style: str, *, ends: Sequence[str] = (), template: str | None = None) -> Path:
    """The demo's teacher as a chat model of a style: its embeddings widened by random rows for the new specials, and
    generation config with the ends named."""
    source = ASSETS / "teacher"
    with_template(source, folder, style, template=template)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in spec["added_tokens"]}
    torch.manual_seed(7)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.resize_token_embeddings(max(ids.values()) + 1, mean_resizing=False)
    with torch.no_grad():  # the specials must have mass that can be seen
        model.get_input_embeddings().weight[2046:] = 0.3 * torch.randn(max(ids.values()) + 1 - 2046, 128)
    model.generation_config.eos_token_id = [ids[end] for end in ends] or None
    model.config.eos_token_id = None
    model.save_pretrained(folder)
    return folder
