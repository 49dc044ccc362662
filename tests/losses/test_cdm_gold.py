"""CDM and GOLD: beside plain twins over dictionaries of probabilities, and what must not change them.

Letters: T teacher rows, S student rows, V, W vocabularies of student and teacher, K stored tokens, G groups.
"""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.losses import cdm as cdm_module
from engine.losses import gold as gold_module
from engine.losses.align import NONE, TokenSpans, align
from engine.losses.cdm import cdm, mapped_tokens, weights
from engine.losses.gold import gold, matched_ids
from engine.losses.strings import cost_matrix, edit_distances, ids_of, warp

F64 = torch.float64


@functools.cache
def levenshtein(a: bytes, b: bytes) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0]))


def words(rng: random.Random, count: int, most: int = 5, alphabet: bytes = b"ab c") -> list[bytes]:
    return [bytes(rng.choices(alphabet, k=rng.randrange(most + 1))) for _ in range(count)]


def test_edit_distances_are_the_recursion() -> None:
    rng = random.Random(0)
    for _ in range(100):
        a, others = words(rng, 1, 7)[0], words(rng, rng.randrange(9), 7)
        assert edit_distances(a, others).tolist() == [levenshtein(a, other) for other in others]
    left, right = words(rng, 12), words(rng, 9)
    assert cost_matrix(left, right).tolist() == [[levenshtein(a, b) for b in right] for a in left]


def plain_warp(cost: list[list[int]]) -> list[tuple[int, int]]:
    """The cheapest path: the slow twin, cell by cell, with the path carried along."""
    best: dict[tuple[int, int], tuple[int, list[tuple[int, int]]]] = {}
    for i, row in enumerate(cost):
        for j, here in enumerate(row):
            befores = [best[at] for at in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if at in best]
            total, path = min(befores, key=lambda before: before[0]) if befores else (0, [])
            best[i, j] = total + here, [*path, (i, j)]
    return best[len(cost) - 1, len(cost[0]) - 1][1]


def test_warping_is_the_plain_table() -> None:
    rng, crowded = random.Random(1), 0
    for _ in range(400):
        shape = rng.randrange(1, 8), rng.randrange(1, 8)
        cost = np.array([[rng.randrange(4) for _ in range(shape[1])] for _ in range(shape[0])], np.int64)
        path = plain_warp(cost.tolist())
        group_t, group_s, group = [0] * shape[0], [0] * shape[1], 0
        for (i, j), before in zip(path, [(0, 0), *path], strict=False):
            group += i > before[0] and j > before[1]
            group_t[i], group_s[j] = group, group
        found = warp(cost)
        assert (found[0].tolist(), found[1].tolist()) == (group_t, group_s), cost
        crowded += group + 1 < min(shape)
    assert crowded > 0
    same = [b"a", b"bc", b"d", b"a"]
    assert warp(cost_matrix(same, same))[0].tolist() == [0, 1, 2, 3]


def test_weights_are_three_to_five_and_no_constant_entropy_is_nan() -> None:
    assert weights(torch.tensor([0.0, 1.0, 2.0])).tolist() == [3, 4, 5]
    assert weights(torch.tensor([1.7, 1.7])).tolist() == [3, 3] and weights(torch.tensor([0.4])).tolist() == [3]


# ---- documents ----


class Case:
    """A random document. Teacher and student vocabularies share some tokens; the last id of each is its end, b""."""

    def __init__(self, seed: int, k: int = 6, tokens: int = 15, dtype: torch.dtype = F64) -> None:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        every = sorted(
            {*words(rng, 60, 3), b"abcabc", b"abcabb", b"cbcbcb", b"cbcbca"} - {b""}, key=lambda w: (len(w), w)
        )
        single = [b"a", b"b", b" ", b"c"]
        self.teacher_bytes, self.student_bytes = (
            [*single, *rng.sample([w for w in every if w not in single], tokens - 5), b""] for _ in range(2)
        )
        text = bytes(rng.choices(b"ab c", k=12))
        self.ids_t, self.ends_t = self.encode(text, self.teacher_bytes, rng)
        self.ids_s, self.ends_s = self.encode(text, self.student_bytes, rng)
        self.dense = torch.log_softmax(3 * torch.randn(len(self.ids_t), tokens, dtype=dtype, generator=generator), 1)
        self.logits = 2 * torch.randn(len(self.ids_s), tokens, dtype=dtype, generator=generator)
        self.k, self.end = k, {tokens - 1: tokens - 1}
        self.logp, self.ids = torch.topk(self.dense, k, 1)
        self.tail = self.dense.scatter(1, self.ids, -torch.inf).logsumexp(1)
        self.gold_logp = self.dense.gather(1, torch.tensor(self.ids_t)[:, None]).squeeze(1)
        self.entropy = -(self.dense.exp() * self.dense).sum(1)

    @staticmethod
    def encode(text: bytes, vocabulary: list[bytes], rng: random.Random) -> tuple[list[int], list[int]]:
        at, ids, ends = 0, [], []
        while at < len(text):
            fitting = [i for i, w in enumerate(vocabulary) if w and text.startswith(w, at)]
            ids.append(rng.choice(fitting))
            at += len(vocabulary[ids[-1]])
            ends.append(at)
        return [*ids, len(vocabulary) - 1], [*ends, len(text)]

    def cdm(self, logits: Tensor | None = None) -> Tensor:
        rows = cdm_module.TeacherInputs(torch.tensor(self.ids_t), self.ids, self.logp, self.tail, self.entropy)
        z = self.logits if logits is None else logits
        tables = self.teacher_bytes, self.student_bytes, ids_of(self.student_bytes)
        return cdm(z, torch.tensor(self.ids_s), rows, *tables, self.end)

    def gold(self, logits: Tensor | None = None, **options) -> Tensor:
        rows = gold_module.TeacherInputs(torch.tensor(self.ids_t), self.ids, self.logp, self.tail, self.gold_logp)
        z = self.logits if logits is None else logits
        match = matched_ids(self.teacher_bytes, self.student_bytes, self.end)
        return gold(z, torch.tensor(self.ids_s), rows, match, self.alignment(), **options)

    def alignment(self):
        roles, flags = ([kind] * (len(ids) - 1) for kind, ids in ((0, self.ids_t), (1, self.ids_s)))
        left = TokenSpans.teacher(self.ends_t, [*roles, 2], [True] * len(self.ids_t))
        return align(left, TokenSpans.student(self.ends_s, [*flags, 16], [True] * len(self.ids_s)))


def plain_map(case: Case, q_t: dict[int, float], listed: list[int]) -> dict[int, int]:
    """Teacher id -> student id, the slow twin."""
    found = {}
    for i in q_t:
        same = [j for j, w in enumerate(case.student_bytes) if w and w == case.teacher_bytes[i]]
        if i in case.end or same:
            found[i] = case.end.get(i) if i in case.end else same[0]
    while True:
        pairs = [
            (levenshtein(a, b) / len(a + b), -q_t[i], listed.index(j), i, j)
            for i in q_t
            for j in listed
            if i not in found
            and j not in found.values()
            and (a := case.teacher_bytes[i])
            and (b := case.student_bytes[j])
        ]
        pairs = [pair for pair in pairs if pair[0] < 0.3]
        if not pairs:
            return found
        *_, i, j = min(pairs)
        found[i] = j


def plain_cdm(case: Case, logits: Tensor) -> tuple[Tensor, int]:
    """The slow twin; (loss per group, near pairs that were mapped)."""
    p = torch.softmax(logits, 1)
    entropy = [float(-(row * row.log()).sum()) for row in p.detach()]
    sides = []
    for values in (case.entropy.tolist(), entropy):
        low, high = min(values), max(values)
        sides.append([int(3 / (1 + math.exp(2 - 4 * (x - low) / (high - low))) + 3) for x in values])
    cost = [
        [
            levenshtein(case.teacher_bytes[i], case.student_bytes[j]) * f * g
            for j, g in zip(case.ids_s, sides[1], strict=True)
        ]
        for i, f in zip(case.ids_t, sides[0], strict=True)
    ]
    groups: list[tuple[set[int], set[int]]] = []
    for (i, j), before in zip(path := plain_warp(cost), [(-1, -1), *path], strict=False):
        if i > before[0] and j > before[1]:
            groups.append((set(), set()))
        groups[-1][0].add(i)
        groups[-1][1].add(j)
    losses, near = [], 0
    for rows_t, rows_s in groups:
        q_t: dict[int, float] = {}
        for row in sorted(rows_t):
            for i, logp in zip(case.ids[row].tolist(), case.logp[row].tolist(), strict=True):
                q_t[i] = q_t.get(i, 0.0) + math.exp(logp) / len(rows_t)
        mean = p[sorted(rows_s)].mean(0)
        mapping = plain_map(case, q_t, torch.topk(mean, case.k).indices.tolist())
        near += sum(case.teacher_bytes[i] != case.student_bytes[j] for i, j in mapping.items())
        q_s: dict[int, float] = {}
        for i, j in mapping.items():
            q_s[j] = q_s.get(j, 0.0) + q_t[i]
        loss = sum((q * (math.log(q) - mean[j].log()) for j, q in q_s.items()), torch.zeros((), dtype=F64))
        rest = 1 - sum(q_s.values())
        if rest > 1e-12:
            loss = loss + rest * (math.log(rest) - (1 - mean[list(q_s)].sum()).log())
        losses.append(loss)
    return torch.stack(losses), near


def test_cdm_is_the_plain_twin_with_gradients_to_the_student() -> None:
    near, merged = 0, 0
    for seed in range(40):
        case = Case(seed)
        logits = case.logits.requires_grad_()
        loss, (want, count) = case.cdm(), plain_cdm(case, logits)
        torch.testing.assert_close(loss, want)
        grads = [torch.autograd.grad(x.sum(), logits)[0] for x in (loss, want)]
        torch.testing.assert_close(*grads)
        assert (grads[0].abs().sum(1) > 0).any()  # the public code's student gets none
        near, merged = near + count, merged + (len(loss) < min(len(case.ids_t), len(case.ids_s)))
    assert near > 20 and merged > 5


def test_cdm_of_identical_models_is_zero_and_of_everything_stored_the_kl() -> None:
    case = Case(2, k=15)
    case.student_bytes, case.ids_s = case.teacher_bytes, case.ids_t
    case.logits = torch.randn(case.dense.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    case.entropy = torch.ones(len(case.ids_t), dtype=F64)  # constant: no NaN
    kl = (case.dense.exp() * (case.dense - torch.log_softmax(case.logits, 1))).sum(1)
    torch.testing.assert_close(case.cdm(), kl)
    case.logits = case.dense.clone().requires_grad_()
    assert case.cdm().abs().max() < 1e-12
    assert torch.autograd.grad(case.cdm().sum(), case.logits)[0].abs().max() < 1e-12
    constant = torch.zeros_like(case.dense).requires_grad_()  # constant entropy of the student
    (grad,) = torch.autograd.grad(case.cdm(constant).sum(), constant)
    assert case.cdm(constant).isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("method", ["cdm", "gold"])
def test_a_document_has_the_same_loss_in_any_company(method: str) -> None:
    cases = [Case(seed) for seed in range(8)]
    alone = [getattr(Case(seed), method)() for seed in range(8)]
    for order in (range(8), reversed(range(8)), (3, 3, 0, 7, 3)):
        for i in order:
            assert torch.equal(getattr(cases[i], method)(), alone[i])


def test_near_tokens_are_mapped_once_each_and_never_by_marks_of_space() -> None:
    teacher, student = [b"abcabc", b"a b", b"", b"zz"], [b"abcabb", b"abcab", b"ab", b"", b"yy"]
    found = mapped_tokens(
        ({0: 0.5, 1: 0.2, 2: 0.1, 3: 0.1}, 0.1), [0, 1, 2, 3, 4], teacher, student, ids_of(student), {}
    )
    assert found[0] == {0: 0.5, 2: 0.2} and found[1] == pytest.approx(0.3)  # 1 / 12, 1 / 11: both below; 1 / 5
    by_role = mapped_tokens(({2: 0.7}, 0.3), [3], teacher, student, ids_of(student), {2: 3})
    assert by_role == ({3: 0.7}, 0.3)
    unlike = cdm_module.TeacherInputs(
        *map(torch.tensor, ([3, 3], [[3], [3]], [[-math.log(2)], [-math.log(2)]], [-math.log(2)] * 2, [1.0, 2.0]))
    )
    unmapped = cdm(torch.zeros(2, 5), torch.tensor([4, 4]), unlike, teacher, student, ids_of(student))
    torch.testing.assert_close(unmapped, torch.zeros(2), atol=1e-6, rtol=0)  # all is rest on both sides
    empty = torch.zeros(0, 5, dtype=F64)
    rows = cdm_module.TeacherInputs(
        *(torch.zeros(0), torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0), torch.zeros(0))
    )
    assert len(cdm(empty, torch.zeros(0, dtype=torch.long), rows, teacher, student, {})) == 0


# ---- GOLD ----


def plain_gold(case: Case, logits: Tensor, beta: float, weight: tuple[float, float]) -> Tensor:
    """The slow twin: dictionaries of cells per group, and all ranks one by one."""
    p, alignment = torch.softmax(logits, 1), case.alignment()
    match = matched_ids(case.teacher_bytes, case.student_bytes, case.end).tolist()
    losses = []
    for g in range(len(alignment.is_end)):
        rows_t, rows_s = ([i for i, c in enumerate(side.tolist()) if c == g] for side in alignment[:2])
        t, s = rows_t[0], rows_s[0]
        group_t = math.exp(sum(float(case.gold_logp[i]) for i in rows_t))
        group_s = torch.stack([p[j, case.ids_s[j]] for j in rows_s]).prod()
        # whole distributions with the group's mass taken out of the first token
        dense_t = dict(enumerate(case.dense[t].exp().tolist()))
        dense_t[case.ids_t[t]] -= group_t
        dense_s = {j: p[s, j] - (group_s if j == case.ids_s[s] else 0) for j in range(p.shape[1])}
        listed = {*case.ids[t].tolist(), case.ids_t[t]}
        cells = [(dense_t[i], dense_s[match[i]]) for i in sorted(listed) if match[i] != NONE]
        cells.append((group_t, group_s))
        rest_s = 1 - torch.stack([b for _, b in cells]).sum()
        cells.append((1 - sum(a for a, _ in cells), rest_s))
        loss = torch.zeros((), dtype=F64)
        for a, b in cells:
            m = beta * a + (1 - beta) * b
            loss = loss + (beta * a * (a / m).log() if a > 1e-12 else 0)
            loss = loss + ((1 - beta) * b * (b / m).log() if b.item() > 1e-12 else 0)
        least = case.dense[t].exp().tolist()[int(case.ids[t, -1])]
        known = sorted(
            (q for i in listed if match[i] == NONE and (q := dense_t[i]) >= least and q > 1e-12), reverse=True
        )
        others = torch.stack([dense_s[j] for j in range(p.shape[1]) if j not in match])
        l1 = torch.zeros((), dtype=F64)
        for rank, q in enumerate(others.sort(descending=True).values[: case.k + 1]):
            l1 = l1 + ((q - known[rank]).abs() if rank < len(known) else torch.relu(q - least))
        l1 = l1 + sum(known[len(others) :])
        losses.append(weight[0] * loss + weight[1] * l1)
    return torch.stack(losses)


@pytest.mark.parametrize("weight", [None, (1.0, 0.0), (0.3, 1.0)])
@pytest.mark.parametrize("beta", [0.5, 0.2])
def test_gold_is_the_plain_twin(beta: float, weight: tuple[float, float] | None) -> None:
    crossed, outside = 0, 0
    for seed in range(20):
        case = Case(seed, k=4 + seed % 4)
        logits = case.logits.requires_grad_()
        match = matched_ids(case.teacher_bytes, case.student_bytes, case.end)
        share = float((match != NONE).double().mean())
        loss, want = case.gold(beta=beta, weights=weight), plain_gold(case, logits, beta, weight or (share, 1 - share))
        torch.testing.assert_close(loss, want, rtol=1e-6, atol=1e-9)
        grads = [torch.autograd.grad(x.sum(), logits)[0] for x in (loss, want)]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)
        crossed += len(loss) < min(len(case.ids_t), len(case.ids_s))
        outside += sum(i not in ids for i, ids in zip(case.ids_t, case.ids.tolist(), strict=True))
    assert crossed > 5 and outside > 20


def test_gold_of_one_vocabulary_with_everything_stored_is_the_dense_divergence() -> None:
    case = Case(4, k=15)
    case.student_bytes, case.ids_s, case.ends_s = case.teacher_bytes, case.ids_t, case.ends_t
    logits = torch.randn(case.dense.shape, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t, s = case.dense.exp(), torch.softmax(logits, 1)
    m = (t + s) / 2
    want = 0.5 * ((t * (t / m).log()).sum(1) + (s * (s / m).log()).sum(1))
    torch.testing.assert_close(case.gold(logits), want)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits)[0] for x in (case.gold(logits), want)))


def test_the_rest_cell_lets_the_right_student_rest() -> None:
    """The student that agrees with the teacher has no gradient, however few tokens are stored or matched. Without the rest
    cell every token outside the matched ones would be pushed down."""
    case = Case(5, k=3)
    case.student_bytes, case.ids_s, case.ends_s = case.teacher_bytes, case.ids_t, case.ends_t
    logits = case.dense.clone().requires_grad_()
    loss = case.gold(logits, weights=(1.0, 0.0))
    assert loss.abs().max() < 1e-9 and torch.autograd.grad(loss.sum(), logits)[0].abs().max() < 1e-9


def test_what_gold_refuses() -> None:
    case = Case(6, k=3)
    row = next(i for i, ids in enumerate(case.ids.tolist()) if case.ids_t[i] not in ids)
    case.gold_logp[row] = case.tail[row] + 0.1
    case.ids_s, case.ends_s, case.student_bytes = case.ids_t, case.ends_t, case.teacher_bytes
    case.logits = torch.zeros_like(case.dense)
    with pytest.raises(ValueError, match="nats above what it is part of"):
        case.gold()
    rows = gold_module.TeacherInputs(torch.tensor(case.ids_t), case.ids, case.logp, case.tail, case.gold_logp)
    with pytest.raises(ValueError, match="2 tokens are matched to 1 student ids"):
        gold(case.logits, torch.tensor(case.ids_s), rows, torch.tensor([3, 3, NONE]), case.alignment())


def test_a_document_without_groups_has_no_losses() -> None:
    case = Case(7)
    case.ends_s = [100 + i for i in range(len(case.ends_s))]  # no boundary in common
    loss = case.gold(case.logits.requires_grad_())
    assert len(loss) == 0 and loss.sum().requires_grad


def test_float32_losses_are_near_those_of_float64() -> None:
    for seed in range(6):
        case, single = Case(seed), Case(seed, dtype=torch.float32)
        for name in ("dense", "logits", "logp", "tail", "gold_logp", "entropy"):
            setattr(single, name, getattr(case, name).float())
        single.ids = case.ids
        torch.testing.assert_close(single.cdm().double(), case.cdm(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single.gold().double(), case.gold(), rtol=1e-4, atol=1e-5)
