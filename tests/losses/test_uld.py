"""ULD and MultiLevelOT: beside dense loops over whole vocabularies, and unchanged where they must be.

Letters: T teacher rows, S student rows, V, W vocabularies of student and teacher, K stored tokens, N columns.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from engine.losses.multilevel import multilevel_ot, sinkhorn_cost, student_columns, teacher_columns
from engine.losses.uld import uld, uld_interval

F64 = torch.float64


def random_logits(seed: int, rows: int, tokens: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(rows, tokens, dtype=F64, generator=torch.Generator().manual_seed(seed))


def stored(logits_TW: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids [T, K], logp [T, K], tail_logp [T] of a dense teacher."""
    logp = torch.log_softmax(logits_TW, 1)
    top, ids = torch.topk(logp, k, 1)
    tail = logp.scatter(1, ids, -torch.inf).logsumexp(1)
    return ids, top, tail


def dense_uld(logits_SV: Tensor, p_TW: Tensor) -> Tensor:
    """The definition: both sides sorted whole, the smaller vocabulary filled with zeros."""
    rows, width = min(len(logits_SV), len(p_TW)), max(logits_SV.shape[1], p_TW.shape[1])
    sides = []
    for p in (torch.softmax(logits_SV[:rows], 1), p_TW[:rows]):
        ordered = p.sort(1, descending=True).values
        sides.append(torch.nn.functional.pad(ordered, (0, width - p.shape[1])))
    return (sides[0] - sides[1]).abs().sum(1)


@pytest.mark.parametrize(("students", "teachers"), [(13, 13), (13, 21), (21, 13), (5, 40)])
def test_uld_with_everything_stored_is_the_definition(students: int, teachers: int) -> None:
    logits, dense = random_logits(0, 6, students).requires_grad_(), random_logits(1, 4, teachers)
    lower, upper = uld_interval(logits, *stored(dense, teachers)[1:])
    want = dense_uld(logits, torch.softmax(dense, 1))
    torch.testing.assert_close(lower, want)
    if students <= teachers:
        torch.testing.assert_close(upper, want)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits)[0] for x in (lower, want)))
    assert len(lower) == 4 and (lower <= 2).all()


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_the_interval_holds_the_definition(k: int) -> None:
    tighter = 0
    for seed in range(200):
        logits = random_logits(seed, 3, 15, 0.5 + seed % 4)
        dense = random_logits(seed + 1000, 3, 20, 0.5 + seed % 3)
        _, logp, tail = stored(dense, k)
        lower, upper = uld_interval(logits, logp, tail)
        value = dense_uld(logits, torch.softmax(dense, 1))
        assert (lower <= value + 1e-12).all() and (value <= upper + 1e-12).all()
        assert (upper - lower <= 2 * tail.exp() + 1e-12).all()
        s = torch.softmax(logits, 1).sort(1, descending=True).values
        simple = (s[:, :k] - logp.exp()).abs().sum(1) + (s[:, k:].sum(1) - tail.exp()).abs()
        assert (lower >= simple - 1e-12).all()
        tighter += int((lower > simple + 1e-9).sum())
    assert tighter > 0


def test_no_teacher_with_these_values_is_nearer_than_the_lower_end() -> None:
    """Over a grid of all tails of 4 tokens with the stored head: the least value is the lower end."""
    steps = 24
    for s_row in ([0.4, 0.3, 0.2, 0.06, 0.04], [0.9, 0.04, 0.03, 0.02, 0.01], [0.22, 0.21, 0.2, 0.19, 0.18]):
        s = torch.tensor([s_row], dtype=F64)
        for head in (0.25, 0.5, 0.75):
            c, least = round(head * steps), math.inf
            for parts in itertools.product(range(c + 1), repeat=3):
                last = steps - c - sum(parts)
                tail = (*parts, last)
                if 0 <= last <= c and list(tail) == sorted(tail, reverse=True):
                    t = torch.tensor([[c, *tail]], dtype=F64) / steps
                    least = min(least, float((s - t).abs().sum()))
            lower, _ = uld_interval(s.log(), torch.tensor([[head]], dtype=F64).log(), torch.tensor([1 - head]).log())
            assert float(lower) <= least + 1e-7 and float(lower) >= least - 3 / steps


def test_uld_does_not_know_the_ids_and_vanishes_for_the_same_model() -> None:
    logits, dense = random_logits(2, 5, 17), random_logits(3, 5, 17)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    _, logp, tail = stored(dense, 6)
    torch.testing.assert_close(uld(logits[:, order], logp, tail), uld(logits, logp, tail))
    _, logp, tail = stored(logits, 6)
    torch.testing.assert_close(uld(logits, logp, tail), torch.zeros(5, dtype=F64))
    kept = logits.clone()
    uld(logits, logp, tail)
    assert torch.equal(kept, logits)  # the public code overwrites them
    assert len(uld(logits[:0], logp, tail)) == 0
    distinct = random_logits(4, 2, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: uld(z, *stored(random_logits(5, 2, 9), 3)[1:]), (distinct,))


# ---- MultiLevelOT ----


class Dense:
    """A teacher's raw logits with the statistics that are stored of them."""

    def __init__(self, logits_TW: Tensor, k: int) -> None:
        self.logits = logits_TW
        self.ids, self.logp, _ = stored(logits_TW, k)
        self.logz = logits_TW.logsumexp(1)
        self.std = logits_TW.std(1, correction=0)
        self.logz_scaled = (logits_TW / self.std[:, None]).logsumexp(1)

    def stored(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.ids, self.logp, self.logz, self.std, self.logz_scaled


def dense_columns(logits_SV: Tensor, columns: int) -> Tensor:
    p = torch.softmax(logits_SV / logits_SV.std(1, correction=0)[:, None], 1)
    return p[:, p.sum(0).argsort(descending=True)[:columns]]


def plain_sinkhorn(cost: Tensor, eps: float, steps: int) -> Tensor:
    """The plan, by alternately scaling rows and columns of exp(-cost / eps) themselves."""
    plan = torch.exp(-cost / eps)
    for _ in range(steps):
        plan = plan / plan.sum(1, keepdim=True) / plan.shape[0]
        plan = plan / plan.sum(0, keepdim=True) / plan.shape[1]
    return plan


def plain_multilevel(logits_SV: Tensor, p_T: Tensor, columns: int, kl: str) -> Tensor:
    p_S = dense_columns(logits_SV, columns)
    rows = min(len(p_S), len(p_T))
    absolute = sum((p_S[t] - p_T[t]).abs().sum() for t in range(rows)) / rows
    terms = []
    for s, t in zip(p_S, p_T, strict=False):
        if kl == "forward":
            s, t = torch.cat([s, 1 - s.sum()[None]]), torch.cat([t, 1 - t.sum()[None]])
            terms.append(sum(a * (a / b).log() for a, b in zip(t, s, strict=True) if a > 0))
        else:
            s, t = torch.softmax(s, 0), torch.softmax(t, 0)
            terms.append((t * (t / s).log()).sum() if kl == "softmax_twice" else -(s * t.log()).sum())
    cost = torch.stack([torch.stack([(a - b).abs().sum() for b in p_T]) for a in p_S])
    transport = (plain_sinkhorn(cost, 0.1, 10) * cost).sum()
    return absolute + 0.1 * torch.stack(terms).mean() + 0.1 * transport


@pytest.mark.parametrize("kl", ["forward", "softmax_twice", "public"])
@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (7, 4)])
def test_multilevel_is_the_plain_loop(kl, shape: tuple[int, int]) -> None:
    teacher, logits = Dense(random_logits(1, shape[0], 30), 30), random_logits(2, shape[1], 25).requires_grad_()
    loss = multilevel_ot(logits, *teacher.stored(), columns=8, kl=kl)
    want = plain_multilevel(logits, dense_columns(teacher.logits, 8), 8, kl)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (loss, want)))
    assert torch.autograd.gradcheck(lambda z: multilevel_ot(z, *teacher.stored(), columns=8, kl=kl), (logits,))


def test_the_columns_of_stored_tokens_are_those_of_the_stored_tokens() -> None:
    teacher = Dense(random_logits(4, 6, 40), 5)
    p = torch.softmax(teacher.logits / teacher.std[:, None], 1)
    kept = torch.zeros_like(p).scatter(1, teacher.ids, p.gather(1, teacher.ids))  # 0 outside a row's top K
    ranked = kept.sum(0).argsort(descending=True)
    torch.testing.assert_close(teacher_columns(*teacher.stored(), columns=7), kept[:, ranked[:7]])
    wide = teacher_columns(*teacher.stored(), columns=35)  # more columns than tokens stored
    torch.testing.assert_close(wide.sum(1), kept.sum(1))
    logp, rest = student_columns(teacher.logits, 7)
    torch.testing.assert_close(logp.exp().sum(1) + rest.exp(), torch.ones(6, dtype=F64))
    loss = multilevel_ot(random_logits(5, 6, 40), *teacher.stored(), columns=35)
    assert loss.isfinite()


def test_permuting_vocabularies_leaves_multilevel_unchanged() -> None:
    teacher, logits = Dense(random_logits(6, 5, 30), 9), random_logits(7, 5, 25)
    loss = multilevel_ot(logits, *teacher.stored(), columns=8)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    renamed = (order[teacher.ids], *teacher.stored()[1:])
    shuffled = logits[:, torch.randperm(25, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(multilevel_ot(shuffled, *renamed, columns=8), loss)
    # the same model on both sides: only the transport between unlike rows remains
    same = Dense(logits, 25)
    p = dense_columns(logits, 8)
    transport = 0.1 * sinkhorn_cost(torch.cdist(p, p, p=1.0))
    torch.testing.assert_close(multilevel_ot(logits, *same.stored(), columns=8), transport)


def test_sinkhorn_is_the_plain_scaling_with_its_marginals() -> None:
    cost = 2 * torch.rand(7, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    for eps, steps in ((0.1, 10), (1.0, 3), (0.5, 200)):
        plan = plain_sinkhorn(cost, eps, steps)
        torch.testing.assert_close(sinkhorn_cost(cost, eps=eps, steps=steps), (plan * cost).sum())
        torch.testing.assert_close(plan.sum(0), torch.full((4,), 1 / 4, dtype=F64))
    torch.testing.assert_close(plan.sum(1), torch.full((7,), 1 / 7, dtype=F64))
    far = cost.float() * 100  # exp(-cost / eps) is 0 in float32 everywhere
    assert sinkhorn_cost(far).isfinite() and torch.exp(-far / 0.1).sum() == 0
    ones = torch.full((3, 5), 0.7, dtype=F64)
    torch.testing.assert_close(sinkhorn_cost(ones), torch.tensor(0.7, dtype=F64))  # the plan's mass is 1


def test_what_multilevel_refuses() -> None:
    teacher, logits = Dense(random_logits(1, 4, 30), 9), random_logits(2, 4, 25)
    ids, logp, *statistics = Dense(teacher.logits, 30).stored()
    with pytest.raises(ValueError, match="adds up to"):
        multilevel_ot(logits, ids, logp + 0.5, *statistics, columns=8)
    with pytest.raises(ValueError, match="standard deviation"):
        multilevel_ot(torch.zeros_like(logits), *teacher.stored(), columns=8)
    with pytest.raises(ValueError, match="25 student tokens for 25 columns"):
        multilevel_ot(logits, *teacher.stored(), columns=25)
    nothing = multilevel_ot(logits[:0].requires_grad_(), *teacher.stored(), columns=8)
    assert nothing.item() == 0 and nothing.requires_grad


def test_ten_mantissa_bits_move_multilevel_little() -> None:
    """The stored columns, rounded as the files round: loss and rest cell stay defined."""

    def rounded(x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2048).round() / 2048, exponent)

    teacher, logits = Dense(random_logits(8, 6, 60, 3.0) + 20, 60), random_logits(9, 6, 60)
    ids, *statistics = teacher.stored()
    loss = multilevel_ot(logits, ids, *statistics, columns=50)
    assert multilevel_ot(logits, ids, *map(rounded, statistics), columns=50).item() == pytest.approx(
        loss.item(), rel=0.1
    )
