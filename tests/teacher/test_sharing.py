"""Windows that begin alike are read as one; nothing changes but how often the beginning is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.corpus.document import Document, Message
from engine.scoring.prepare import prepare
from engine.scoring.scorer import Scorer
from engine.teacher import sharing
from engine.teacher.evaluate import hidden_states
from engine.teacher.incremental import OpenBatch
from engine.teacher.packing import Window
from engine.teacher.sharing import share
from tests.chat.test_conversation import document, scorer
from tests.chat.test_readings import QWEN3
from tests.support.chats import chat_teacher, with_template
from tests.support.runs import ASSETS

TALK = tuple(
    message
    for k in range(5)
    for message in (
        Message("user", f"{k} apples?"),
        Message("assistant", f"<think>\nA {k}.\n</think>\n\nAnna has {k}."),
    )
)


def chain(tokens: list[int], branches: dict[int, list[int]] | None = None) -> Window:
    parent = list(range(-1, len(tokens) - 1))
    depth = list(range(len(tokens)))
    for above, more in (branches or {}).items():
        for token in more:
            tokens, parent, depth = [*tokens, token], [*parent, above], [*depth, depth[above] + 1]
    return Window(np.array(tokens), np.array(parent), np.array(depth))


def paths(window: Window) -> list[tuple[int, ...]]:
    """The tokens from the root to each node."""
    out: list[tuple[int, ...]] = []
    for token, above in zip(window.token, window.parent, strict=True):
        out.append((*(out[int(above)] if above >= 0 else ()), int(token)))
    return out


def test_every_member_has_its_nodes_in_the_shared_window() -> None:
    common = list(range(100, 130))
    windows = [
        chain([*common, 1, 2], {5: [7, 8], 31: [9]}),
        chain([*common, 1, 3, 4], {32: [9]}),
        chain([*common[:20], 5], {3: [6]}),
        chain([*common[:10], 5]),
        chain([200, 201]),
    ]
    made = share(windows, [0, 0, 0, 0, 0], 1000)
    assert [[k for k, _ in one.members] for one in made] == [[0, 1, 2], [3], [4]]  # ten tokens in common are too few
    for one in made:
        found = paths(one.window)
        assert one.size == len(found) == len(set(found))
        for k, at in one.members:
            assert [found[i] for i in at.tolist()] == paths(windows[k])
            assert np.asarray(one.window.depth)[at].tolist() == np.asarray(windows[k].depth).tolist()
    assert [len(one.members) for one in share(windows, [0, 1, None, None, 2], 1000)] == [1] * 5
    assert [len(one.members) for one in share(windows[:2], [0, 0], 36)] == [1, 1]  # no room


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = tmp_path_factory.mktemp("shared")
    teacher = chat_teacher(folder / "t", "chatml", ends=["<|im_end|>"], template=QWEN3)
    student = with_template(ASSETS / "student_bl", folder / "bl", "chatml", template=QWEN3)
    return scorer(teacher, {"bl": student}, bytes=False)


def states(ready: Scorer, documents: list[Document]) -> tuple[torch.Tensor, list[OpenBatch]]:
    stages = ready.stages
    parts = [part for one in documents for part in prepare(stages, one).parts]
    opened: list[OpenBatch] = []
    return hidden_states(stages.teacher, parts, stages.run.teacher, open_batches=opened), opened


def test_states_are_those_of_windows_of_their_own(ready: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [document(TALK), document(TALK[:2], 1), document(TALK[2:], 2)]
    ours, opened = states(ready, documents)
    read = sum(size for batch in opened for size in getattr(batch.trees, "_trees", batch.trees).sizes)
    monkeypatch.setattr(sharing, "_LEAST", 10**9)
    theirs, apart = states(ready, documents)
    assert read < 0.6 * sum(size for batch in apart for size in batch.trees.sizes)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_what_is_hung_off_a_member_has_its_own_history(ready: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of new nodes below every part, the second hung off the first."""

    def grown() -> dict[int, torch.Tensor]:
        _, opened = states(ready, [document(TALK)])
        out = {}
        for batch in opened:
            sizes, depths = batch.trees.sizes, [int(depths.max()) for _, _, _, depths in batch.windows]
            rounds = list(zip(sizes, depths, strict=True))
            first = batch.trees.add([Window([5, 6], [size - 1, 3], [depth + 1, 4]) for size, depth in rounds])
            second = batch.trees.add([Window([7], [size], [depth + 2]) for size, depth in rounds])
            assert batch.trees.sizes == [size + 3 for size in sizes]
            for (i, *_), pair in zip(batch.windows, zip(first, second, strict=True), strict=True):
                out[i] = torch.cat(pair)
        return out

    ours = grown()
    monkeypatch.setattr(sharing, "_LEAST", 10**9)
    theirs = grown()
    assert sorted(ours) == sorted(theirs) == [0, 1, 2, 3, 4]
    for i, found in ours.items():
        torch.testing.assert_close(found, theirs[i], atol=2e-5, rtol=1e-4)


def test_rows_are_the_same_to_rounding(ready: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ready.score_unit([document(TALK)])
    monkeypatch.setattr(sharing, "_LEAST", 10**9)
    theirs = ready.score_unit([document(TALK)])
    for product, table in ours.products.items():
        a, b = (np.array(t.column("gold_logp")[0].as_py()) for t in (table, theirs.products[product]))
        np.testing.assert_allclose(a, b, atol=5e-3, err_msg=product)
