"""A teacher that two processes share gives what one process gives: trees, rounds and paths, rows and matrices."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from engine.plan.teacher_split import choose_split
from engine.teacher.lm_head import head_tensors
from engine.teacher.model import Teacher
from engine.teacher.packing import Window
from engine.teacher.rank import RankLost
from engine.teacher.ranks import LeadingTeacher
from schemas.errors import RunFileError
from tests.support.decoders import RECURRENT, SMALL, chain, load, random_window, save
from tests.support.ranks import shared
from tests.support.tiers import one_of

MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MILD: dict[str, Any] = SMALL | {
    "initializer_range": 0.1
}  # logits of 10 and more are rounded to 1e-6, layer after layer
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**MILD),
    "qwen3": Qwen3Config(**MILD, tie_word_embeddings=True),
    "qwen3_moe": Qwen3MoeConfig(**MILD, **MOE),
    "gemma3": Gemma3TextConfig(**MILD, sliding_window=6, final_logit_softcapping=3.0),
}
LIMIT_NATS = 1e-5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("ranks"), MODELS)


def everything(teacher: Teacher) -> dict[str, Any]:
    """All that the engine asks of a teacher, as NumPy arrays."""

    def logps(hidden: list[torch.Tensor]) -> list[Any]:
        return [torch.log_softmax(teacher.logits(rows), -1).numpy() for rows in hidden]

    windows = [random_window(1, 40), random_window(2, 25), chain(3, 20)]
    found: dict[str, Any] = {"trees": logps(teacher.hidden(windows))}
    paths = teacher.with_less_memory(64, keep=True)
    found["paths"] = logps(
        paths._decoder.paths(windows) if not isinstance(teacher, LeadingTeacher) else paths.hidden(windows)
    )
    half = [Window(w.token[:15], w.parent[:15], w.depth[:15]) for w in windows]
    rest = [Window(w.token[15:], w.parent[15:], w.depth[15:]) for w in windows]
    for name, keep in (("rounds", True), ("rounds afresh", False)):
        trees = teacher.with_less_memory(64, keep=keep).open_trees(half)
        first = logps(trees.hidden)
        found[name] = [*first, *logps(trees.add(rest)), trees.sizes]
        del trees
        gc.collect()
    found["head"] = {name: tensor.float().numpy() for name, tensor in head_tensors(teacher).items()}
    found["facts"] = (teacher.attention, teacher.reuse, teacher.vocab_rows, teacher.max_length)
    return found


def equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            equal(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            equal(a, b)
    elif hasattr(one, "shape"):
        assert one.shape == other.shape and abs(one - other).max() <= LIMIT_NATS
    else:
        assert one == other


@pytest.mark.parametrize(
    ("name", "split"),
    one_of(
        3,
        [
            ("llama", "tensor"),
            ("qwen3", "tensor"),
            ("qwen3_moe", "tensor"),
            ("qwen3_moe", "experts"),
            ("gemma3", "tensor"),
        ],
    ),
)
def test_two_processes_give_what_one_gives(name: str, split: str, saved: Path) -> None:
    equal(shared(saved / name, everything, split), everything(load(saved / name)))


def test_paths_are_shared_too(saved: Path) -> None:
    settings: dict[str, Any] = {"attention": "paths"}
    equal(shared(saved / "qwen3", everything, "tensor", **settings), everything(load(saved / "qwen3", **settings)))


@pytest.mark.thorough
def test_kept_states_are_shared_too(saved: Path) -> None:
    """A way over states is found by all ranks alike, and each keeps its own part of them."""
    settings: dict[str, Any] = {"attention": "states"}
    found, alone = shared(saved / "llama", everything, "tensor", **settings), load(saved / "llama", **settings)
    assert alone.attention == "states"
    equal(found, everything(alone))


def breaks(teacher: Teacher) -> str:
    """A round whose parents do not exist fails on rank 0, and on the other one."""
    trees = teacher.open_trees([chain(1, 10)])
    try:
        trees.add([Window([5], [99], [10])])
    except RankLost as error:
        with pytest.raises(RankLost):  # nor does any other pass begin
            teacher.logits(trees.hidden[0])
        return str(error)
    return "nothing"


def test_whatever_fails_within_a_pass_ends_the_group(saved: Path) -> None:
    told = shared(saved / "llama", breaks, "tensor", (0, 1))
    assert "rank" in told and "of the teacher: ValueError: window 0: new node 0 has parent 99" in told


def exits(teacher: Teacher) -> str:
    teacher.hidden([chain(1, 10)])
    os.kill(os.getpid(), 9)
    return ""


def test_a_rank_outlives_its_leader_by_nothing(saved: Path) -> None:
    """The others see at once that rank 0 is gone, and leave in order."""
    assert shared(saved / "llama", exits, "tensor", (-9, 0)) is None


# ==== which way


def test_auto_takes_parts_of_layers_where_that_is_sound(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved / "llama")  # 4 heads, 2 of keys and values
    assert choose_split(config, "auto", 2) == "tensor"
    assert choose_split(config, "auto", 4) == "layers"
    assert choose_split(config, "auto", 2, changed="an adapter") == "layers"
    assert choose_split(config, "layers", 2) == "layers"
    config.quantization_config = {"quant_method": "bitsandbytes"}
    assert (choose_split(config, "auto", 2), choose_split(config, "tensor", 2)) == ("layers", "tensor")
    assert choose_split(RECURRENT["mamba"], "auto", 2) == "layers"
    assert choose_split(MODELS["qwen3_moe"], "auto", 2) == "tensor"
    assert choose_split(MODELS["qwen3_moe"], "experts", 2) == "experts"


@pytest.mark.parametrize(
    ("config", "asked", "gpus", "told"),
    [
        (MODELS["llama"], "tensor", 3, "its 4 attention heads cannot be shared out evenly"),
        (MODELS["llama"], "tensor", 4, "its 2 key and value heads cannot be shared out evenly"),
        (MODELS["llama"], "experts", 2, "no plan of expert parallelism for model_type 'llama'"),
        (RECURRENT["mamba"], "tensor", 2, "no plan of tensor parallelism for model_type 'mamba'"),
        (
            Qwen3MoeConfig(**SMALL, **{**MOE, "num_experts": 3}),
            "experts",
            2,
            "its 3 experts cannot be shared out evenly",
        ),
    ],
)
def test_what_cannot_be_is_refused(config: PreTrainedConfig, asked: str, gpus: int, told: str) -> None:
    with pytest.raises(RunFileError) as caught:
        choose_split(config, asked, gpus)
    assert f'split = "{asked}" with [ray] num_gpus = {gpus}: ' in str(caught.value) and told in str(caught.value)
