"""KL over the whole vocabulary from hidden states: against plain sums, its gradients, and no table of all rows."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.losses.full_vocabulary import full_kl, full_kl_of_states
from engine.losses.sparse import cells, forward_kl, log_probs
from tests.losses.test_chunked_head import Memory


def dense(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The definition, token by token; tokens without mass are left out. By logarithms: a quotient of probabilities has no
    gradient in float32 where the student's is next to nothing."""
    total = []
    for row, theirs in zip(logits / temperature, teacher / temperature, strict=True):
        logt, logs = theirs.log_softmax(0), row.log_softmax(0)
        terms = [logt[v].exp() * (logt[v] - logs[v]) for v in range(len(logt)) if logt[v] > -torch.inf]
        total.append(torch.stack(terms).sum())
    return torch.stack(total)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 6),
    vocabulary=st.integers(2, 12),
    spare=st.integers(0, 3),
    gone=st.integers(0, 2),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    rows_per_chunk=st.integers(1, 7),
    double=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_definition(
    seed: int, rows: int, vocabulary: int, spare: int, gone: int, temperature: float, rows_per_chunk: int, double: bool
) -> None:
    """spare: rows that the student's head has more; gone: ids of the teacher that are no tokens."""
    draw = torch.Generator().manual_seed(seed)
    dtype, limit = (torch.float64, 1e-9) if double else (torch.float32, 1e-5)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    hidden, weight, bias = numbers(rows, 3), 2 * numbers(vocabulary + spare, 3), numbers(vocabulary + spare)
    states, theirs = numbers(rows, 5), 2 * numbers(vocabulary, 5)
    no_token = torch.randperm(vocabulary, generator=draw)[: min(gone, vocabulary - 1)]
    sources = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]

    def head(part: torch.Tensor) -> torch.Tensor:
        return part @ weight.T + bias

    def teacher_head(part: torch.Tensor) -> torch.Tensor:
        return (part @ theirs.T).index_fill(1, no_token, -torch.inf)

    found = full_kl_of_states(
        hidden, head, states, teacher_head, temperature=temperature, rows_per_chunk=rows_per_chunk
    )
    wanted = dense(head(hidden), teacher_head(states), temperature)
    scale = max(1.0, wanted.abs().max().item())
    assert found.shape == (rows,) and (found - wanted).abs().max() <= limit * scale
    up = torch.linspace(1, 2, rows, dtype=dtype)
    for mine, yours in zip(
        torch.autograd.grad((found * up).sum(), sources), torch.autograd.grad((wanted * up).sum(), sources), strict=True
    ):
        assert (mine - yours).abs().max() <= limit * max(1.0, yours.abs().max().item())


def test_it_is_never_below_the_divergence_of_any_coarser_outcomes() -> None:
    """K stored tokens and their tail are a coarser view of the same two distributions; with all tokens stored it is the same."""
    draw = torch.Generator().manual_seed(1)
    logits, teacher = (3 * torch.randn(20, 30, generator=draw, dtype=torch.float64) for _ in range(2))
    whole, logp = full_kl(logits, teacher), log_probs(teacher)
    before = torch.zeros(20, dtype=torch.float64)
    for k in (1, 2, 5, 15, 29, 30):
        ids = teacher.topk(k).indices
        masses = cells(logp, ids, torch.ones_like(ids, dtype=torch.bool))
        part = forward_kl(logits, ids, masses[:, :k], masses[:, k])
        assert (part >= before - 1e-12).all() and (part <= whole + 1e-12).all()
        before = part
    torch.testing.assert_close(before, whole, rtol=1e-12, atol=1e-12)


def test_a_student_that_is_the_teacher_has_none_and_its_gradient_is_zero() -> None:
    states = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64)
    loss = full_kl_of_states(states, lambda h: h @ weight.T, states.detach(), lambda h: h @ weight.T)
    (grad,) = torch.autograd.grad(loss.sum(), states)
    torch.testing.assert_close(loss, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12)


def test_the_largest_tensor_is_one_chunk() -> None:
    rows, width, chunk = 48, 401, 8

    def peak(chunked: bool) -> int:
        hidden = torch.randn(rows, 3, requires_grad=True)
        states, head, theirs = torch.randn(rows, 5), torch.nn.Linear(3, width), torch.nn.Linear(5, width)
        with Memory() as memory:
            if chunked:
                loss = full_kl_of_states(hidden, head, states, theirs, rows_per_chunk=chunk)
            else:
                loss = full_kl(head(hidden), theirs(states))
            loss.sum().backward()
        return memory.largest

    assert peak(True) == chunk * width
    assert peak(False) == rows * width


def test_no_rows_are_no_loss_and_what_a_mask_leaves_out_does_nothing() -> None:
    weight = torch.randn(9, 4, requires_grad=True)
    head = partial(torch.nn.functional.linear, weight=weight)
    nothing = full_kl_of_states(torch.zeros(0, 4, requires_grad=True), head, torch.zeros(0, 4), head)
    assert nothing.shape == (0,)
    nothing.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_impossible_for_the_student_is_infinite_and_the_teacher_gets_no_gradient() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0], [0.0, 1.0, -math.inf]], requires_grad=True)
    teacher = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, -math.inf]], requires_grad=True)
    loss = full_kl(logits, teacher)
    assert loss[0] == math.inf and loss[1].isfinite()
    loss[1].backward()
    assert logits.grad is not None and logits.grad[1].isfinite().all() and teacher.grad is None


def test_what_does_not_fit_is_refused() -> None:
    logits, teacher = torch.zeros(2, 5), torch.zeros(2, 7)
    with pytest.raises(ValueError, match="7 tokens, the student for 5: not one vocabulary"):
        full_kl(logits, teacher)
    teacher[:, 5:] = -torch.inf
    torch.testing.assert_close(full_kl(logits, teacher), torch.zeros(2))
    with pytest.raises(ValueError, match="temperature 0"):
        full_kl(logits, logits, temperature=0)
    with pytest.raises(ValueError, match="rows_per_chunk 0"):
        full_kl_of_states(logits, torch.nn.Identity(), logits, torch.nn.Identity(), rows_per_chunk=0)
