"""Folders without a tokenizer.json: converted and held against the library that the files are made for, or refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from engine.bpe.vocabulary import load_vocabulary
from schemas.errors import BadDocument, TokenizerError

LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = "the cat sat on the mat 12345 and a dog ran through the naïve café's old house, again and again!".split()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """SentencePiece models of a few hundred pieces: of both types, as Llama's are made (no normalisation, a space in front)."""
    folder, rng = tmp_path_factory.mktemp("models"), random.Random(0)
    (folder / "text").write_text("\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(300)), encoding="utf-8")
    out = {}
    for name, kind, size, changes in (
        ("bpe", "bpe", 360, {}),
        ("unigram", "unigram", 295, {}),
        ("collapsing", "bpe", 360, {"remove_extra_whitespaces": True}),
    ):
        options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **changes}
        SentencePieceTrainer.train(
            input=str(folder / "text"), model_prefix=str(folder / name), model_type=kind, vocab_size=size,
            byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2, **options,
        )  # fmt: skip
        out[name] = (folder / f"{name}.model").read_bytes()
    return out


def write(folder: Path, model: bytes, config: dict[str, str] | None = None, name: str = "tokenizer.model") -> str:
    folder.mkdir()
    (folder / name).write_bytes(model)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def refused(folder: str) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_vocabulary(folder, where="[teacher]")
    assert str(caught.value).startswith("[teacher]") and folder in str(caught.value)
    return str(caught.value)


def test_a_sentencepiece_model_alone(models: dict[str, bytes], tmp_path: Path) -> None:
    vocab = load_vocabulary(write(tmp_path / "x", models["bpe"], LLAMA))
    theirs, rng, seen = SentencePieceProcessor(model_proto=models["bpe"]), random.Random(1), 0
    assert (vocab.kind, vocab.prefix_bytes, vocab.eos_id, vocab.size) == ("sentencepiece", b" ", 2, len(theirs))
    for _ in range(200):
        text = "".join(rng.choices([*WORDS, " ", "  ", "\n", "é", "猫", "<s>", "7"], k=8))
        try:
            ids = vocab.encode(text)[0]
        except BadDocument:
            assert text.startswith(" ")
            continue
        seen += 1
        assert ids == theirs.encode(text)
    assert seen > 100


def test_a_model_that_is_read_in_two_ways_is_refused(models: dict[str, bytes], tmp_path: Path) -> None:
    """Without a class transformers puts no space before a text; the library does."""
    message = refused(write(tmp_path / "x", models["bpe"]))
    assert (
        "there is no tokenizer_config.json, so its class is guessed" in message and "such as LlamaTokenizer" in message
    )
    message = refused(write(tmp_path / "y", models["collapsing"], LLAMA))
    assert "by the sentencepiece library: two readings of one file" in message


def test_a_unigram_model_is_none_whatever_its_class_says(models: dict[str, bytes], tmp_path: Path) -> None:
    message = refused(write(tmp_path / "x", models["unigram"], LLAMA))
    assert "is a SentencePiece model of type UNIGRAM, want BPE" in message and "[targets] bytes = true" in message
    assert "is not a SentencePiece model" in refused(write(tmp_path / "y", models["bpe"][:5000], LLAMA))


def test_the_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "x", b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    monkeypatch.setattr("engine.bpe.tokenizer_files.find_spec", lambda name: None)
    message = refused(folder)
    assert (
        "pip install sentencepiece protobuf" in message and "tiktoken" not in message and "tokenizer.model" in message
    )


def test_a_model_under_a_name_that_nobody_looks_for(models: dict[str, bytes], tmp_path: Path) -> None:
    message = refused(write(tmp_path / "x", models["bpe"], LLAMA, name="tokenizer.model.v3"))
    assert "only tokenizer.model.v3" in message and "Copy it to tokenizer.model" in message


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken"])
def test_a_list_of_tokens_by_rank_lacks_its_pattern(name: str, tmp_path: Path) -> None:
    """Llama-3's and Qwen's first files: whatever pattern was put to them would be a guess."""
    message = refused(write(tmp_path / "x", b"IQ== 0\nIg== 1\n", LLAMA, name=name))
    assert f"only {name}, a list of tokens by rank" in message and "Want the tokenizer.json" in message


@pytest.mark.parametrize("name", ["ByT5Tokenizer", "CanineTokenizer"])
def test_a_tokenizer_that_is_a_program_is_refused(name: str, tmp_path: Path) -> None:
    """ByT5, CANINE, ChatGLM with its own code: nothing in a file says what they do."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}), encoding="utf-8")
    message = refused(str(tmp_path / "x"))
    assert f"its class {name} is a Python program" in message and "attribute" not in message
    assert "[targets] bytes = true" in message
