"""Attention that chooses some of the tokens: trees up to as many tokens as it chooses, longer windows over kept states."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import engine.teacher.self_check
import engine.teacher.state_check
from engine.teacher.incremental import CachedTrees, RescoredTrees
from engine.teacher.kept_states import StateTrees
from engine.teacher.model import Teacher
from engine.teacher.packing import Window
from tests.support.architectures import build, tiny
from tests.support.decoders import alone, load, logps, random_window, reference

NAMES = ("deepseek_v32", "glm_moe_dsa", "hy_v4")
CHOSEN = 8  # tokens; the trees below are up to twice as deep
TOLERANCE = 1e-3  # nats, fp32: the limit of the start-up check

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def saved(name: str, folder: Path, chosen: int = CHOSEN) -> Path:
    """Many heads of the indexer: with few, scores are exactly zero for many tokens, and the choice among them is open."""
    small = tiny(name).config
    assert small is not None
    values = small.to_dict() | {"index_topk": chosen, "index_n_heads": 24, "max_position_embeddings": 64}
    build(type(small).from_dict(values)).save_pretrained(folder / f"{name}-{chosen}")
    return folder / f"{name}-{chosen}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


SHORT = [random_window(seed, size) for seed, size in ((0, 9), (1, 7))]
LONG = [random_window(seed, size) for seed, size in ((2, 40), (3, 30))]


def gap(ours: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, truth, strict=True))


def in_two_rounds(teacher: Teacher, windows: list[Window], at: int) -> list[torch.Tensor]:
    cut = [
        (Window(w.token[:at], w.parent[:at], w.depth[:at]), Window(w.token[at:], w.parent[at:], w.depth[at:]))
        for w in windows
    ]
    trees = teacher.open_trees([first for first, _ in cut])
    pairs = zip(trees.hidden, trees.add([rest for _, rest in cut]), strict=True)
    return [torch.log_softmax(teacher.logits(torch.cat(pair)), -1) for pair in pairs]


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_is_left_out_they_are_trees(name: str, folder: Path) -> None:
    path = saved(name, folder, 64)
    teacher, model = load(path), reference(path)
    assert (teacher.attention, teacher.why, teacher._most, teacher.reuse) == ("tree", "", None, True)
    truth = [alone(model, w) for w in (*SHORT, *LONG)]
    assert min(float(t.std()) for t in truth) > 0.05
    assert gap(logps(teacher, [*SHORT, *LONG]), truth) <= TOLERANCE
    assert isinstance(teacher.open_trees(LONG), CachedTrees)
    assert gap(in_two_rounds(teacher, LONG, 12), truth[2:]) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_windows_within_the_choice_are_trees(name: str, folder: Path) -> None:
    path = saved(name, folder)
    teacher = load(path)
    assert (teacher.attention, teacher.why, teacher._most) == ("tree", "", CHOSEN)
    assert all(teacher._way(w) == teacher._decoder.trees for w in SHORT)
    assert all(teacher._way(w) != teacher._decoder.trees for w in LONG)
    assert gap(logps(teacher, SHORT), [alone(reference(path), w) for w in SHORT]) <= TOLERANCE


def test_the_choice_does_matter(folder: Path) -> None:
    """Else the test above could not fail."""
    teacher = load(saved("deepseek_v32", folder))
    narrow = logps(teacher, LONG)
    with engine.teacher.self_check.choosing(teacher._decoder, 64):
        assert gap(logps(teacher, LONG), narrow) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa"])
def test_longer_windows_take_another_way(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(name, folder)
    teacher, model = load(path), reference(path)
    assert (teacher.attention, teacher._most) == ("tree", CHOSEN) and teacher._leading is not None
    assert [teacher._way(w) == teacher._decoder.trees for w in (*SHORT, *LONG)] == [True, True, False, False]
    truth = [alone(model, w) for w in (*SHORT, *LONG)]
    assert gap(logps(teacher, [*SHORT, *LONG]), truth) <= TOLERANCE
    assert isinstance(teacher.open_trees(SHORT), StateTrees)  # rounds might go deeper
    assert gap(in_two_rounds(teacher, LONG, 12), truth[2:]) <= TOLERANCE
    assert load(path, max_length=CHOSEN, overlap=2)._most is None  # no context is longer
    monkeypatch.setattr("engine.teacher.state_check.LEADINGS", engine.teacher.state_check.LEADINGS[:1])
    monkeypatch.setattr("engine.teacher.kept_states.rows_of", lambda cache, length: [])
    last = load(path)
    assert (last.attention, last._leading, last.reuse) == ("tree", None, False)
    assert gap(logps(last, [*SHORT, *LONG]), truth) <= TOLERANCE
    assert isinstance(last.open_trees(SHORT), RescoredTrees)
    assert gap(in_two_rounds(last, LONG, 12), truth[2:]) <= TOLERANCE
