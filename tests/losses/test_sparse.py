"""Losses on stored rows beside dense formulas and loops: values, gradients, the ends of number ranges, padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from engine.losses.partial import partial_kl
from engine.losses.sampled import sampled_ce
from engine.losses.sparse import forward_kl, jsd, reverse_kl

INF = math.inf
Row = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
DIVERGENCES: list[Callable[..., torch.Tensor]] = [forward_kl, reverse_kl, jsd, partial(jsd, beta=0.1)]
NAMES = ["forward", "reverse", "jsd", "jsd-0.1"]


def stored(teacher_RV: torch.Tensor, k: int, drop_last: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, logps, tail) of a dense teacher. drop_last: so many of the k entries become padding with id 0."""
    best = teacher_RV.topk(k, dim=1)
    ids, mass = best.indices.clone(), best.values.clone()
    if drop_last:
        ids[:, -drop_last:], mass[:, -drop_last:] = 0, 0.0
    rest = teacher_RV.scatter(1, best.indices[:, : k - drop_last], 0.0).sum(1)
    return ids, mass.log(), rest.log()


def make(k: int, size: int = 9, rows: int = 4, drop_last: int = 0, seed: int = 0) -> Row:
    """float64: student logits with gradient, and a stored teacher."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, size, dtype=torch.float64, generator=draw).mul_(2).requires_grad_()
    teacher = torch.randn(rows, size, dtype=torch.float64, generator=draw).mul_(2).softmax(1)
    return logits, *stored(teacher, k, drop_last)


def coarse(logits_V: torch.Tensor, ids_K: torch.Tensor, logp_K: torch.Tensor, tail: torch.Tensor, temperature: float):
    """The definition, with probabilities and a loop: lists of (teacher, student) masses of the outcomes that there are."""
    student = logits_V.exp() / logits_V.exp().sum()
    kept = [(int(i), float(p)) for i, p in zip(ids_K, logp_K, strict=True) if p > -INF]
    names = {i for i, _ in kept}
    t = torch.tensor([math.exp(p) for _, p in kept] + [float(tail.exp())], dtype=torch.float64)
    others = [student[v] for v in range(len(student)) if v not in names]
    s = torch.stack([student[i] for i, _ in kept] + [sum(others, torch.zeros((), dtype=torch.float64))])
    if temperature != 1:
        t, s = t ** (1 / temperature), s ** (1 / temperature)
        t, s = t / t.sum(), s / s.sum()
    return t, s


def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([x * (x / y).log() for x, y in zip(a, b, strict=True) if x > 0]).sum()


def twin(loss: Callable[..., torch.Tensor], row: Row, temperature: float = 1.0) -> torch.Tensor:
    out = []
    for parts in zip(*row, strict=True):
        t, s = coarse(*parts, temperature)
        if loss is forward_kl:
            out.append(kl(t, s))
        elif loss is reverse_kl:
            out.append(kl(s, t))
        else:
            beta = loss.keywords["beta"] if isinstance(loss, partial) else 0.5
            m = beta * t + (1 - beta) * s
            out.append(beta * kl(t, m) + (1 - beta) * kl(s, m))
    return torch.stack(out)


def same_with_gradient(
    found: torch.Tensor, wanted: torch.Tensor, logits: torch.Tensor, tolerance: float = 1e-12
) -> None:
    weight = torch.arange(1.0, len(found) + 1, dtype=found.dtype)
    (found_grad,) = torch.autograd.grad((found * weight).sum(), logits, retain_graph=True)
    (wanted_grad,) = torch.autograd.grad((wanted * weight).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found_grad, wanted_grad, rtol=tolerance, atol=tolerance)
    assert wanted_grad.abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("shape", [(1, 0), (4, 0), (4, 2), (8, 0)], ids=str)
@pytest.mark.parametrize("loss", DIVERGENCES, ids=NAMES)
def test_divergences_are_their_definition(loss, shape: tuple[int, int], temperature: float) -> None:
    row = make(shape[0], drop_last=shape[1])
    same_with_gradient(loss(*row, temperature=temperature), twin(loss, row, temperature), row[0])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("loss", DIVERGENCES, ids=NAMES)
def test_all_tokens_stored_is_the_dense_divergence(loss, temperature: float) -> None:
    """K = V: no tail on either side, and the temperature is the usual one."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 6, dtype=torch.float64, generator=draw).requires_grad_()
    target = torch.randn(3, 6, dtype=torch.float64, generator=draw)
    ids, logp, tail = stored(target.softmax(1), 6)
    assert (tail == -INF).all()
    t, s = (target / temperature).log_softmax(1), (logits / temperature).log_softmax(1)
    beta = loss.keywords["beta"] if isinstance(loss, partial) else 0.5
    m = (beta * t.exp() + (1 - beta) * s.exp()).log()
    wanted = {
        forward_kl: (t.exp() * (t - s)).sum(1),
        reverse_kl: (s.exp() * (s - t)).sum(1),
    }.get(loss, beta * (t.exp() * (t - m)).sum(1) + (1 - beta) * (s.exp() * (s - m)).sum(1))
    same_with_gradient(loss(logits, ids, logp, tail, temperature=temperature), wanted, logits)


@pytest.mark.parametrize("loss", DIVERGENCES, ids=NAMES)
@pytest.mark.parametrize("k", [3, 6])
def test_gradcheck(loss, k: int) -> None:
    logits, ids, logp, tail = make(k, size=6, rows=2)
    for temperature in (1.0, 2.0):
        assert gradcheck(lambda x, t=temperature: loss(x, ids, logp, tail, temperature=t), (logits,))
    gold = torch.tensor([5, 0])
    assert gradcheck(lambda x: partial_kl(x, ids, logp, tail, gold, candidates=2), (logits,))
    assert gradcheck(
        lambda x: sampled_ce(x, torch.tensor([[1, 3], [2, 0]]), torch.tensor([[3, 2], [5, 0]]), 5), (logits,)
    )


@pytest.mark.parametrize("loss", DIVERGENCES, ids=NAMES)
def test_padding_neither_counts_nor_hides_token_0(loss) -> None:
    """Token 0 stored and its id in the padding too; token 0 not stored, and its id in the padding; ids of -1."""
    teacher = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.3, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[0.3, 1.0, -1.0, 0.0], [2.0, 0.1, 0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    ids, logp, tail = stored(teacher, 2)
    assert ids.tolist() in ([[0, 1], [1, 2]], [[0, 2], [1, 2]])
    short = loss(logits, ids, logp, tail)
    for fill in (0, -1, 1):
        wide = torch.cat([ids, torch.full((2, 2), fill)], 1), torch.cat([logp, torch.full((2, 2), -INF)], 1)
        same_with_gradient(loss(logits, *wide, tail), short, logits)


def test_the_students_tail_keeps_its_digits() -> None:
    """A tail of 1e-12 in float32, where 1 - sum is 0 or noise: beside float64, value and gradient."""
    logits = torch.tensor([[30.0, 29.0, 1.0, 0.5, -2.0]])
    ids, teacher = torch.tensor([[0, 1]]), torch.tensor([[0.7, 0.3]]).log()
    for tail in (-27.6, -1.0, -80.0):
        for loss in [*DIVERGENCES, partial(partial_kl, gold_R=torch.tensor([1]))]:
            found, wanted = [], []
            for dtype, out in ((torch.float32, found), (torch.float64, wanted)):
                x = logits.to(dtype).requires_grad_()
                value = loss(x, ids, teacher, torch.tensor([tail]))
                out += [value.double(), *torch.autograd.grad(value.sum(), x)]
            torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(found[1].double(), wanted[1].double(), rtol=1e-4, atol=1e-7)
    student = logits.double().softmax(1)[0, 2:].sum()
    assert 1e-13 < student < 1e-11
    x = logits.clone().requires_grad_()  # all of the teacher in the tail: the gradient there is -softmax of the tail
    (grad,) = torch.autograd.grad(forward_kl(x, ids, torch.full((1, 2), -90.0), torch.zeros(1)).sum(), x)
    torch.testing.assert_close(grad[0, 2:], -logits[0, 2:].softmax(0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("loss", DIVERGENCES, ids=NAMES)
def test_logits_of_a_thousand(loss) -> None:
    draw = torch.Generator().manual_seed(3)
    logits = (torch.randn(6, 50, generator=draw) * 1000).requires_grad_()
    ids, logp, tail = stored(torch.randn(6, 50, generator=draw).mul(30).softmax(1), 5)
    tail = tail.clamp(min=-60.0)  # here, so that the reverse KL is finite: float32 masses underflow
    value = loss(logits, ids, logp.clamp(min=-90.0), tail)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and grad.isfinite().all()
    exact = loss(logits.detach().double(), ids, logp.clamp(min=-90.0), tail)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_first(dtype: torch.dtype) -> None:
    logits, ids, logp, tail = make(3)
    half, gold, drawn = logits.detach().to(dtype), torch.tensor([0, 1, 2, 3]), torch.full((4, 3), 4)
    for loss in [*DIVERGENCES, partial(partial_kl, gold_R=gold)]:
        value = loss(half.requires_grad_(), ids, logp.float(), tail.float())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(half.float(), ids, logp.float(), tail.float()), rtol=0, atol=0)
        assert torch.autograd.grad(value.sum(), half)[0].dtype == dtype
    torch.testing.assert_close(
        sampled_ce(half, ids, drawn, 12), sampled_ce(half.float(), ids, drawn, 12), rtol=0, atol=0
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_teacher_without_a_tail(temperature: float) -> None:
    """forward and jsd are finite; reverse is +inf with gradient 0 there, and leaves the other row alone."""
    logits, ids, logp, tail = make(4, rows=2)
    tail = torch.tensor([-INF, float(tail[1])], dtype=torch.float64)
    for loss in (forward_kl, jsd):
        value = loss(logits, ids, logp, tail, temperature)
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()
        torch.testing.assert_close(value, twin(loss, (logits, ids, logp, tail), temperature))
    value = reverse_kl(logits, ids, logp, tail, temperature)
    assert value[0] == INF and value[1].isfinite()
    alone = reverse_kl(logits[1:], ids[1:], logp[1:], tail[1:], temperature)
    (grad,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(alone.sum(), logits)
    torch.testing.assert_close(grad, wanted)
    assert (grad[0] == 0).all() and (grad[1] != 0).any()
    filled = reverse_kl(logits, ids, logp, tail, temperature, empty_tail_logp=math.log(1e-6))
    by_hand = torch.tensor([math.log(1e-6), float(tail[1])], dtype=torch.float64)
    same_with_gradient(filled, reverse_kl(logits, ids, logp, by_hand, temperature), logits)
    assert filled.isfinite().all()


def test_a_student_without_the_token() -> None:
    """+inf in the forward KL where the teacher has mass; nothing where it has none; gradients are never NaN."""
    teacher = torch.tensor([[0.6, 0.3, 0.1, 0.0]], dtype=torch.float64)
    for dead, wanted in ((1, INF), (2, INF), (3, None)):
        logits = torch.zeros(1, 4, dtype=torch.float64)
        logits[0, dead] = -INF
        logits.requires_grad_()
        for k in (2, 3):
            row = stored(teacher, k)
            value = forward_kl(logits, *row)
            # with k = 2 the tail holds tokens 2 and 3, of which one is enough
            assert (value == INF).item() == (wanted == INF and not (k == 2 and dead == 2))
            for loss in (forward_kl, jsd, reverse_kl):
                assert torch.autograd.grad(loss(logits, *row).sum(), logits)[0].isfinite().all()
            assert jsd(logits, *row).isfinite().all()


def test_equal_distributions_have_divergence_0_and_unscored_rows_do_no_harm() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    row = stored(logits.detach().softmax(1), 3)
    unscored = torch.zeros(3, 3, dtype=torch.int64), torch.full((3, 3), -INF), torch.zeros(3)
    for loss in DIVERGENCES:
        for what in (row, unscored):
            value = loss(logits, *what)
            torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
            assert torch.autograd.grad(value.sum(), logits)[0].abs().max() < 1e-12


def test_arguments_out_of_range() -> None:
    row = make(3)
    for loss in (forward_kl, reverse_kl, jsd):
        for temperature in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match=f"temperature {temperature}"):
                loss(*row, temperature=temperature)
    for beta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"beta {beta}"):
            jsd(*row, beta=beta)
    gold = torch.zeros(4, dtype=torch.int64)
    for omega, candidates in ((1.1, None), (-0.1, 1), (0.5, 0), (0.5, 4)):
        with pytest.raises(ValueError, match="omega"):
            partial_kl(*row, gold, omega=omega, candidates=candidates)


# ---- partial KL ----


@pytest.mark.parametrize("candidates", [None, 1, 2, 5])
def test_partial_kl_is_the_papers_formula(candidates: int | None) -> None:
    row = make(5, drop_last=1)
    logits, ids, logp, _ = row
    gold = torch.tensor([0, 8, 3, 3])
    wanted = []
    for r in range(4):
        p = logits[r].softmax(0)
        known = [
            (int(i), math.exp(q)) for i, q in zip(ids[r, :candidates], logp[r, :candidates], strict=True) if q > -INF
        ]
        rest_q, rest_p = 1 - sum(q for _, q in known), 1 - sum(p[i] for i, _ in known)
        pkl = -(sum(q * p[i].log() for i, q in known) + rest_q * torch.as_tensor(rest_p).log())
        wanted.append(0.8 * pkl - 0.2 * p[gold[r]].log())
    found = partial_kl(*row, gold, candidates=candidates)
    same_with_gradient(found, torch.stack(wanted), logits, tolerance=1e-10)


def test_partial_kl_and_its_parts() -> None:
    """omega 1: the forward KL plus the teacher's entropy; omega 0: the cross-entropy with the gold token."""
    row, gold = make(4), torch.tensor([1, 2, 3, 4])
    logits, _, logp, tail = row
    teacher = torch.cat([logp, tail[:, None]], 1)
    entropy = -(teacher.exp() * teacher).sum(1)
    torch.testing.assert_close(partial_kl(*row, gold, omega=1.0), forward_kl(*row) + entropy)
    ce = torch.nn.functional.cross_entropy(logits, gold, reduction="none")
    torch.testing.assert_close(partial_kl(*row, gold, omega=0.0), ce)


def test_partial_kl_with_every_token_stored() -> None:
    """No rest on either side; a tail of 0 beside a rest of the student's; stored masses are not renormalised."""
    logits, ids, logp, tail = make(9)
    gold = torch.tensor([1, 2, 3, 4])
    value = partial_kl(logits, ids, logp, tail, gold, omega=1.0)
    dense = torch.zeros_like(logits).scatter(1, ids, logp.exp())
    same_with_gradient(value, -(dense * logits.log_softmax(1)).sum(1), logits)
    logits, ids, logp, tail = make(3)
    half = partial_kl(logits, ids, logp - math.log(2), torch.full_like(tail, -INF), gold, omega=1.0)
    wanted = -(logp.exp() / 2 * logits.log_softmax(1).gather(1, ids)).sum(1)
    same_with_gradient(half, wanted, logits)


# ---- random sampling ----


def test_sampled_ce_is_its_formula() -> None:
    logits = make(3)[0]
    ids = torch.tensor([[1, 4, 0], [7, 0, 0], [0, 2, 8], [3, 0, 0]])
    counts = torch.tensor([[5, 2, 1], [8, 0, 0], [4, 3, 1], [7, 1, 0]])
    wanted = []
    for r in range(4):
        p = logits[r].softmax(0)
        wanted.append(-sum(torch.as_tensor(int(c) / 8 * p[i].log()) for i, c in zip(ids[r], counts[r], strict=True)))
    same_with_gradient(sampled_ce(logits, ids, counts, 8), torch.stack([torch.as_tensor(x) for x in wanted]), logits)


def test_sampled_ce_skips_padding_and_refuses_other_sums() -> None:
    logits = torch.tensor([[-INF, 1.0, 2.0]], requires_grad=True)  # token 0 impossible, and the id of the padding
    ids, counts = torch.tensor([[2, 0]]), torch.tensor([[4, 0]])
    value = sampled_ce(logits, ids, counts, 4)
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), logits)[0].isfinite().all()
    with pytest.raises(ValueError, match="1 of 1 rows do not have 5 draws, first row 0 with 4"):
        sampled_ce(logits, ids, counts, 5)
    assert sampled_ce(logits, ids, counts, 5, check=False).item() == pytest.approx(0.8 * value.item())


def test_sampled_gradients_are_unbiased_and_nearer_to_full_than_truncation() -> None:
    """The mean of M targets of N draws each beside the dense cross-entropy: every coordinate of the gradient within 5 standard
    errors (sqrt(t (1 - t) / (N M))). Its direction is nearer to the full gradient's than that of a renormalised top-k, which
    no number of positions would bring nearer."""
    size, n, m, k = 60, 50, 400, 6
    draw = torch.Generator().manual_seed(5)
    teacher = torch.randn(size, dtype=torch.float64, generator=draw).softmax(0)
    # a student that is near the teacher, as in training: there the bias of truncation is most of the gradient
    logits = (teacher.log() + 0.5 * torch.randn(size, dtype=torch.float64, generator=draw)).requires_grad_()
    drawn = torch.multinomial(teacher, n * m, replacement=True, generator=draw).view(m, n)
    counts = torch.zeros(m, size, dtype=torch.int64).scatter_add_(1, drawn, torch.ones_like(drawn))
    ids = torch.arange(size).expand(m, size)
    each = logits.expand(m, size).detach().requires_grad_()
    values = sampled_ce(each, ids, counts, n)
    (grads,) = torch.autograd.grad(values.sum(), each)

    dense = -(teacher * logits.log_softmax(0)).sum()
    (full,) = torch.autograd.grad(dense, logits)
    bound = 5 * (teacher * (1 - teacher) / (n * m)).sqrt()
    assert ((grads.mean(0) - full).abs() <= bound).all()
    assert (grads.mean(0) - full).abs().max() > 0
    spread = (teacher * logits.detach().log_softmax(0) ** 2).sum() - dense.detach() ** 2
    assert (values.mean() - dense).abs() <= 5 * (spread / (n * m)).sqrt()

    best = teacher.topk(k)
    cut = torch.zeros_like(teacher).scatter(0, best.indices, best.values / best.values.sum())
    truncated = logits.detach().softmax(0) - cut
    towards = torch.nn.functional.cosine_similarity(grads.mean(0), full, dim=0)
    assert towards > torch.nn.functional.cosine_similarity(truncated, full, dim=0) + 0.2
    assert towards > 0.99
