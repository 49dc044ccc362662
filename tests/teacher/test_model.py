"""Loading a teacher: its numbers are the model's own, settings, and everything that cannot be loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertModel

from engine.teacher.model import load_teacher
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig
from tests.support.decoders import TREES, VOCAB, alone, chain, load, logps, random_window, reference, save
from tests.support.vocabularies import folder, needs_shared


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teachers"), TREES)


# ==== the numbers


@pytest.mark.parametrize("name", TREES)
def test_logits_are_the_models_own(saved: Path, name: str) -> None:
    teacher, model, window = load(saved / name), reference(saved / name), chain(5, 24)
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([window.token])).logits[0].float()
    assert (teacher.logits(teacher.hidden([window])[0]) - theirs).abs().max() <= 1e-4
    if name.startswith("gemma2"):
        assert theirs.abs().max() < 3.0  # soft-capped


@needs_shared
@pytest.mark.parametrize("name", ["stories260K", "vachan-gpt2-280K"])
def test_trained_models(name: str) -> None:
    teacher, model = load(folder(name)), reference(folder(name))
    window = random_window(0, 60)
    assert teacher.attention == "tree" and teacher.max_length == 512 and teacher.vocab_rows == 512
    assert (logps(teacher, [window])[0] - alone(model, window)).abs().max() <= 1e-4


# ==== settings


def test_ends_lengths_and_sizes(saved: Path) -> None:
    teacher = load(saved / "llama")
    assert (teacher.max_length, teacher.vocab_rows, teacher.end_ids) == (64, VOCAB, (2,))
    assert teacher.hidden([chain(0, 5)])[0].shape == (5, 32)
    assert load(saved / "llama", max_length=40, overlap=8).max_length == 40
    assert load(saved / "llama", max_length=999).max_length == 64  # never beyond what the model was made for
    other = load_teacher(TeacherConfig(model="x", device="cpu"), str(saved / "llama"), tokenizer_end=5)
    assert other.end_ids == (2, 5)
    assert load_teacher(TeacherConfig(model="x", device="cpu"), str(saved / "llama"), tokenizer_end=None).end_ids == (
        2,
    )


def test_half_precision_logits_are_fp32(saved: Path) -> None:
    teacher = load(saved / "qwen2", dtype="bfloat16")
    hidden = teacher.hidden([chain(0, 8)])[0]
    assert hidden.dtype == torch.bfloat16 and teacher.logits(hidden).dtype == torch.float32
    assert load(saved / "qwen2").model.dtype == torch.float32  # "auto" on a CPU


# ==== what cannot be loaded


def refused(path: Path | str, **settings: Any) -> str:
    with pytest.raises(TeacherError) as caught:
        load_teacher(TeacherConfig(model=str(path), **settings), str(path), tokenizer_end=None)
    message = str(caught.value)
    assert message.startswith("[teacher]")
    return message


def test_what_is_missing_is_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, tmp_path / "nowhere"):
        message = refused(path)
        assert repr(str(path)) in message and "Want a folder (or Hub id) with config.json and weights" in message
    for left_out in ("config.json", "model.safetensors"):
        shutil.copytree(saved / "llama", tmp_path / left_out)
        (tmp_path / left_out / left_out).unlink()
        message = refused(tmp_path / left_out)
        assert (
            repr(str(tmp_path / left_out)) in message
            and "cannot be loaded" in message
            and "config.json and weights" in message
        )


def test_damaged_files_are_refused(saved: Path, tmp_path: Path) -> None:
    for name, data in (
        ("config.json", b"{"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}"),
        ("config.json", b'{"model_type": "no"}'),
    ):
        path = tmp_path / f"{name}{len(data)}"
        shutil.copytree(saved / "llama", path)
        (path / name).write_bytes(data)
        assert "cannot be loaded" in refused(path)
    cut = tmp_path / "cut"
    shutil.copytree(saved / "llama", cut)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot be loaded" in refused(cut)


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    assert AutoConfig.from_pretrained(tmp_path / "bert").model_type == "bert"
    refused(tmp_path / "bert")


def test_weights_that_are_not_there_are_not_made_up(saved: Path, tmp_path: Path) -> None:
    """transformers fills missing tensors with random numbers and only warns; a teacher must not be half random."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(saved / "llama", tmp_path / "holes")
    file = tmp_path / "holes" / "model.safetensors"
    tensors = load_file(file)
    dropped = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    del tensors[dropped]
    save_file(tensors, file, metadata={"format": "pt"})
    message = refused(tmp_path / "holes")
    assert "mlp.up_proj.weight" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused(saved: Path) -> None:
    assert 'device: got "cuda", but torch sees no GPU here' in refused(saved / "llama", device="cuda")
