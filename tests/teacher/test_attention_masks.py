"""Masks against ancestors found by walking, and block masks against dense ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.integrations.flex_attention as wrapped
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from engine.teacher.attention_masks import allowed, allowed_function, reach_of
from engine.teacher.gauge import Gauge
from engine.teacher.packing import ancestors_too, intervals, lay_out, pack
from engine.teacher.self_check import _faster, _seconds, probe
from tests.support.decoders import TREES, VOCAB, chain, load, logps, random_window, save

CPU = torch.device("cpu")
FOREST = [random_window(seed, size) for seed, size in ((0, 50), (1, 20), (2, 17), (3, 9), (4, 1))] + [chain(9, 21)]


def rows() -> tuple[np.ndarray, np.ndarray]:
    made = lay_out(FOREST, pack([len(w.token) for w in FOREST]))
    return made.parent, made.depth


def walked(parent: np.ndarray, depth: np.ndarray, window: int | None) -> torch.Tensor:
    """bool [B, 1, N, N] by walking up from every place."""
    out = torch.zeros((*parent.shape, parent.shape[1]), dtype=torch.bool)
    for row in range(len(parent)):
        for place in range(parent.shape[1]):
            at = place
            while at >= 0:
                out[row, place, at] = window is None or int(depth[row, place] - depth[row, at]) < window
                at = parent[row, at]
    return out[:, None]


@pytest.mark.parametrize("window", [None, 1, 6])
def test_a_mask_holds_ancestors_within_the_window(window: int | None) -> None:
    parent, depth = rows()
    truth = walked(parent, depth, window)
    reach = reach_of(parent, depth, CPU)
    assert torch.equal(allowed(reach, 0, window), truth)
    assert torch.equal(allowed(reach, 40, window), truth[:, :, 40:])
    assert truth.diagonal(dim1=2, dim2=3).all()  # padding too sees itself: a row of nothing would be NaN


@pytest.mark.parametrize("seed", range(5))
def test_intervals_are_those_of_a_walk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = np.array([[rng.integers(-1, n) for n in range(40)]])
    enter, leave = intervals(parent)
    assert sorted(enter[0]) == list(range(40))
    for node in range(40):
        below = {n for n in range(40) if node in ancestors_too(parent[0], [n])}
        assert {int(enter[0, n]) for n in below} == set(range(enter[0, node], leave[0, node]))


@pytest.mark.parametrize("window", [None, 6])
def test_a_block_mask_is_the_dense_mask(window: int | None) -> None:
    parent, depth = (np.pad(a, ((0, 0), (0, 128 - a.shape[1])), constant_values=-1) for a in rows())
    reach = reach_of(parent, depth, CPU)
    test, dense = allowed_function(reach, window), allowed(reach, 0, window)
    size = len(parent)
    assert torch.equal(create_mask(test, size, 1, 128, 128, device="cpu"), dense)
    block = create_block_mask(test, size, None, 128, 128, device="cpu", BLOCK_SIZE=32)
    by_blocks = dense.reshape(size, 1, 4, 32, 4, 32).any(5).any(3)
    assert torch.equal(block.to_dense().bool(), by_blocks) and not by_blocks.all()  # whole blocks are left out


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention as plain tensor operations: the compiled one needs a GPU."""
    monkeypatch.setattr(
        wrapped, "compile_friendly_flex_attention", lambda q, k, v, training, **kw: flex_attention(q, k, v, **kw)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")
        yield


@pytest.mark.parametrize("name", ["llama", "gemma2-window", "mistral-window"])
def test_block_masks_give_what_dense_ones_give(name: str, tmp_path: Path, uncompiled: None) -> None:
    teacher = load(save(tmp_path, {name: TREES[name]}) / name)
    own = teacher.model.config._attn_implementation
    flex = replace(teacher, _decoder=replace(teacher._decoder, kernel="flex_attention"))
    for ours, truth in zip(logps(flex, FOREST), logps(teacher, FOREST), strict=True):
        assert (ours - truth).abs().max() <= 2e-5
    assert teacher.model.config._attn_implementation == own  # chains and rounds keep the model's own kernel


def test_only_a_gpu_is_asked_for_the_faster_kernel(tmp_path: Path) -> None:
    teacher = load(save(tmp_path, {"llama": TREES["llama"]}) / "llama")
    assert _faster(teacher._decoder, Gauge(lambda h: h), VOCAB, 64) is teacher._decoder


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: FlexAttention is compiled and timed there")
def test_on_a_gpu_both_kernels_agree_and_the_faster_one_is_taken(tmp_path: Path) -> None:
    path = save(tmp_path, {"llama": TREES["llama"]}) / "llama"
    here = load(path)
    there = load(path, device="cuda")
    kernels = {k: replace(there._decoder, kernel=k) for k in ("sdpa", "flex_attention")}
    with torch.inference_mode():
        for decoder in kernels.values():
            for ours, truth in zip(logps(replace(there, _decoder=decoder), FOREST), logps(here, FOREST), strict=True):
                assert (ours.cpu() - truth).abs().max() <= 1e-3
        tree = probe(VOCAB, 64, 0)
        seconds = {name: _seconds(decoder, tree) for name, decoder in kernels.items()}
    assert there._decoder.kernel in kernels and min(seconds.values()) > 0
