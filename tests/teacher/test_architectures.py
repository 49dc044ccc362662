"""Token trees through every architecture: one pass, rounds, one path at a time, and each context quite alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GPTNeoConfig

import engine.teacher.attention_masks
import engine.teacher.self_check
from engine.teacher.attention_masks import Masking
from engine.teacher.gauge import Gauge
from engine.teacher.incremental import CachedTrees, RescoredTrees
from engine.teacher.model import Teacher
from engine.teacher.packing import Window, lay_out, pack
from schemas.errors import TeacherError
from tests.support.decoders import (
    FULL,
    RECURRENT,
    SLIDING,
    TREES,
    VOCAB,
    alone,
    chain,
    load,
    loaded,
    logps,
    random_window,
    reference,
    save,
)

TOLERANCE = 2e-5  # nats, fp32


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teachers"), TREES | RECURRENT)


FOREST = [random_window(seed, size) for seed, size in ((0, 50), (1, 20), (2, 17), (3, 9), (4, 1))]


def gap(ours: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in truth]
    return max(float((a - b).abs().max()) for a, b in zip(ours, truth, strict=True) if len(a))


def rounds(teacher: Teacher, windows: list[Window], seed: int) -> list[torch.Tensor]:
    """fp32 log-probabilities of all nodes, the windows being split into rounds at random places."""
    rng = random.Random(seed)
    cuts = []
    for w in windows:
        size = len(w.token)
        first = size if seed % 2 and size < 10 else rng.randrange(1, size + 1)  # some windows have nothing to add
        cuts.append([0, first, *sorted(rng.randrange(first, size + 1) for _ in range(2)), size])

    def part(number: int) -> list[Window]:
        pairs = zip(windows, cuts, strict=True)
        return [Window(*(a[c[number] : c[number + 1]] for a in (w.token, w.parent, w.depth))) for w, c in pairs]

    open_trees = teacher.open_trees(part(0))
    states = [open_trees.hidden, *(open_trees.add(part(number)) for number in (1, 2, 3))]
    assert open_trees.hidden is states[-1]
    return [torch.log_softmax(teacher.logits(torch.cat(parts)), -1) for parts in zip(*states, strict=True)]


# ==== the numbers


@pytest.mark.parametrize("name", TREES)
def test_packed_trees_and_rounds_give_what_each_context_alone_gives(saved: Path, name: str) -> None:
    teacher, model = loaded(saved / name), reference(saved / name)
    assert (teacher.attention, teacher.why, teacher.reuse) == ("tree", "", True)
    assert len(pack([len(w.token) for w in FOREST])) == 2  # several documents in a row
    truth = [alone(model, w) for w in FOREST]
    assert min(float(t.std()) for t in truth) > 0.15  # the test can fail: distributions are not flat
    assert gap(logps(teacher, FOREST), truth) <= TOLERANCE
    for seed in (0, 1):
        assert gap(rounds(teacher, FOREST, seed), truth) <= TOLERANCE
    assert isinstance(teacher.open_trees(FOREST), CachedTrees)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough) if name in ("jamba", "mamba2", "recurrent_gemma") else name
        for name in RECURRENT
    ],
)
def test_what_takes_no_tree_gives_the_same_by_paths_and_says_why(saved: Path, name: str) -> None:
    teacher, model = load(saved / name, attention="paths", batch_tokens=100), reference(saved / name)
    assert (teacher.attention, teacher.reuse) == ("paths", False)
    assert teacher.why == 'the run file says attention = "paths"'
    windows = FOREST[1:]
    truth = [alone(model, w) for w in windows]
    assert min(float(t.std()) for t in truth) > 0.15
    assert gap(logps(teacher, windows), truth) <= 1e-4
    assert gap(rounds(teacher, windows, 0), truth) <= 1e-4
    assert isinstance(teacher.open_trees(windows), RescoredTrees)
    expected = {"rwkv": "differs by ", "gpt_neo": "a fixed table of which of 64 places see which"}
    other = load(saved / name)  # engine/teacher/kept_states.py: tests/teacher/test_kept_states.py
    assert other.attention == "states" and other.why.startswith(expected.get(name, "layers of the kind ")), other.why
    with pytest.raises(TeacherError, match='attention = "tree" is not possible: (layers of|differs by|a fixed)'):
        load(saved / name, attention="tree")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2-window", "mistral-window", "qwen2-last-layers"])
def test_tree_and_paths_agree(saved: Path, name: str) -> None:
    chosen, paths = loaded(saved / name), load(saved / name, attention="paths", batch_tokens=64)
    assert paths.attention == "paths" and paths.why == 'the run file says attention = "paths"'
    windows = [random_window(7, 26), chain(8, 20)]
    assert gap(logps(chosen, windows), logps(paths, windows)) <= TOLERANCE
    assert gap(rounds(paths, windows, 3), logps(paths, windows)) <= TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3-window", "mistral-window", "gpt_neox"])
def test_the_company_in_a_pass_changes_nothing(saved: Path, name: str) -> None:
    teacher = loaded(saved / name)
    windows = [random_window(0, 18), chain(1, 9), random_window(2, 30), chain(3, 30), random_window(5, 11), chain(4, 1)]
    together = logps(teacher, windows)
    assert gap([logps(teacher, [w])[0] for w in windows], together) <= 1e-5
    assert gap(logps(teacher, windows[::-1])[::-1], together) <= 1e-5
    chains = [1, 3, 5]  # the plain causal path; packed, they give the same
    assert gap(logps(teacher, [windows[i] for i in chains]), [together[i] for i in chains]) <= 1e-5
    with torch.inference_mode():
        packed = teacher._decoder.trees([windows[i] for i in chains])
        assert gap([torch.log_softmax(teacher.logits(h), -1) for h in packed], [together[i] for i in chains]) <= 1e-5


def test_a_trunk_goes_through_rounds_without_a_mask(saved: Path) -> None:
    """What a pruned run does: chains first, then branches of which some windows have none; then nothing at all."""
    teacher = loaded(saved / "gemma2-window")
    trunks, model = [chain(0, 20), chain(1, 31), chain(2, 4)], reference(saved / "gemma2-window")
    open_trees = teacher.open_trees(trunks)
    branch = Window([5, 6, 7], [3, 20, 18], [4, 5, 19])
    states = open_trees.add([branch, Window([], [], []), Window([], [], [])])
    assert [len(s) for s in states] == [3, 0, 0]
    joined = [np.concatenate([getattr(w, name) for w in (trunks[0], branch)]) for name in ("token", "parent", "depth")]
    whole = Window(*(values.tolist() for values in joined))
    assert gap([torch.log_softmax(teacher.logits(states[0]), -1)], [alone(model, whole)[20:]]) <= TOLERANCE
    assert [len(s) for s in open_trees.add([Window([], [], [])] * 3)] == [0, 0, 0]


@pytest.mark.parametrize("name", ["llama", "rwkv"])
def test_a_round_that_does_not_fit_is_refused(saved: Path, name: str) -> None:
    open_trees = load(saved / name).open_trees([chain(0, 4), chain(1, 3)])
    with pytest.raises(ValueError, match="a round of 1 windows for 2"):
        open_trees.add([chain(0, 2)])
    with pytest.raises(ValueError, match="window 1: new node 0 has parent 3, but it is number 3"):
        open_trees.add([Window([], [], []), Window([1], [3], [3])])


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_a_window_that_is_not_finite_spoils_no_other(saved: Path, name: str) -> None:
    teacher = load(saved / name)
    good = [replace(w, token=[t % 90 for t in w.token]) for w in FOREST]
    truth = logps(teacher, good)
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight[95] = float("nan")
    for at in range(len(FOREST)):
        mixed = [replace(w, token=[95, *w.token[1:]]) if i == at else w for i, w in enumerate(good)]
        ours = logps(teacher, mixed)
        ours_by_rounds = rounds(teacher, mixed, 0)
        assert ours[at].isnan().all() and ours_by_rounds[at].isnan().all()
        for states in (ours, ours_by_rounds):
            assert gap([*states[:at], *states[at + 1 :]], [*truth[:at], *truth[at + 1 :]]) <= TOLERANCE


@pytest.mark.parametrize("name", ["qwen2-last-layers", "mamba"])
def test_windows_may_be_arrays(saved: Path, name: str) -> None:
    teacher = load(saved / name)
    arrays: list[Any] = [Window(*map(np.asarray, (w.token, w.parent, w.depth))) for w in FOREST[1:]]  # type: ignore
    truth = logps(teacher, FOREST[1:])
    assert gap(logps(teacher, arrays), truth) == 0.0
    assert gap(rounds(teacher, arrays, 0), truth) <= TOLERANCE


def test_rounds_in_steps_give_the_same(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = loaded(saved / "qwen2-last-layers")
    whole = logps(teacher, FOREST)
    monkeypatch.setattr("engine.teacher.incremental.MASK_CELLS", 300)  # a handful of places to a step
    assert gap(rounds(teacher, FOREST, 0), whole) <= TOLERANCE


# ==== the start-up check


def test_which_masks_are_taken(saved: Path) -> None:
    taken = {name: loaded(saved / name)._decoder.masking for name in TREES}
    assert {name for name in taken if taken[name] == Masking()} == set(FULL)
    single = {name for name in taken if taken[name].window and not taken[name].by_layer}
    assert single == {"mistral-window", "phi3-window", "starcoder2-window"}
    assert {taken[name].window for name in SLIDING} == {1, 5, 6, 7, 9}
    assert load(saved / "mistral-window", max_length=6, overlap=2)._decoder.masking == Masking()  # nothing to cut


@pytest.mark.parametrize("name", ["mistral-window", "gemma3-window", "qwen2-last-layers"])
@pytest.mark.parametrize("wrong_by", [-1, 1])
def test_a_window_wrong_by_one_token_is_noticed(
    saved: Path, name: str, wrong_by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = engine.teacher.attention_masks.allowed
    monkeypatch.setattr(
        engine.teacher.attention_masks,
        "allowed",
        lambda reach, start, window: right(reach, start, window and window + wrong_by),
    )
    teacher = load(saved / name)
    assert teacher.attention == "states" and teacher.why.startswith("differs by ")


def test_a_window_that_no_mask_knows_is_noticed_beyond_the_small_probe(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-Neo's local layers look back 60 tokens by place; the small probe cannot see it."""
    teacher = load(saved / "gpt_neo")

    def found() -> engine.teacher.self_check.CheckResult:
        return engine.teacher.self_check.find_masks(
            replace(teacher._decoder, model=model),
            Gauge(lambda h: torch.log_softmax(teacher.logits(h), -1)),
            VOCAB,
            128,
        )

    config = GPTNeoConfig.from_dict(
        RECURRENT["gpt_neo"].to_dict() | {"max_position_embeddings": 256, "window_size": 60}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert found().why == "a fixed table of which of 256 places see which"
    model.config.max_position_embeddings = 128  # as if there were none
    with torch.inference_mode():
        assert found().why.startswith("differs by ")
        monkeypatch.setattr(engine.teacher.self_check, "_OTHER_WINDOWS", ())
        assert found().decoder is not None  # what would have happened


def test_a_cache_that_does_not_hold_is_not_used(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for layers that share keys: rounds are scored afresh, with the same results."""
    config = reference(saved / "mistral-window").config
    monkeypatch.setattr(
        "engine.teacher.incremental.DynamicCache", lambda: DynamicCache(config=config)
    )  # crops sliding layers
    teacher = load(saved / "mistral-window")
    assert teacher.attention == "tree" and not teacher.reuse
    assert gap(rounds(teacher, FOREST, 0), logps(teacher, FOREST)) <= TOLERANCE


def test_rows_are_as_long_as_the_longest_window() -> None:
    sizes = [5, 30, 12, 18, 1, 25, 4]
    rows = pack(sizes)
    assert sorted(i for row in rows for i in row) == list(range(7)) and pack([]) == []
    assert [sum(sizes[i] for i in row) for row in rows] == [30, 30, 30, 5]
    windows = [chain(i, size) for i, size in enumerate(sizes)]
    made = lay_out(windows, rows)
    for window, (row, at) in zip(windows, made.start, strict=True):
        size = len(window.token)
        assert made.token[row, at : at + size].tolist() == window.token
        assert made.depth[row, at : at + size].tolist() == window.depth
        assert made.parent[row, at : at + size].tolist() == [-1, *range(at, at + size - 1)]
    assert (made.parent[3, 5:] == -1).all() and (made.depth[3, 5:] == 0).all()
    assert int(made.token.max()) < VOCAB
