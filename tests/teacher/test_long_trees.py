"""A window read trunk first and branches in blocks gives what its contexts alone give, and never has a square in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.teacher.decoder import MASK_CELLS
from engine.teacher.long_trees import BLOCK_CELLS, LONG_NODES, long_states, needs_blocks
from engine.teacher.model import Teacher
from engine.teacher.packing import Window
from tests.support.decoders import TREES, VOCAB, alone, chain, load, loaded, random_window, reference, save
from tests.support.tiers import one_of

LIMIT_NATS = 1e-4
NAMES = ("llama", "gpt2", "qwen3", "gemma2-window", "gemma3-window", "mistral-window", "gpt_oss", "qwen3-window")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("long"), {name: TREES[name] for name in NAMES})


def logps(teacher: Teacher, hidden: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(teacher.logits(hidden), -1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "cells",
    [1 << 20, pytest.param(400, marks=pytest.mark.thorough), pytest.param(90, marks=pytest.mark.thorough), 1],
    ids="{}-cells".format,
)
@torch.inference_mode()
def test_blocks_give_what_each_context_alone_gives(name: str, cells: int, saved: Path) -> None:
    """From one block to single nodes; also a trunk alone, branches off nothing, and very many below one trunk node."""
    teacher, model = loaded(saved / name), reference(saved / name)
    star = Window([5, 6, 7, *range(8, 48)], [-1, 0, 1, *[1] * 30, *range(3, 13)], [0, 1, 2, *[2] * 30, *[3] * 10])
    roots = Window([1, 2, 3, 4, 5, 6], [-1, 0, -1, 2, 0, 3], [0, 1, 0, 1, 1, 2])
    for window in (random_window(1, 45), random_window(2, 7), chain(3, 30), star, roots):
        found = logps(teacher, long_states(teacher._decoder, window, cells))
        assert (found - alone(model, window)).abs().max() < LIMIT_NATS


@pytest.mark.parametrize("name", NAMES)
def test_the_check_at_the_start_lets_them(name: str, saved: Path) -> None:
    assert loaded(saved / name)._decoder.blocks
    assert not load(saved / name, attention="paths")._decoder.blocks


def tree(trunk: int, branches: int, seed: int = 0) -> Window:
    """A trunk, and branches of one or two nodes that hang off it in no order."""
    rng = np.random.default_rng(seed)
    parent, depth = list(range(-1, trunk - 1)), list(range(trunk))
    while len(parent) < trunk + branches:
        above = int(rng.integers(trunk))
        for _ in range(int(rng.integers(1, 3))):
            parent.append(above)
            depth.append(depth[above] + 1)
            above = len(parent) - 1
    return Window(rng.integers(VOCAB, size=len(parent)), np.array(parent), np.array(depth))


class Largest(TorchDispatchMode):
    """Notes how many cells the largest tensor has that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        sizes = [
            part.untyped_storage().nbytes() // part.element_size() for part in tree_leaves(out) if torch.is_tensor(part)
        ]
        self.cells = max([self.cells, *sizes])
        return out


def largest(work: Callable[[], object]) -> int:
    with Largest() as seen:
        work()
    return seen.cells


@pytest.mark.parametrize("name", one_of(3, ["gemma3-window", "llama", "gpt_oss"]))
@torch.inference_mode()
def test_a_long_tree_is_the_same_and_makes_no_square(name: str, saved: Path) -> None:
    """gpt_oss has no kernel without scores: there the trunk goes in blocks, too."""
    teacher, window = loaded(saved / name), tree(LONG_NODES, 300)
    assert needs_blocks(teacher._decoder, window)
    found = list[torch.Tensor]()
    heads = 4 if teacher.model.config._attn_implementation == "eager" else 1  # that one has scores of each head
    assert largest(lambda: found.extend(teacher.hidden([window]))) <= heads * (BLOCK_CELLS + 2 * len(window.token))
    whole = teacher._decoder.trees([window])[0]
    assert (logps(teacher, found[0]) - logps(teacher, whole)).abs().max() < LIMIT_NATS


@torch.inference_mode()
def test_a_long_chain_under_a_sliding_window_makes_no_square(saved: Path) -> None:
    teacher, window = loaded(saved / "gemma3-window"), chain(1, LONG_NODES + 500)
    found = list[torch.Tensor]()
    assert largest(lambda: found.extend(teacher.hidden([window]))) <= BLOCK_CELLS + 2 * len(window.token)
    assert (logps(teacher, found[0]) - logps(teacher, teacher._decoder.chains([window])[0])).abs().max() < LIMIT_NATS
    assert not needs_blocks(loaded(saved / "llama")._decoder, window)  # its kernel makes none


@pytest.mark.parametrize("name", one_of(2, ["llama", "gemma3-window"]))
@torch.inference_mode()
def test_long_open_trees_make_no_square(name: str, saved: Path) -> None:
    """Rounds: a first one with branches, then more. The tree is long enough that its square is larger than any mask."""
    teacher, window = loaded(saved / name), tree(9000, 300)
    more = Window([5, 6], [8999, len(window.token)], [9000, 9001])
    found = list[torch.Tensor]()

    def work() -> None:
        trees = teacher.open_trees([window])
        found.extend([trees.hidden[0], trees.add([more])[0]])

    assert largest(work) <= MASK_CELLS < len(window.token) ** 2
    assert teacher.reuse
    blocks = long_states(teacher._decoder, window)
    assert (logps(teacher, found[0][-500:]) - logps(teacher, blocks[-500:])).abs().max() < LIMIT_NATS
    path = Window(np.append(window.token[:9000], [5, 6]), np.arange(-1, 9001), np.arange(9002))
    after = long_states(teacher._decoder, path)[-2:]
    assert (logps(teacher, found[1]) - logps(teacher, after)).abs().max() < LIMIT_NATS


def test_a_model_that_fails_the_trial_keeps_to_one_pass(saved: Path) -> None:
    decoder = loaded(saved / "llama")._decoder
    assert not needs_blocks(replace(decoder, blocks=False), tree(LONG_NODES, 10))
