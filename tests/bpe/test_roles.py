"""Begin and end of text: from which file they come, held against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engine.bpe.vocabulary import load_vocabulary
from tests.support.vocabularies import byte_level, folder, needs_shared, save

PLAIN = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
END, OTHER = "<|endoftext|>", "<|other|>"


def toy(to: Path, **files: Any) -> str:
    """A toy with two specials and the files beside it, by their names without .json."""
    added = [
        {"id": 4 + i, "content": text, **PLAIN, "special": True}
        for i, text in enumerate((END, OTHER))
    ]  # fmt: skip
    save(byte_level([(b"a", b"b")], vocab=[b" "], added_tokens=added), to)
    for name, content in files.items():
        (to / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(to)


@needs_shared
def test_the_hub_folder_of_gpt2_has_an_end(tmp_path: Path) -> None:
    shutil.copy(folder("gpt2") / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}', encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    found = load_vocabulary(str(tmp_path))
    assert (found.bos_id, found.eos_id) == (50256, 50256)
    assert found.bos_ids == ()


CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast"}
CASES = {
    "nothing": ({}, None),
    "config": ({"tokenizer_config": {**CONFIG, "eos_token": END}}, END),
    "config-object": ({"tokenizer_config": {**CONFIG, "eos_token": {"__type": "AddedToken", "content": END, **PLAIN}}}, END),
    "map": ({"tokenizer_config": CONFIG, "special_tokens_map": {"eos_token": OTHER}}, OTHER),
    "map-alone": ({"special_tokens_map": {"eos_token": {"content": OTHER, **PLAIN}}}, OTHER),
    "map-over-config": ({"tokenizer_config": {**CONFIG, "eos_token": END}, "special_tokens_map": {"eos_token": OTHER}}, OTHER),
    "map-not-read": (
        {
            "tokenizer_config": {**CONFIG, "eos_token": END, "added_tokens_decoder": {
                "4": {"content": END, "special": True}, "5": {"content": OTHER, "special": True}}},
            "special_tokens_map": {"eos_token": OTHER},
        },
        END,
    ),
    "class-default": ({"config": {"model_type": "gpt2"}}, END),
    "class-default-by-name": ({"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}}, END),
    "said-to-be-none": ({"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "eos_token": None}}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_end_is_the_one_of_transformers(case: str, tmp_path: Path) -> None:
    files, end = CASES[case]
    place = toy(tmp_path, **files)
    found = load_vocabulary(place)
    assert AutoTokenizer.from_pretrained(place).eos_token == end
    assert found.eos_id == {END: 4, OTHER: 5, None: None}[end]


@pytest.mark.parametrize("name", ["config", "generation_config"])
@pytest.mark.parametrize("value", [5, [99, 5, 4]])
def test_an_end_that_only_the_model_names(name: str, value: Any, tmp_path: Path) -> None:
    assert load_vocabulary(toy(tmp_path, **{name: {"eos_token_id": value}})).eos_id == 5


def test_an_id_that_is_no_special_is_no_end(tmp_path: Path) -> None:
    assert load_vocabulary(toy(tmp_path, config={"eos_token_id": 2})).eos_id is None
