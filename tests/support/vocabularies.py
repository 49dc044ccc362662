"""Real tokenizers and texts for tests, each loaded once per session, and small tokenizers made on the spot.

TARGETSMITH_SHARED names the folder with `tokenizers/`, `models/` and `text/` (default: `shared` beside the repository);
tests that need it are marked `needs_shared`. TARGETSMITH_EFFORT multiplies sample sizes (default 1).
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bpe.merges import MergeTable, build_merge_table
from engine.bpe.pretokenizer import Splitter, build_splitter
from engine.bpe.segmenter import Segmenter
from engine.bpe.vocabulary import Vocabulary, byte_alphabet, load_vocabulary
from engine.contexts.builder import ContextBuilder
from engine.contexts.tree import ContextTree

SHARED = Path(os.environ.get("TARGETSMITH_SHARED", Path(__file__).resolve().parents[3] / "shared"))
EFFORT = int(os.environ.get("TARGETSMITH_EFFORT", "1"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "tokenizers").is_dir(), reason=f"no shared data at {SHARED}: set TARGETSMITH_SHARED"
)

QWEN_SUBSETS = ("qwen2.5-subset-0", "qwen2.5-subset-8000", "qwen2.5-subset-32000")
HARD = ("qwen3", "olmo1-v1_5", "refact", "cl100k-new-pattern", "yi-34b")  # added tokens that are text, odd patterns
BYTE_LEVEL = (
    "gpt2", "gpt-neox-20b", "smollm2", "starcoder2", "deepseek-llm-7b", "llama-3", "o200k_base", "qwen2.5", *QWEN_SUBSETS,
    *HARD[:4],
)  # fmt: skip
SENTENCEPIECE = ("llama-2", "mistral-v0.3", "jamba-v0.1", "yi-34b")
TRAINED = ("stories260K", "vachan-gpt2-280K", "babyllama-tok361", "babyllama-tok105")
ALL = (*BYTE_LEVEL, *SENTENCEPIECE, *TRAINED)
SPELL = {byte: char for char, byte in byte_alphabet().items()}


def folder(name: str) -> Path:
    """Folder of a shared tokenizer or model."""
    return SHARED / ("models" if name in TRAINED else "tokenizers_hard" if name in HARD else "tokenizers") / name


@cache
def vocabulary(name: str) -> Vocabulary:
    return load_vocabulary(str(folder(name)))


@cache
def merge_table(name: str) -> MergeTable:
    return build_merge_table(vocabulary(name))


@cache
def splitter(name: str) -> Splitter:
    return build_splitter(vocabulary(name))


@cache
def builder(name: str) -> ContextBuilder:
    return ContextBuilder(segmenter(name))


@cache
def segmenter(name: str) -> Segmenter:
    return Segmenter(vocabulary(name), merge_table(name), splitter(name))


@cache
def texts() -> tuple[str, ...]:
    """Pieces of at most 3,000 characters of all shared texts: 81 languages, stress cases, LaTeX, maths, stories."""
    lines = [json.loads(line) for line in _read("udhr.jsonl").splitlines()]
    out = [line["text"] for line in lines] + json.loads(_read("big_list_of_naughty_strings.json"))
    questions = [json.loads(line) for line in _read("gsm8k/test.jsonl").splitlines()[:60]]
    out += [f"{q['question']}\n{q['answer']}" for q in questions]
    out += _read("tinystories_sample_2MB.txt")[:60_000].split("<|endoftext|>")
    out += [_read(name) for name in ("kitoken_mixed_input.txt", "kitoken_small_input.txt", "kitoken_utf8_input.txt")]
    out += [_read("openlogic.tex")[at : at + 3000] for at in range(0, 600_000, 60_000)]
    return tuple(text[:3000] for text in out if text)


def _read(name: str) -> str:
    return (SHARED / "text" / name).read_bytes().decode("utf-8")


@cache
def words() -> tuple[str, ...]:
    """Distinct words with the space before them, and runs of whitespace, of all shared texts, shuffled."""
    found = {word for text in texts() for word in re.findall(r"\s?\S+|\s+", text) if len(word) <= 60}
    return tuple(random.Random(0).sample(sorted(found), len(found)))


def encoding_of_prefix(tree: tuple[list[int], list[int]], end: int) -> list[int]:
    """Token ids of piece[:end], read off its prefix tree (`MergeTable.prefix_tree`)."""
    last, parent = tree
    out = []
    while end > 0:
        out.append(last[end])
        end = parent[end]
    return out[::-1]


def at_byte(tree: ContextTree, place: int) -> list[int]:
    """`ContextTree.at_bytes` of one byte."""
    return tree.at_bytes([place])[0]


def fringe_at(tree: ContextTree, place: int) -> list[tuple[int, int]]:
    """`ContextTree.fringes` of one byte."""
    return tree.fringes([place])[0]


# ==== trees made by hand


def hand_made(token: list[int], parent: list[int], end: list[int], *, given: int, trunk: int) -> ContextTree:
    """A tree of `given` BOS tokens, `trunk` tokens of the document, then branches; nothing wanted."""
    depth: list[int] = []
    for p in parent:
        depth.append(depth[p] + 1 if p >= 0 else 0)
    nothing, start = np.empty(0, np.int32), np.zeros(1, np.int32)
    return ContextTree(
        token=np.array(token, np.int32),
        parent=np.array(parent, np.int32),
        end=np.array(end, np.int32),
        depth=np.array(depth, np.int32),
        trunk=np.arange(given, given + trunk, dtype=np.int32),
        given=max(given - 1, 0),
        places=nothing,
        at_start=start,
        at_node=nothing,
        fringe_start=start,
        fringe_node=nothing,
        fringe_token=nothing,
    )


# ==== small tokenizers


def byte_level(
    merges: Iterable[tuple[bytes, bytes]],
    *,
    vocab: Iterable[bytes] = (),
    ignore_merges: bool = False,
    pattern: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE: all bytes of its tokens, then `vocab`, then what the merges make."""
    merges, ids = list(merges), {}
    parts = [*vocab, *(a + b for a, b in merges)]
    for piece in [*(bytes([b]) for b in sorted({b for part in parts for b in part})), *parts]:
        ids.setdefault(spell(piece), len(ids))
    pre: list[dict[str, Any]] = [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    ]
    if pattern is not None:
        pre.insert(0, {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges, "vocab": ids,
        "merges": [[spell(a), spell(b)] for a, b in merges],
    }  # fmt: skip
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre}, "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    return {**spec, **changes}


def spell(piece: bytes) -> str:
    return "".join(SPELL[b] for b in piece)


def save(spec: Any, to: Path, config: Any = None) -> str:
    """Write tokenizer.json (and tokenizer_config.json) into a folder; returns its path."""
    to.mkdir(parents=True, exist_ok=True)
    (to / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    if config is not None:
        (to / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(to)
