"""Stage 5: context trees through real architectures: one pass, one path at a time, and each context quite alone."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from engine.teacher import Teacher, Window, load_teacher
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig
from tests.vocabularies import folder, needs_shared

VOCAB = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.25,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
NO_HEADS = {key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "head_dim")}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.25, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": GPTNeoXConfig(**NO_HEADS),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "mistral-window": MistralConfig(**SMALL, sliding_window=6),
    "mistral-wide-window": MistralConfig(**SMALL, sliding_window=64),
    "gemma2": Gemma2Config(
        **SMALL, sliding_window=64, query_pre_attn_scalar=8, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "gemma2-window": Gemma2Config(
        **SMALL, sliding_window=6, query_pre_attn_scalar=8, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=64, query_pre_attn_scalar=8),
    "gemma3-window": Gemma3TextConfig(**SMALL, sliding_window=6, query_pre_attn_scalar=8),
}  # fmt: skip
WINDOWED = {name for name in ARCHITECTURES if name.endswith("-window") and "wide" not in name}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teachers")
    for seed, (name, config) in enumerate(ARCHITECTURES.items()):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).eval().save_pretrained(root / name)
    return root


def load(path: Path, **settings: Any) -> Teacher:
    config = TeacherConfig(model=str(path), device="cpu", **settings)
    return load_teacher(config, str(path), tokenizer_end=2)


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


@cache
def reference(path: Path) -> Any:
    """The model as transformers loads it when attention is computed in the plainest way."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


# ==== the numbers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tree_gives_what_each_context_alone_gives(saved: Path, name: str) -> None:
    teacher, model = load(saved / name), reference(saved / name)
    windows = [random_window(seed, size) for seed, size in ((0, 30), (1, 12), (2, 3), (3, 1))]
    for window, ours in zip(windows, logps(teacher, windows), strict=True):
        truth = alone(model, window)
        assert ours.shape == (len(window.token), VOCAB) and ours.dtype == torch.float32
        assert (ours - truth).abs().max() <= 1e-4, name
        assert float(truth.std()) > 0.3  # the test can fail: distributions are not flat


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tree_and_paths_agree(saved: Path, name: str) -> None:
    chosen, paths = load(saved / name), load(saved / name, attention="paths")
    assert paths.attention == "paths"
    windows = [random_window(7, 26), chain(8, 20)]
    for a, b in zip(logps(chosen, windows), logps(paths, windows), strict=True):
        assert (a - b).abs().max() <= 1e-4


def test_which_architectures_take_the_tree(saved: Path) -> None:
    attention = {name: load(saved / name).attention for name in ARCHITECTURES}
    assert {name for name in attention if attention[name] == "paths"} == WINDOWED


@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_a_tree_within_a_sliding_window_is_refused(saved: Path, name: str) -> None:
    with pytest.raises(
        TeacherError, match=r'attention = "tree" has a sliding window of 6 < max_length 64; use "auto" or "paths"'
    ):
        load(saved / name, attention="tree")
    short = load(saved / name, max_length=6, overlap=2)  # no context is longer than the window: nothing is cut
    assert short.max_length == 6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_the_models_own(saved: Path, name: str) -> None:
    teacher, model, window = load(saved / name), reference(saved / name), chain(5, 24)
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([window.token])).logits[0].float()
    assert (teacher.logits(teacher.hidden([window])[0]) - theirs).abs().max() <= 1e-4
    if name.startswith("gemma2"):
        assert theirs.abs().max() < 3.0  # soft-capped


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mistral-window", "gpt_neox"])
def test_the_company_in_a_batch_changes_nothing(saved: Path, name: str) -> None:
    teacher = load(saved / name)
    windows = [random_window(0, 18), chain(1, 9), random_window(2, 30), chain(3, 30), chain(4, 1)]
    together = logps(teacher, windows)
    for window, ours in zip(windows, together, strict=True):
        assert (logps(teacher, [window])[0] - ours).abs().max() <= 1e-5
    for a, b in zip(logps(teacher, [windows[1], windows[3]]), [together[1], together[3]], strict=True):
        assert (a - b).abs().max() <= 1e-5  # no branches at all: the plain causal path, padded


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
