"""Losses of rows chunk by chunk: the same numbers and gradients, and no tensor of all rows times the vocabulary."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.losses.chunked_head import chunked
from engine.losses.partial import partial_kl
from engine.losses.sampled import sampled_ce
from engine.losses.sparse import forward_kl, jsd, reverse_kl

R, D, V, K = 48, 3, 401, 4
Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Memory(TorchDispatchMode):
    """The largest tensor that any operation gives back, and the peak of all that are alive; the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0  # elements
        self.held = self.peak = 0  # bytes
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                self._track(tensor.untyped_storage())
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._freed, key, size)  # the wrapper lives as long as the memory

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.held -= size


def case(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.nn.Linear, Rows]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(R, D, dtype=dtype, generator=draw).requires_grad_()
    head = torch.nn.Linear(D, V, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=dtype, generator=draw))
    teacher = torch.randn(R, V, dtype=dtype, generator=draw).mul(3).softmax(1)
    best = teacher.topk(K, dim=1)
    tail = teacher.scatter(1, best.indices, 0.0).sum(1).log()
    return hidden, head, (best.indices, best.values.log(), tail)


def losses() -> dict[str, tuple[Callable[..., torch.Tensor], Callable[[tuple], tuple[torch.Tensor, ...]]]]:
    gold = torch.arange(R) % V
    counts = torch.tensor([[3, 2, 1, 0]]).expand(R, K)
    return {
        "forward": (partial(forward_kl, temperature=2.0), lambda rows: rows),
        "reverse": (reverse_kl, lambda rows: rows),
        "jsd": (partial(jsd, beta=0.3), lambda rows: rows),
        "partial": (partial(partial_kl, candidates=2), lambda rows: (*rows, gold)),
        "sampled": (partial(sampled_ce, draws=6), lambda rows: (rows[0], counts)),
    }


@pytest.mark.parametrize("name", list(losses()))
@pytest.mark.parametrize("rows_per_chunk", [1, 7, R, 1000])
def test_values_and_gradients_are_those_of_the_whole(name: str, rows_per_chunk: int) -> None:
    hidden, head, rows = case()
    loss, choose = losses()[name]
    weight = torch.linspace(1, 2, R, dtype=torch.float64)
    sources = (hidden, *head.parameters())
    whole = loss(head(hidden), *choose(rows))
    wanted = torch.autograd.grad((whole * weight).sum(), sources)
    parts = chunked(loss, hidden, head, *choose(rows), rows_per_chunk=rows_per_chunk)
    found = torch.autograd.grad((parts * weight).sum(), sources)
    assert parts.shape == (R,)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    for a, b in zip(found, wanted, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(losses()))
def test_the_largest_tensor_is_one_chunk(name: str) -> None:
    """Forward and backward. One column more than V: where the padding's marks go. The whole loss does have [R, V]."""
    loss, choose = losses()[name]
    rows_per_chunk = 6
    assert R * K < rows_per_chunk * V and D * V < rows_per_chunk * V  # so that nothing else is as large
    for chunks, limit in ((True, rows_per_chunk * (V + 1)), (False, R * (V + 1))):
        hidden, head, rows = case()
        with Memory() as seen:
            if chunks:
                value = chunked(loss, hidden, head, *choose(rows), rows_per_chunk=rows_per_chunk)
            else:
                value = loss(head(hidden), *choose(rows))
            value.mean().backward()
        assert limit * V <= seen.largest * (V + 1) <= limit * (V + 1)
        assert hidden.grad is not None


def test_nothing_as_wide_as_the_vocabulary_is_saved_for_the_backward_pass() -> None:
    saved: dict[bool, int] = {}
    for chunks in (True, False):
        hidden, head, rows = case()
        wide: list[int] = []

        def pack(tensor: torch.Tensor, wide: list[int] = wide) -> torch.Tensor:
            if tensor.dim() == 2 and tensor.shape[1] >= V:
                wide.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = (
                chunked(forward_kl, hidden, head, *rows, rows_per_chunk=6)
                if chunks
                else forward_kl(head(hidden), *rows)
            )
        value.mean().backward()
        assert hidden.grad is not None
        saved[chunks] = sum(wide)
    assert saved[True] == 0
    assert saved[False] >= R * V


def test_a_chunk_is_let_go_before_the_next_one() -> None:
    """Peak of all tensors alive at one time, forward and backward: that of one chunk, however many rows there are."""

    def peak(n: int, rows_per_chunk: int) -> int:
        hidden, head, rows = case(torch.float32)
        with Memory() as memory:
            part = [row[:n] for row in rows]
            chunked(forward_kl, hidden[:n], head, *part, rows_per_chunk=rows_per_chunk).mean().backward()
        return memory.peak

    chunk = 4 * V * 4
    weights = 2 * (D + 1) * V * 4  # gradients of the head: their sum, and one chunk's part
    assert 2 * chunk < peak(R, 4) < 7 * chunk + weights
    assert peak(R, 4) < 1.1 * peak(8, 4)
    assert peak(R, R) > 5 * R * V * 4


def test_no_rows_and_one_row() -> None:
    hidden, head, rows = case()
    for n in (0, 1):
        value = chunked(forward_kl, hidden[:n], head, *(row[:n] for row in rows))
        assert value.shape == (n,)
        (grad,) = torch.autograd.grad(value.sum(), hidden)
        assert grad.isfinite().all() and bool((grad != 0).any()) == (n == 1)


def test_without_gradients_and_with_a_head_of_half_precision() -> None:
    hidden, head, rows = case(torch.float32)
    with torch.no_grad():
        value = chunked(forward_kl, hidden, head, *rows, rows_per_chunk=5)
    assert not value.requires_grad
    torch.testing.assert_close(value, forward_kl(head(hidden), *rows))
    half = head.to(torch.bfloat16)
    value = chunked(forward_kl, hidden.to(torch.bfloat16), half, *rows, rows_per_chunk=5)
    assert value.dtype == torch.float32
    value.mean().backward()
    assert half.weight.grad is not None and half.weight.grad.dtype == torch.bfloat16


def test_rows_that_do_not_fit_are_refused() -> None:
    hidden, head, (ids, logp, tail) = case()
    with pytest.raises(ValueError, match=f"{R} hidden states, beside tensors of \\[{R}, {R}, {R - 1}\\] rows"):
        chunked(forward_kl, hidden, head, ids, logp, tail[:-1])
    with pytest.raises(ValueError, match="rows_per_chunk 0"):
        chunked(forward_kl, hidden, head, ids, logp, tail, rows_per_chunk=0)
