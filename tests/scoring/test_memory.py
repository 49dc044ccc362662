"""Want of memory, by a teacher that refuses more than so many tokens in a pass: smaller passes first, quarantine last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.determinism import BOUND_NATS, demo_documents, gaps
from engine.corpus.document import Document
from engine.dataset.unit_result import UnitResult
from engine.scoring import ahead, memory
from engine.scoring.prepare import prepare
from engine.scoring.scorer import Scorer
from tests.scoring.test_scorer import ASSETS, scorer
from tests.support.tiers import one_of


@pytest.fixture(scope="module")
def ready() -> Scorer:
    return small()


def small() -> Scorer:
    """The demo with little to spend."""
    students = {"sp": ASSETS / "student_sp", "bl": ASSETS / "student_bl"}
    settings = {"max_length": 128, "overlap": 32}
    return scorer(ASSETS / "teacher", students, settings=settings, max_nodes_per_token=1.0)


@pytest.fixture(scope="module")
def plain(ready: Scorer) -> UnitResult:
    """Four documents with all the memory there is."""
    return ready.score_unit(demo_documents(4))


def gpu(tokens: int) -> None:
    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tokens} tokens.\nadvice\nadvice")


def host(tokens: int) -> None:
    torch.empty(2**60, dtype=torch.uint8)  # what torch says on a host is no type of its own, so it is really asked


def arrays(tokens: int) -> None:
    np.empty(2**60, np.uint8)


@contextmanager
def limited(scorer: Scorer, most: int, fail: Callable[[int], None] = gpu) -> Iterator[list[int]]:
    """No pass of the model may have more than `most` tokens, padding included. Yields the sizes that were refused."""
    refused: list[int] = []

    def check(module: torch.nn.Module, given: tuple, named: dict) -> None:
        size = named["input_ids"].numel()
        if size > most:
            refused.append(size)
            fail(size)

    handle = scorer.stages.teacher.model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield refused
    finally:
        handle.remove()


def long_document(row: int, parts: int) -> Document:
    text = " ".join(document.text for document in demo_documents(parts))
    return Document(f"long{row}", row, text, "c.jsonl", f"line {row + 1}")


@pytest.mark.parametrize("fail", one_of(3, [arrays, host, gpu]))
def test_a_group_is_halved_until_it_fits(ready: Scorer, plain: UnitResult, fail: Callable[[int], None]) -> None:
    documents = demo_documents(4)
    with limited(ready, 300, fail) as refused:
        unit = ready.score_unit(documents)
    assert refused and unit.stats["oom_retries"] >= 1 and not unit.quarantine
    assert "oom_retries" not in plain.stats
    for product, table in unit.products.items():
        for name, gap in gaps(plain.products[product], table).items():
            assert gap.max(initial=0) <= BOUND_NATS, (product, name)


def test_a_document_too_large_alone_is_read_a_window_at_a_time(ready: Scorer) -> None:
    """Windows of 128 tokens; all of them together do not fit, two of them neither, one does."""
    documents = [long_document(0, 5), *(d for d in demo_documents(3) if d.doc_row)]
    plain = ready.score_unit(documents)
    size = max(len(part.tree.token) for part in prepare(ready.stages, documents[0]).parts)
    assert size > 3 * 128
    with limited(ready, 400) as refused:
        unit = ready.score_unit(documents)
    assert len(refused) >= 2 and not unit.quarantine
    for product, table in unit.products.items():
        for name, gap in gaps(plain.products[product], table).items():
            assert gap.max(initial=0) <= BOUND_NATS, (product, name)


def test_what_does_not_fit_in_any_way_is_quarantined_and_the_others_are_kept(ready: Scorer) -> None:
    """A pass of 60 tokens is less than the long document's windows; the short documents fit."""
    short = [Document(f"s{i}", i, text, "c.jsonl", "line") for i, text in ((0, "3 + 4 = 7"), (2, "9 × 9 = 81"))]
    documents = [short[0], long_document(1, 2), short[1]]
    with limited(ready, 60) as refused:
        unit = ready.score_unit(documents)
    (record,) = unit.quarantine
    assert (record["doc_id"], record["reason"], record["doc_row"]) == ("long1", "oom", 1)
    assert "do not fit alone" in record["detail"] and record["detail"].endswith(f"allocate {refused[-1]} tokens.")
    assert {tuple(table["doc_id"].to_pylist()) for table in unit.products.values()} == {("s0", "s2")}


@pytest.mark.parametrize("place", ["prepare", "_group_result"])
def test_no_memory_beside_the_forward_passes_is_of_one_document(
    ready: Scorer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before them, when the tree is made, and behind them, when rows become tables."""
    documents, owner = demo_documents(4), ahead if place == "prepare" else ready
    real = getattr(owner, place)

    def short(*given: Any) -> Any:
        rows = [given[1].doc_row] if place == "prepare" else [work.document.doc_row for work in given[0]]
        if 2 in rows:
            raise MemoryError("Unable to allocate 9 GiB")
        return real(*given)

    monkeypatch.setattr(owner, place, short)
    unit = ready.score_unit(documents)
    assert [(record["doc_row"], record["reason"]) for record in unit.quarantine] == [(2, "oom")]
    assert "9 GiB" in unit.quarantine[0]["detail"]
    assert {tuple(table["doc_row"].to_pylist()) for table in unit.products.values()} == {(0, 1, 3)}
    assert unit.stats["documents"] == 4 and unit.stats["teacher.documents"] == 3


def test_keys_and_values_are_given_up_last(ready: Scorer) -> None:
    """Rounds of the beam over a cache fail; scored again without one, the values are the same."""
    documents = [long_document(0, 3)]
    plain = ready.score_unit(documents)
    assert ready.stages.teacher.reuse

    def check(module: torch.nn.Module, given: tuple, named: dict) -> None:
        if named.get("past_key_values") is not None:
            gpu(named["input_ids"].numel())

    handle = ready.stages.teacher.model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    unit = ready.score_unit(documents)
    handle.remove()
    assert not unit.quarantine and unit.stats["oom_retries"] > 1
    for product, table in unit.products.items():
        assert gaps(plain.products[product], table)["gold_logp"].max() <= BOUND_NATS


def test_the_calibration_sample_is_read_in_smaller_passes_too() -> None:
    means = []
    for most in (100_000, 400):
        made = small()
        with limited(made, most) as refused:
            made.calibrate([long_document(0, 4)])
        assert bool(refused) is (most == 400) and made.stages.beam_search is not None
        means.append(made.stages.beam_search.calibration.mean_rows)
    assert means[0].keys() == means[1].keys()
    for token, row in means[0].items():
        np.testing.assert_allclose(means[1][token].special, row.special, atol=1e-6)


def test_another_error_is_not_taken_for_want_of_memory(ready: Scorer) -> None:
    def broken(tokens: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert not memory.is_out_of_memory(RuntimeError("shapes")) and not memory.is_out_of_memory(
        RuntimeError("CUDA error: illegal access")
    )
    for said in (
        "CUDA error: out of memory\nkernel",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
    ):
        assert memory.is_out_of_memory(RuntimeError(said))
    with limited(ready, 1, broken), pytest.raises(RuntimeError, match="mat1"):
        ready.score_unit(demo_documents(2))


def test_the_ladder_goes_down_to_one_window_and_then_without_a_cache() -> None:
    assert list(memory.smaller_ways(8192, nodes=1000, longest=128, keeps=True)) == [
        (500, True),
        (250, True),
        (125, True),
        (125, False),
    ]
    assert list(memory.smaller_ways(64, nodes=1000, longest=128, keeps=False)) == []
