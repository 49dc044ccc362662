"""Several outputs read as one: shares in every stretch, each document as often as is said, values as in the output itself."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reader import Blend, Targets, TargetsDataset
from engine.reader.blend import WINDOW, _counts
from engine.reader.spans import Spans
from tests.support.codecs import write_output


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """33, 22 and 7 documents."""
    folder = tmp_path_factory.mktemp("blend")
    for name, units, rows in (("a", 3, 11), ("b", 2, 11), ("c", 1, 7)):
        write_output(folder / name, units=units, rows=rows, longest=20)
    return [folder / name for name in "abc"]


def order(blend: Blend, seed: int | None, epoch: int = 0) -> list[tuple[int, int]]:
    batches = blend.batches(4, seed=seed, epoch=epoch)
    return [pair for b in batches for pair in zip(b["output"].tolist(), b["doc_row"].tolist(), strict=True)]


def small(outputs: list[Path]) -> list[Targets]:
    return [Targets(out, "small") for out in outputs]


def test_without_weights_an_epoch_is_every_document_once(outputs: list[Path]) -> None:
    blend = Blend(small(outputs))
    everything = {(i, row) for i, n in enumerate((33, 22, 7)) for row in range(n)}
    for seed in (None, 0):
        found = order(blend, seed)
        assert len(found) == blend.rows == 62 and set(found) == everything
    assert order(blend, 0) == order(blend, 0) != order(blend, 0, epoch=1)
    assert [row for output, row in order(blend, None) if output == 1] == list(range(22))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 50), min_size=4, max_size=4),
    until=st.sampled_from(["first", "last"]),
)
def test_counts_and_shares_of_any_weights(sizes: list[int], weights: list[float], until: str) -> None:
    """The order alone, on outputs that are only their sizes: what each gives of every beginning, and where it ends."""
    weights = weights[: len(sizes)]
    blend = object.__new__(Blend)
    blend.weights, blend.counts = weights, _counts(sizes, weights, until)
    blend.rows = sum(blend.counts)
    if until == "first":
        assert all(count <= size for count, size in zip(blend.counts, sizes, strict=True))
        assert any(count == size for count, size in zip(blend.counts, sizes, strict=True))
    else:
        assert all(count >= size for count, size in zip(blend.counts, sizes, strict=True))
        assert any(count == size for count, size in zip(blend.counts, sizes, strict=True))
    if blend.rows > 20_000:
        return
    windows = [blend._sequence(at) for at in range(blend._window(blend.rows - 1) + 1)]
    sequence = np.concatenate(windows)
    assert len(sequence) == blend.rows and max(map(len, windows)) <= WINDOW + len(sizes)
    given_so_far = np.cumsum(sequence[:, None] == np.arange(len(sizes)), axis=0)
    assert given_so_far[-1].tolist() == blend.counts
    share = np.array(weights) / sum(weights)
    wanted = np.arange(1, blend.rows + 1)[:, None] * share
    assert (np.abs(given_so_far - wanted) <= 0.5 + share * len(sizes) / 2 + 1e-6).all()
    for place in {0, 1, blend.rows // 2, blend.rows - 1, blend.rows}:
        before = np.bincount(sequence[:place], minlength=len(sizes))
        assert blend._before(place).tolist() == before.tolist()


def test_an_epoch_ends_with_the_first_output_or_with_the_last(outputs: list[Path]) -> None:
    first = Blend(small(outputs), [1, 1, 1])
    assert first.counts == [7, 7, 7]
    found = order(first, 3)
    assert len(set(found)) == len(found) == 21
    assert [output for output, _ in found[:6]] == [0, 1, 2, 0, 1, 2]
    # over epochs other parts of the larger ones come
    seen = {row for epoch in range(12) for output, row in order(first, 3, epoch) if output == 0}
    assert len(seen) > 25
    last = Blend(small(outputs), [1, 1, 1], until="last")
    assert last.counts == [33, 33, 33]
    times = Counter(order(last, 3))
    assert {times[0, row] for row in range(33)} == {1}
    assert {times[1, row] for row in range(22)} == {1, 2}
    assert {times[2, row] for row in range(7)} == {4, 5}
    again = [row for output, row in order(last, 3) if output == 2]
    assert sorted(again[:7]) == sorted(again[7:14]) == list(range(7)) and again[:7] != again[7:14]


def test_values_are_those_of_the_output_itself(outputs: list[Path]) -> None:
    """Codecs with products beside them, padded and packed."""
    for product, beside in (("small", ("hidden", "teacher")), ("drawn", ())):
        targets = [Targets(out, product, beside=beside) for out in outputs]
        rows = {(i, d.doc_row): d for i, t in enumerate(targets) for d in t.documents()}
        blend = Blend(targets, [3, 1, 1])
        for batch in blend.batches(3, seed=2):
            for b, key in enumerate(zip(batch["output"].tolist(), batch["doc_row"].tolist(), strict=True)):
                n = len(rows[key].token_ids)
                assert batch["lengths"][b] == n and batch["token_ids"][b, :n].tolist() == rows[key].token_ids.tolist()
                if product == "small":
                    assert torch.equal(batch["logps"][b, :n], torch.from_numpy(rows[key].logps.copy()))
                    assert batch["hidden"]["output"][b] == batch["teacher"]["output"][b] == key[0]
                else:
                    ids = batch["ids"][b, :n, : rows[key].ids.shape[1]].numpy()
                    assert np.array_equal(ids, np.maximum(rows[key].ids, 0))
    packed = Blend(small(outputs), [1, 2, 3])
    seen = Counter()
    for batch in packed.batches(2, seed=2, pack_length=16):
        kept = batch["segments"] > 0
        seen.update(zip(batch["output"][kept].tolist(), batch["doc_row"][kept].tolist(), strict=True))
    lengths = {(i, d.doc_row): len(d.token_ids) for i, t in enumerate(small(outputs)) for d in t.documents()}
    assert seen == Counter({key: lengths[key] for key in order(packed, 2)})


def test_ranks_share_it_and_states_resume(outputs: list[Path]) -> None:
    blend = Blend(small(outputs), [5, 2, 1], until="last")
    shares = []
    for rank in range(3):
        dataset = TargetsDataset(blend, 3, seed=1, rank=rank, world_size=3)
        batches = [(b["output"].tolist(), b["doc_row"].tolist()) for b in dataset]
        for step in range(len(batches)):
            iterator = iter(dataset)
            for _ in range(step):
                next(iterator)
            fresh = TargetsDataset(Blend(small(outputs), [5, 2, 1], until="last"), 3, seed=1, rank=rank, world_size=3)
            fresh.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
            assert [(b["output"].tolist(), b["doc_row"].tolist()) for b in fresh] == batches[step:]
        shares += [pair for os, rs in batches for pair in zip(os, rs, strict=True)]
    assert shares == order(blend, 1)
    state = TargetsDataset(blend, 3, seed=1).state_dict()
    with pytest.raises(ValueError, match="fingerprint"):
        TargetsDataset(Blend(small(outputs), [5, 2, 2], until="last"), 3, seed=1).load_state_dict(state)


def test_only_what_is_asked_for_is_read(outputs: list[Path]) -> None:
    """A part of the order asks of each output for that part only."""
    blend = Blend(small(outputs), [1, 1, 1], until="last")
    for first, last in ((0, 5), (40, 44), (90, 99)):
        spans = Spans(((first, last),))
        numbers = [places for parts in blend.pools(1, 0, spans, 1) for group, places in parts[0]]
        assert sorted(np.concatenate(numbers).tolist()) == list(range(last - first))


def test_outputs_that_do_not_go_together_are_refused(outputs: list[Path]) -> None:
    one = Targets(outputs[0], "small")
    for others, weights, text in (
        ([Targets(outputs[1], "drawn")], None, "codec 'sample', but 'topk'"),
        ([Targets(outputs[1], "small", beside=("teacher",))], None, "beside"),
        ([Targets(outputs[1], "small")], [1], r"weights \[1.0\] for 2 outputs"),
        ([Targets(outputs[1], "small")], [1, 0], "wanted a finite number > 0"),
        ([Targets(outputs[1], "small")], [1, float("nan")], "wanted a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=text):
            Blend([one, *others], weights)
    with pytest.raises(ValueError, match="at least 1 output"):
        Blend([])
    with pytest.raises(ValueError, match="until 'never'"):
        Blend([one], until="never")  # pyright: ignore[reportArgumentType]
