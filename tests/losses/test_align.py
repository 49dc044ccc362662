"""Alignment by byte ends and ALM: beside plain loops, on random cuts, and where they must not change.

Letters: T teacher rows, S student rows, V vocabulary, C chunks.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from engine.losses.align import NONE, Alignment, TokenSpans, align, first_and_last, keep
from engine.losses.alm import alm, binary_cross_entropy, merge_at_spaces, space_logp
from engine.losses.logmath import gold_logp, group_logmean, jsd_cells, log1mexp

TEXT, END, CONTEXT = 0, 2, 3
Token = tuple[int, int, bool]  # byte_end, role, usable


def teacher(tokens: list[Token]) -> TokenSpans:
    ends, roles, mask = ([token[i] for token in tokens] for i in range(3))
    return TokenSpans.teacher(ends, torch.tensor(roles), torch.tensor(mask, dtype=torch.bool))


def student(tokens: list[Token]) -> TokenSpans:
    return TokenSpans.student(
        [t[0] for t in tokens], [{TEXT: 1, END: 16, CONTEXT: 64}[t[1]] for t in tokens], [t[2] for t in tokens]
    )


def walk(left: list[Token], right: list[Token]) -> list[tuple[list[int], list[int]]]:
    """The slow twin: two pointers; (teacher rows, student rows) of each chunk."""
    found: list[tuple[list[int], list[int]]] = []
    sides = (left, right)
    special = [[t[1] != TEXT and t[0] == (side[i - 1][0] if i else 0) for i, t in enumerate(side)] for side in sides]
    at, open_rows = [0, 0], ([], [])
    while True:
        # each side runs on to its next token with bytes; specials on the way are kept apart, tokens without bytes kept
        ends = []
        for s, side in enumerate(sides):
            while at[s] < len(side) and (special[s][at[s]] or side[at[s]][0] == (side[at[s] - 1][0] if at[s] else 0)):
                if not special[s][at[s]]:
                    open_rows[s].append(at[s])
                at[s] += 1
            ends.append(side[at[s]][0] if at[s] < len(side) else None)
        if None in ends:
            break
        for s in (0, 1):
            if ends[s] == min(ends):
                open_rows[s].append(at[s])
                at[s] += 1
        if ends[0] == ends[1]:
            found.append(open_rows)
            open_rows = ([], [])
    spots: dict[tuple[int, int], list[list[int]]] = {}
    for s, side in enumerate(sides):
        seen: dict[int, int] = {}
        for i, token in enumerate(side):
            if special[s][i] and token[1] == END:
                seen[token[0]] = seen.get(token[0], -1) + 1
                spots.setdefault((token[0], seen[token[0]]), [[], []])[s].append(i)
    found += [(rows[0], rows[1]) for rows in spots.values() if rows[0] and rows[1]]
    good = []
    for rows in found:
        tokens = [sides[s][i] for s in (0, 1) for i in rows[s]]
        beside = all(rows[s][-1] - rows[s][0] + 1 == len(rows[s]) for s in (0, 1))
        same_kind = len({token[1] == END for token in tokens}) == 1
        if beside and same_kind and all(token[2] for token in tokens):
            good.append(rows)
    return sorted(good)


def chunks_of(alignment: Alignment) -> list[tuple[list[int], list[int]]]:
    sides = alignment.chunk_of_t.tolist(), alignment.chunk_of_s.tolist()
    return [
        tuple([i for i, chunk in enumerate(side) if chunk == c] for side in sides)  # type: ignore[misc]
        for c in range(len(alignment.is_end))
    ]


def random_side(rng: random.Random, size: int) -> list[Token]:
    cuts = sorted({size, *(rng.randrange(1, size + 1) for _ in range(rng.randrange(size + 1)))})
    tokens: list[Token] = []
    for end in [0, *cuts]:
        if end:
            tokens.append((end, rng.choices([TEXT, CONTEXT, END], [30, 1, 1])[0], rng.random() < 0.95))
        while rng.random() < (0.6 if end == size else 0.15):
            tokens.append((end, rng.choice([TEXT, END, END, CONTEXT]), rng.random() < 0.95))
    return tokens[: rng.randrange(len(tokens) + 1)] if rng.random() < 0.3 else tokens


def test_alignment_is_that_of_the_two_pointers() -> None:
    rng, count, ends = random.Random(0), 0, 0
    for _ in range(3000):
        left, right = (random_side(rng, size) for size in [rng.randrange(1, 14)] * 2)
        found = align(teacher(left), student(right))
        assert chunks_of(found) == walk(left, right), (left, right)
        assert found.is_end.tolist() == [left[rows[0]][1] == END for rows, _ in walk(left, right)]
        for chunk in found[:2]:  # rises along the rows
            kept = chunk[chunk != NONE]
            assert (kept.diff() >= 0).all()
        firsts, lasts = first_and_last(found.chunk_of_s, len(found.is_end))
        assert list(zip(firsts.tolist(), lasts.tolist(), strict=True)) == [(s[0], s[-1]) for _, s in chunks_of(found)]
        count, ends = count + len(found.is_end), ends + int(found.is_end.sum())
    assert count > 2000 and ends > 300


def test_what_an_alignment_keeps_and_drops() -> None:
    # "ab" | "c" | "def": byte 2 and 3 and 6; the teacher has a lone space in front, both an end, the teacher a template
    left = [(0, TEXT, True), (2, TEXT, True), (3, TEXT, True), (6, TEXT, True), (6, END, True), (6, CONTEXT, False)]
    right = [(1, TEXT, True), (3, TEXT, True), (4, TEXT, True), (6, TEXT, True), (6, END, True)]
    found = align(teacher(left), student(right))
    assert chunks_of(found) == [([0, 1, 2], [0, 1]), ([3], [2, 3]), ([4], [4])]
    assert found.is_end.tolist() == [False, False, True]
    cut = align(teacher(left[:3]), student(right[:3]))
    assert chunks_of(cut) == [([0, 1, 2], [0, 1])]  # the open tail: none
    right[2] = (4, TEXT, False)
    assert chunks_of(align(teacher(left), student(right))) == [([0, 1, 2], [0, 1]), ([4], [4])]
    swapped = align(TokenSpans.teacher([2], [2], [True]), TokenSpans.student([1, 2], [0, 0], [True, True]))
    assert chunks_of(swapped) == []  # an end written out, beside text
    with pytest.raises(ValueError, match="falls at row 1: 4 to 3"):
        TokenSpans.teacher([4, 3], [0, 0], [True, True])
    with pytest.raises(ValueError, match="wanted one each"):
        TokenSpans.teacher([4, 5], [0], [True, True])


# ---- log-probabilities ----


def test_log_probabilities_near_one_keep_their_digits() -> None:
    logits = torch.tensor([[30.0, 0.0, 1.0]])
    logp = gold_logp(logits, torch.tensor([0]))
    exact = -math.log1p(math.exp(-30) + math.exp(-29))
    assert float(logp) == pytest.approx(exact, rel=1e-5) and float(torch.log_softmax(logits, 1)[0, 0]) == 0
    assert float(log1mexp(logp)) == pytest.approx(math.log(-math.expm1(exact)), rel=1e-5)
    assert float(log1mexp(torch.tensor(0.0))) == -math.inf
    wide_logits = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gold = torch.tensor([0, 8, 3, 3, 1])
    plain = torch.log_softmax(wide_logits, 1)
    torch.testing.assert_close(gold_logp(wide_logits, gold), plain[torch.arange(5), gold])
    space = torch.tensor([True, False, False] * 3)
    torch.testing.assert_close(space_logp(wide_logits, space), plain[:, space].exp().sum(1).log())


def test_group_means_and_jensen_shannon_are_those_of_plain_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.softmax(torch.randn(6, 4, dtype=torch.float64, generator=generator), 1)
    p[0, 1] = p[3, 1] = p[2, 2] = 0
    group = torch.tensor([0, 1, 1, 0, 2, 1])
    means = torch.stack([p[group == g].mean(0) for g in range(3)])
    torch.testing.assert_close(group_logmean(p.log(), group, 3).exp(), means)
    t, s = p[:3].clone().requires_grad_(), p[3:].clone().requires_grad_()
    m = 0.3 * t + 0.7 * s
    want = (0.3 * (torch.xlogy(t, t) - torch.xlogy(t, m)) + 0.7 * (torch.xlogy(s, s) - torch.xlogy(s, m))).sum(1)
    torch.testing.assert_close(jsd_cells(t.log(), s.log(), 0.3), want)
    both = torch.full((1, 3), -torch.inf, dtype=torch.float64)
    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    loss = jsd_cells(torch.cat([both, torch.zeros(1, 2)], 1), torch.cat([both, torch.log_softmax(x, 1)], 1), 0.5)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert loss.isfinite().all() and grad.isfinite().all()


# ---- ALM ----

VOCABULARY = 11
SPACE = torch.tensor([i % 4 == 0 for i in range(VOCABULARY)])


class Case:
    """A random document: both tokenizations of a text, teacher statistics, student logits in float64."""

    def __init__(self, seed: int, same: bool = False, size: int = 20) -> None:
        rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        cuts = [sorted({size, *rng.sample(range(1, size), size // 2)}) for _ in range(2)]
        cuts[1] = cuts[0] if same else cuts[1]
        self.left, self.right = ([*((end, TEXT, True) for end in side), (size, END, True)] for side in cuts)
        self.alignment = align(teacher(self.left), student(self.right))
        self.logits = 2 * torch.randn(len(self.right), VOCABULARY, dtype=torch.float64, generator=self.generator)
        self.gold = torch.randint(VOCABULARY, (len(self.right),), generator=self.generator)
        self.gold_logp = -3 * torch.rand(len(self.left), dtype=torch.float64, generator=self.generator)
        self.space_logp = torch.log(torch.rand(len(self.left), dtype=torch.float64, generator=self.generator) ** 3)
        self.known = torch.ones(len(self.left), dtype=torch.bool)

    def alm(self, logits: Tensor | None = None, alignment: Alignment | None = None, **options) -> Tensor:
        return alm(
            self.logits if logits is None else logits,
            self.gold,
            self.gold_logp,
            self.space_logp,
            self.known,
            SPACE,
            alignment or self.alignment,
            **options,
        )


def plain_alm(
    case: Case, logits: Tensor, chunks: list[tuple[list[int], list[int]]], tau: float, debias: bool
) -> Tensor:
    """The slow twin: chunk by chunk, with probabilities."""
    p, losses = torch.softmax(logits, 1), []
    for rows_t, rows_s in chunks:
        l_t = sum(float(case.gold_logp[i]) for i in rows_t)
        l_s = torch.stack([p[j, case.gold[j]].log() for j in rows_s]).sum()
        if debias and case.left[rows_t[0]][1] != END:
            if rows_t[-1] + 1 == len(case.left) or rows_s[-1] + 1 == len(case.right) or not case.known[rows_t[-1] + 1]:
                continue
            l_t += float(case.space_logp[rows_t[-1] + 1])
            l_s = l_s + p[rows_s[-1] + 1][SPACE].sum().log()
        q, s = math.exp(l_t / tau), torch.exp(l_s / tau)
        losses.append(-(q * s.log() + (1 - q) * (1 - s).log()))
    return torch.stack(losses)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_alm_is_the_direct_loop(seed: int, debias: bool) -> None:
    case = Case(seed)
    case.known[random.Random(seed).randrange(len(case.left))] = False  # only the row behind a chunk
    tau = 100.0 if seed % 2 else 3.0
    logits = case.logits.requires_grad_()
    loss = case.alm(tau=tau, debias=debias)
    want = plain_alm(case, logits, chunks_of(case.alignment), tau, debias)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits)[0] for x in (loss, want)))
    assert torch.autograd.gradcheck(lambda z: case.alm(z, tau=tau, debias=debias), (logits,))


def test_alm_is_least_where_the_likelihoods_are_equal() -> None:
    case = Case(3)
    student_l = [
        sum(float(gold_logp(case.logits, case.gold)[j]) for j in rows) for _, rows in chunks_of(case.alignment)
    ]
    firsts, _ = first_and_last(case.alignment.chunk_of_t, len(case.alignment.is_end))
    case.gold_logp[:] = 0.0
    case.gold_logp[firsts] = torch.tensor(student_l, dtype=torch.float64)
    logits = case.logits.requires_grad_()
    (grad,) = torch.autograd.grad(case.alm(tau=1.0, debias=False).sum(), logits)
    assert grad.abs().max() < 1e-12
    l_t = torch.tensor([-0.5, -40.0, -1e-4], dtype=torch.float64)
    l_s = l_t.clone().requires_grad_()
    loss = binary_cross_entropy(l_t, l_s, 100.0, torch.zeros(3))
    y = l_t / 100
    torch.testing.assert_close(loss, -(y.exp() * y + (1 - y.exp()) * (1 - y.exp()).log()))  # the entropy
    assert torch.autograd.grad(loss.sum(), l_s)[0].abs().max() < 1e-12
    for shift in (-0.1, 1e-5):  # and elsewhere the gradient is not zero, and points back
        moved = (l_t + shift).requires_grad_()
        (grad,) = torch.autograd.grad(binary_cross_entropy(l_t, moved, 100.0, torch.zeros(3)).sum(), moved)
        assert (grad * shift > 0).all()


def test_alm_of_a_certain_teacher_is_exact_and_nonsense_raises() -> None:
    zero, none = torch.zeros(1), torch.zeros(1)
    l_s = torch.tensor([-2.0], requires_grad=True)
    loss = binary_cross_entropy(zero, l_s, 100.0, none)
    assert loss.item() == pytest.approx(0.02) and float(torch.autograd.grad(loss.sum(), l_s)[0]) == pytest.approx(-0.01)
    both = torch.zeros(1, requires_grad=True)
    loss = binary_cross_entropy(zero, both, 100.0, none)
    assert loss.item() == 0 and torch.autograd.grad(loss.sum(), both)[0].isfinite().all()
    rounded = binary_cross_entropy(torch.tensor([9e-7]), l_s, 100.0, torch.tensor([1e-6]))
    assert rounded.item() == pytest.approx(0.02)
    with pytest.raises(ValueError, match="wanted at most 1e-6 per term"):
        binary_cross_entropy(torch.tensor([3e-6]), l_s, 100.0, torch.tensor([1e-6]))
    case = Case(0)
    case.gold_logp[1] = 5.0
    with pytest.raises(ValueError, match="wanted at most"):
        case.alm(debias=False)


def test_identical_tokenizers_have_chunks_of_one_token() -> None:
    case = Case(5, same=True)
    rows = len(case.left)
    assert chunks_of(case.alignment) == [([i], [i]) for i in range(rows)]
    case.gold_logp = gold_logp(case.logits, case.gold)
    case.space_logp = space_logp(case.logits, SPACE)
    logits = case.logits.requires_grad_()
    (grad,) = torch.autograd.grad(case.alm().sum(), logits)
    assert len(case.alm()) == rows and grad.abs().max() < 1e-12


def plain_merge(case: Case, gamma: float) -> list[tuple[list[int], list[int]]]:
    merged, run = [], ([], [])
    for rows_t, rows_s in chunks_of(case.alignment):
        is_end = case.left[rows_t[0]][1] == END
        gap = run[0] and (rows_t[0] != run[0][-1] + 1 or rows_s[0] != run[1][-1] + 1)
        if gap or is_end:
            run = ([], [])
        run = (run[0] + rows_t, run[1] + rows_s)
        behind_t, behind_s = rows_t[-1] + 1, rows_s[-1] + 1
        known = behind_t < len(case.left) and behind_s < len(case.right) and bool(case.known[behind_t])
        if is_end or (known and math.exp(case.space_logp[behind_t]) > gamma):
            merged.append(run)
            run = ([], [])
    return merged


@pytest.mark.parametrize("seed", range(20))
def test_merging_is_the_plain_loop_and_the_mean_is_over_merged_chunks(seed: int) -> None:
    case, rng = Case(seed, size=40), random.Random(seed)
    case.known[rng.randrange(len(case.left))] = False
    case.alignment = keep(case.alignment, torch.tensor([rng.random() < 0.9 for _ in case.alignment.is_end]))
    if seed % 3 == 0:  # cut short: no row behind the last chunk
        rows = len(case.right) - 1
        case.right, case.logits, case.gold = case.right[:rows], case.logits[:rows], case.gold[:rows]
        case.alignment = align(teacher(case.left), student(case.right))
    merged = merge_at_spaces(case.alignment, case.space_logp, case.known, len(case.right))
    want = plain_merge(case, 0.1)
    assert chunks_of(merged) == want
    loss = case.alm(alignment=merged)
    assert len(loss) == len(want)  # the denominator of the mean: no chunk is counted twice or merged twice
    torch.testing.assert_close(loss, plain_alm(case, case.logits, want, 100.0, True))
    again = merge_at_spaces(merged, case.space_logp, case.known, len(case.right))
    assert chunks_of(again) == want


@pytest.mark.parametrize("where", ["teacher", "student"])
def test_nothing_is_merged_over_a_special_of_one_side(where: str) -> None:
    plain: list[Token] = [(1, TEXT, True), (2, TEXT, True), (2, END, True)]
    broken: list[Token] = [plain[0], (1, CONTEXT, False), *plain[1:]]
    left, right = (broken, plain) if where == "teacher" else (plain, broken)
    alignment = align(teacher(left), student(right))
    assert len(alignment.is_end) == 3
    space_logp_T = torch.full((len(left),), -9.0)
    space_logp_T[-1] = -0.1  # certain behind the second chunk only
    merged = merge_at_spaces(alignment, space_logp_T, torch.ones(len(left), dtype=torch.bool), len(right))
    assert chunks_of(merged) == chunks_of(alignment)[1:]


def test_a_document_without_chunks_has_no_losses() -> None:
    case = Case(1)
    empty = keep(case.alignment, torch.zeros_like(case.alignment.is_end))
    assert len(case.alm(alignment=empty)) == 0
    assert len(merge_at_spaces(empty, case.space_logp, case.known, len(case.right)).is_end) == 0
    nothing = align(TokenSpans.teacher([], [], []), TokenSpans.student([], [], []))
    assert chunks_of(nothing) == []


def test_a_chunk_of_which_only_the_student_is_certain_spoils_no_other() -> None:
    l_S = torch.tensor([0.0, -2.0], requires_grad=True)
    loss = binary_cross_entropy(torch.tensor([-1.0, -1.0]), l_S, 100.0, torch.tensor([1e-6, 1e-6]))
    assert loss[0] == math.inf and loss[1].isfinite()
    loss[loss.isfinite()].mean().backward()
    assert l_S.grad is not None and l_S.grad.isfinite().all() and l_S.grad[0] == 0
