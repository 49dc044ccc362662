"""Long documents in windows: every node owned once, with enough before it, and batches that keep their limits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.contexts.tree import ContextTree
from engine.teacher.evaluate import BEAM_DEPTH
from engine.teacher.model import Teacher, load_teacher
from engine.teacher.packing import Window, pack
from engine.teacher.windows import OwnedWindow, batches, windows_of
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig
from tests.support.runs import ASSETS, TEXTS, score_here, write_run
from tests.support.vocabularies import hand_made

VOCAB = 60


def random_tree(rng: random.Random, *, given: int, trunk: int, branches: int, deep: int = 3) -> ContextTree:
    """A trunk of `trunk` tokens behind `given` BOS tokens, and branches of up to `deep` tokens hanging off it."""
    token = rng.choices(range(VOCAB), k=given + trunk)
    parent = list(range(-1, given + trunk - 1))
    end = [0] * given + list(range(1, trunk + 1))
    above = [0] * len(token)  # tokens between a node and the trunk or the given tokens
    for _ in range(branches):
        node = rng.randrange(max(given - 1, 0), len(token))
        for step in range(rng.randrange(1, deep + 1)):
            if above[node] >= deep:
                break
            token.append(VOCAB + len(token))
            parent.append(node)
            end.append(end[node] + step + 1)
            above.append(above[node] + 1)
            node = len(token) - 1
    return hand_made(token, parent, end, given=given, trunk=trunk)


def path(parents: Sequence[int] | np.ndarray, node: int) -> list[int]:
    out = [node]
    while parents[out[-1]] >= 0:
        out.append(int(parents[out[-1]]))
    return out[::-1]


def check(tree: ContextTree, windows: list[OwnedWindow], max_length: int, overlap: int) -> None:
    owners = [node for w in windows for node, mine in zip(w.nodes, w.owned, strict=True) if mine]
    assert sorted(owners) == list(range(len(tree.token)))  # every node once
    for w in windows:
        window = w.window
        assert len(window.token) == len(window.parent) == len(window.depth) == len(w.nodes) == len(w.owned)
        assert np.array_equal(window.token, tree.token[w.nodes]) and len(set(w.nodes)) == len(w.nodes)
        assert max(window.depth) < max_length
        for i, node in enumerate(w.nodes):
            assert window.parent[i] < i and window.depth[i] == len(path(window.parent, i)) - 1
            if not w.owned[i]:
                continue
            here = [int(w.nodes[j]) for j in path(window.parent, i)]
            full = path(tree.parent, node)
            if here != full:  # shortened: BOS tokens, then an unbroken run that ends in the node
                head = full[: tree.given + 1] if tree.given not in tree.trunk else []
                assert here[: len(head)] == head and here[len(head) :] == full[len(full) - len(here) + len(head) :]
                assert len(here) - len(head) - 1 >= overlap


@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize(("max_length", "overlap"), [(12, 4), (16, 0), (20, 12), (64, 16), (31, 5)])
def test_every_node_is_owned_once_with_enough_before_it(given: int, max_length: int, overlap: int) -> None:
    rng = random.Random(max_length + given)
    for trunk in (1, 2, max_length - given - 1, max_length - given, max_length - given + 1, 3 * max_length, 100):
        tree = random_tree(rng, given=given, trunk=max(trunk, 1), branches=trunk // 2)
        windows = windows_of(tree, max_length=max_length, overlap=overlap)
        check(tree, windows, max_length, overlap)
        assert (len(windows) == 1) == (max(tree.depth) < max_length)


def test_a_short_document_is_one_window_as_it_is() -> None:
    tree = random_tree(random.Random(0), given=1, trunk=20, branches=10)
    (only,) = windows_of(tree, max_length=64, overlap=16)
    assert only.nodes.tolist() == list(range(len(tree.token))) and all(only.owned)
    for ours, theirs in (
        (only.window.token, tree.token),
        (only.window.parent, tree.parent),
        (only.window.depth, tree.depth),
    ):
        assert np.array_equal(ours, theirs)


def test_windows_advance_by_all_that_they_have_room_for() -> None:
    tree = random_tree(random.Random(0), given=1, trunk=100, branches=0)
    windows = windows_of(tree, max_length=32, overlap=8)
    assert len(windows) == 1 + -(-(100 - 31) // (31 - 8))
    assert [w.nodes[0] for w in windows] == [0] * len(windows)  # each begins with the BOS
    assert [sum(w.owned) for w in windows] == [32, 23, 23, 23]


def test_no_room_is_said_so() -> None:
    tree = random_tree(random.Random(0), given=1, trunk=50, branches=0)
    with pytest.raises(
        ValueError, match="max_length 16 leaves room for 15 trunk tokens, not more than the overlap of 15"
    ):
        windows_of(tree, max_length=16, overlap=15)
    assert len(windows_of(tree, max_length=16, overlap=14)) > 30
    branched = random_tree(random.Random(1), given=1, trunk=50, branches=40, deep=3)
    with pytest.raises(ValueError, match="leaves room for 12 trunk tokens"):
        windows_of(branched, max_length=16, overlap=12)


# ==== the numbers


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    path = str(ASSETS / "teacher")
    return load_teacher(TeacherConfig(model=path, device="cpu", max_length=40, overlap=10), path, tokenizer_end=None)


@pytest.mark.parametrize("given", [0, 1])
def test_rows_of_a_long_document_are_those_of_their_left_context(teacher: Teacher, given: int) -> None:
    """Each owned node against the model run directly on the tokens that its window puts before it."""
    model: Any = AutoModelForCausalLM.from_pretrained(ASSETS / "teacher", dtype=torch.float32).eval()
    tree = random_tree(random.Random(given), given=given, trunk=110, branches=25)
    windows = windows_of(tree, max_length=teacher.max_length, overlap=10)
    assert len(windows) >= 4
    hidden = teacher.hidden([w.window for w in windows])
    start_of = [next(tree.trunk.tolist().index(n) for n in w.nodes if n in tree.trunk) for w in windows]
    for w, states, start in zip(windows, hidden, start_of, strict=True):
        ours = torch.log_softmax(teacher.logits(states), -1)
        for i in range(0, len(w.nodes), 7):
            if not w.owned[i]:
                continue
            full = path(tree.parent, w.nodes[i])
            # by the rule in words: BOS, then the document from the window's first token on
            expected = full[:given] + [
                n for n in full[given:] if n not in tree.trunk or tree.trunk.tolist().index(n) >= start
            ]
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[tree.token[n] for n in expected]])).logits[0, -1].float()
            assert (ours[i] - torch.log_softmax(logits, -1)).abs().max() <= 1e-4
    assert start_of[0] == 0 and start_of == sorted(start_of)


@pytest.mark.thorough
def test_a_long_document_goes_through_whole(tmp_path: Path) -> None:
    """End to end: a document of many windows loses no position, and its first window's rows are those of a short one."""
    import pyarrow.parquet as pq

    long = " ".join(TEXTS[:4] * 8)
    tables = {}
    for name, lines in (("whole", ""), ("cut", "max_length = 64\noverlap = 16")):
        (tmp_path / name).mkdir()
        run_file = write_run(tmp_path / name, texts=(long,))
        text = run_file.read_text(encoding="utf-8").replace("[corpus]", f"{lines}\n[corpus]")
        run_file.write_text(text, encoding="utf-8")
        out = score_here(run_file)
        (shard,) = sorted((out / "data" / "teacher").glob("*.parquet"))
        tables[name] = pq.read_table(shard).to_pylist()[0]
    whole, cut = tables["whole"], tables["cut"]
    assert whole["token_ids"] == cut["token_ids"] and whole["scored"] == cut["scored"] and len(cut["token_ids"]) > 200
    gaps = [abs(a - b) for a, b in zip(whole["gold_logp"], cut["gold_logp"], strict=True)]
    assert max(gaps[1 : 60 - BEAM_DEPTH]) <= 1e-4  # the first window begins where the document begins
    assert max(gaps[64:]) > 1e-3  # later ones have less on their left, so they do differ


def test_an_overlap_beyond_the_models_length_is_refused_with_the_fix(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, texts=(" ".join(TEXTS[:4] * 20),))
    text = run_file.read_text(encoding="utf-8").replace("[corpus]", "overlap = 5000\n[corpus]")
    run_file.write_text(text, encoding="utf-8")
    with pytest.raises(
        TeacherError, match=r"not more than the overlap of 5000; lower \[teacher\] overlap or raise max_length"
    ):
        score_here(run_file)


# ==== batches


def owned(size: int, *, branched: bool = False) -> OwnedWindow:
    parent = [-1] * size if branched else list(range(-1, size - 1))
    window = Window([0] * size, parent, [0] * size if branched else list(range(size)))
    return OwnedWindow(window, np.arange(size), np.ones(size, bool))


def test_batches_hold_every_window_once_within_the_limit() -> None:
    rng = random.Random(0)
    for limit in (1, 64, 500, 8192):
        windows = [owned(rng.randrange(1, 200)) for _ in range(60)]
        made = list(batches(windows, limit))
        assert sorted(i for batch in made for i in batch) == list(range(60))
        for batch in made:
            longest = max(len(windows[i].nodes) for i in batch)
            assert len(batch) == 1 or len(batch) * longest <= limit
        sizes = [len(windows[i].nodes) for batch in made for i in batch]
        assert sizes == sorted(sizes, reverse=True)  # like lengths together, so little is padded


def test_batches_of_trees_are_counted_as_packed() -> None:
    rng = random.Random(1)
    for limit in (1, 64, 500, 8192):
        windows = [owned(rng.randrange(2, 200), branched=rng.random() < 0.8) for _ in range(60)]
        made = list(batches(windows, limit))
        assert sorted(i for batch in made for i in batch) == list(range(60))
        for batch in made:
            assert len({windows[i].window.branched for i in batch}) == 1  # one pass each
            sizes = [len(windows[i].nodes) for i in batch]
            if windows[batch[0]].window.branched:
                assert len(pack(sizes)) * max(sizes) <= limit or len(pack(sizes)) == 1
    (whole,) = batches([owned(size, branched=True) for size in (100, 3, 60, 40, 90, 7)], 300)
    assert len(whole) == 6  # three rows of 100


def test_batches_keep_the_mask_small() -> None:
    for branched in (False, True):
        windows = [owned(4000, branched=branched) for _ in range(12)]
        assert max(len(batch) for batch in batches(windows, 1 << 20)) * 4000**2 <= 1 << 26
    assert list(batches([], 10)) == []
