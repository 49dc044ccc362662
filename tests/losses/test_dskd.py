"""DSKD beside loops over single tokens; where gradients go; rows that do not count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from engine.losses.dskd import DSKD, ModelStates, Terms

F64 = torch.float64
d, D, V_S, V_T = 4, 6, 11, 13


def dskd_case(s: int = 5, t: int = 7, seed: int = 0) -> tuple[DSKD, ModelStates, ModelStates, torch.Tensor]:
    """float64. A student whose rows 0 and 3 do not count, a teacher whose row 2 does not; everything asks for a gradient."""
    torch.manual_seed(seed)

    def side(length: int, size: int, vocabulary: int, off: list[int]) -> ModelStates:
        mask = torch.ones(length, dtype=torch.bool)
        mask[off] = False
        tokens = torch.randint(vocabulary, (2, length))
        hidden, embedding, head = (
            torch.randn(n, size, dtype=F64, requires_grad=True) for n in (length, vocabulary, vocabulary)
        )
        return ModelStates(hidden, tokens[0], tokens[1], mask, embedding, head)

    module = DSKD(d, D, std_h=1.5, std_e=0.25).double()
    student, teacher = side(s, d, V_S, [0, 3]), side(t, D, V_T, [2])
    logits = torch.randn(s, V_S, dtype=F64, requires_grad=True)
    return module, student, teacher, logits


def agreeing(module: DSKD, student: ModelStates, teacher: ModelStates, logits: torch.Tensor) -> ModelStates:
    """The student with two of its own tokens set to what the projected teacher finds likeliest: a mask that is mixed."""
    for row in (1, 4):  # each changes its own query too, so that it takes some rounds
        for token in range(V_S):
            tokens = student.token_ids_L.clone()
            tokens[row] = token
            tried = replace(student, token_ids_L=tokens)
            at = int(tried.mask_L[:row].sum())
            if module(tried, teacher, logits).agreed_S[at]:
                student = tried
                break
    return student


def loops(module: DSKD, student: ModelStates, teacher: ModelStates, logits: torch.Tensor, temperature: float) -> Terms:
    """One student token and one teacher token at a time."""
    rows_s = [i for i in range(len(student.mask_L)) if student.mask_L[i]]
    rows_t = [j for j in range(len(teacher.mask_L)) if teacher.mask_L[j]]
    score, value_t, value_s = {}, {}, {}
    for i in rows_s:
        pair = torch.cat([student.embedding_VE[student.input_ids_L[i]], student.embedding_VE[student.token_ids_L[i]]])
        q = module.query.weight @ pair.detach() + module.query.bias
        value_s[i] = module.s2t.weight @ student.hidden_LE[i] + module.s2t.bias
        for j in rows_t:
            e_in, e_out = (teacher.embedding_VE[ids[j]].detach() for ids in (teacher.input_ids_L, teacher.token_ids_L))
            score[i, j] = sum(q * torch.cat([e_in, e_out]) / 0.25) / math.sqrt(2 * D)
            value_t[j] = module.t2s.weight @ (teacher.hidden_LE[j].detach() / 1.5 + e_out / 0.25) + module.t2s.bias

    def kl(target: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        p, q = (target / temperature).softmax(0), (own / temperature).softmax(0)
        return (p * (p / q).log()).sum()

    ce, kd, agreed, back = [], [], [], []
    for i in rows_s:
        weights = torch.stack([score[i, j] for j in rows_t]).exp()
        mixed = sum(
            (w * value_t[j] for w, j in zip(weights / weights.sum(), rows_t, strict=True)), torch.zeros(d, dtype=F64)
        )
        seen = student.head_VE.detach() @ mixed
        gold = int(student.token_ids_L[i])
        ce.append(-seen.softmax(0)[gold].log())
        agreed.append(int(seen.argmax()) == gold)
        kd.append(kl(seen.detach(), logits[i]) * agreed[-1])
    for j in rows_t:
        weights = torch.stack([score[i, j] for i in rows_s]).exp()
        mixed = sum(
            (w * value_s[i] for w, i in zip(weights / weights.sum(), rows_s, strict=True)), torch.zeros(D, dtype=F64)
        )
        head = teacher.head_VE.detach()
        back.append(kl(head @ teacher.hidden_LE[j].detach(), head @ mixed))
    return Terms(torch.stack(ce), torch.stack(kd), torch.stack(back), torch.tensor(agreed))


def leaves(module: DSKD, student: ModelStates, teacher: ModelStates, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    sides = {
        f"{name}.{part}": getattr(side, part)
        for name, side in (("student", student), ("teacher", teacher))
        for part in ("hidden_LE", "embedding_VE", "head_VE")
    }
    return {**dict(module.named_parameters()), **sides, "logits": logits}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_dskd_is_its_loops(seed: int, temperature: float) -> None:
    module, student, teacher, logits = dskd_case(seed=seed)
    student = agreeing(module, student, teacher, logits)
    found = module(student, teacher, logits, temperature=temperature, rows_per_chunk=2)
    wanted = loops(module, student, teacher, logits, temperature)
    assert torch.equal(found.agreed_S, wanted.agreed_S)
    sources = leaves(module, student, teacher, logits)
    for a, b in zip(found[:3], wanted[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        grads = [
            torch.autograd.grad(x.sum(), list(sources.values()), allow_unused=True, retain_graph=True) for x in (a, b)
        ]
        for x, y in zip(*grads, strict=True):
            x, y = (torch.zeros(()) if z is None or not z.any() else z for z in (x, y))
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


def test_the_cases_have_rows_that_agree_and_rows_that_do_not() -> None:
    agreed = []
    for seed in (0, 1):
        module, student, teacher, logits = dskd_case(seed=seed)
        agreed.append(module(agreeing(module, student, teacher, logits), teacher, logits).agreed_S)
    assert torch.cat(agreed).any() and not torch.cat(agreed).all()


def test_gradients_flow_where_they_should_and_nowhere_else() -> None:
    for seed in (0, 1):
        module, student, teacher, logits = dskd_case(seed=seed)
        student = agreeing(module, student, teacher, logits)
        terms, sources = module(student, teacher, logits), leaves(module, student, teacher, logits)
        wanted = {
            "t2s_ce_S": {"query.weight", "query.bias", "t2s.weight", "t2s.bias"},
            "t2s_kd_S": {"logits"},
            "s2t_kd_T": {"query.weight", "query.bias", "s2t.weight", "s2t.bias", "student.hidden_LE"},
        }
        for name, where in wanted.items():
            if name == "t2s_kd_S" and not terms.agreed_S.any():
                continue
            grads = torch.autograd.grad(
                getattr(terms, name).sum(), list(sources.values()), allow_unused=True, retain_graph=True
            )
            found = {key for key, grad in zip(sources, grads, strict=True) if grad is not None and grad.any()}
            assert found == where


def test_dskd_gradcheck() -> None:
    module, student, teacher, logits = dskd_case()

    def run(hidden: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        terms = torch.func.functional_call(module, named, (replace(student, hidden_LE=hidden), teacher, logits))
        return terms.t2s_ce_S, terms.s2t_kd_T

    assert gradcheck(run, (student.hidden_LE, *module.parameters()))
    student = agreeing(module, student, teacher, logits)
    assert module(student, teacher, logits).agreed_S.any()
    assert gradcheck(lambda own: module(student, teacher, own).t2s_kd_S, (logits,))


def test_rows_that_do_not_count_do_nothing() -> None:
    """Other values there, more of them, and all rows in another order: the same terms."""
    module, student, teacher, logits = dskd_case()
    before = module(student, teacher, logits)

    def moved(side: ModelStates, order: torch.Tensor, pad: int) -> ModelStates:
        def padded(rows: torch.Tensor, fill: float) -> torch.Tensor:
            rows = rows.detach().clone()
            rows[~side.mask_L] = fill
            return torch.cat([rows, torch.full((pad, *rows.shape[1:]), fill, dtype=rows.dtype)])[order]

        return replace(
            side,
            hidden_LE=padded(side.hidden_LE, math.nan),
            input_ids_L=padded(side.input_ids_L, 3),
            token_ids_L=padded(side.token_ids_L, 5),
            mask_L=padded(side.mask_L, False),
        )

    order_s, order_t = torch.randperm(5 + 2), torch.randperm(7 + 3)
    student_2, teacher_2 = moved(student, order_s, 2), moved(teacher, order_t, 3)
    own = torch.cat([logits, torch.full((2, V_S), math.nan, dtype=F64)])[order_s]
    after = module(student_2, teacher_2, own)
    for old, new, side, side_2, order in (
        (before.t2s_ce_S, after.t2s_ce_S, student, student_2, order_s),
        (before.t2s_kd_S, after.t2s_kd_S, student, student_2, order_s),
        (before.s2t_kd_T, after.s2t_kd_T, teacher, teacher_2, order_t),
    ):
        place = {int(row): i for i, row in enumerate(side.mask_L.nonzero()[:, 0])}
        rank = [place[int(row)] for row in order[side_2.mask_L]]
        torch.testing.assert_close(new, old[rank], rtol=1e-12, atol=1e-12)


def test_a_teacher_that_is_the_student_is_at_its_best() -> None:
    """Identity projections and an attention that finds its own row: KL to the teacher 0; so is KL(t2s || student)."""
    torch.manual_seed(3)
    embedding = torch.eye(5, dtype=F64) * 40
    tokens = torch.arange(5)
    hidden = torch.eye(5, dtype=F64)[tokens] * 3
    side = ModelStates(hidden, tokens, tokens, torch.ones(5, dtype=torch.bool), embedding, torch.eye(5, dtype=F64))
    module = DSKD(5, 5, std_h=1.0, std_e=1.0).double()
    with torch.no_grad():
        for linear in (module.query, module.t2s, module.s2t):
            torch.nn.init.eye_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
    terms = module(side, side, hidden + tokens.new_zeros(5)[:, None] + embedding)
    for term in terms[:3]:
        torch.testing.assert_close(term, torch.zeros(5, dtype=F64), rtol=0, atol=1e-9)
    assert terms.agreed_S.all()


def test_dskd_takes_stored_half_precision() -> None:
    module, student, teacher, logits = dskd_case()
    module = module.float()
    stored = replace(
        teacher,
        **{part: getattr(teacher, part).detach().bfloat16() for part in ("hidden_LE", "embedding_VE", "head_VE")},
    )
    own = replace(
        student, **{part: getattr(student, part).float() for part in ("hidden_LE", "embedding_VE", "head_VE")}
    )
    terms = module(own, stored, logits.float())
    assert {term.dtype for term in terms[:3]} == {torch.float32}
    exact = module(own, replace(stored, head_VE=stored.head_VE.float()), logits.float())
    torch.testing.assert_close(terms.s2t_kd_T, exact.s2t_kd_T, rtol=0.1, atol=0.1)  # logits of bfloat16
    torch.testing.assert_close(terms.t2s_ce_S, exact.t2s_ce_S)
    assert torch.cat(terms[:3]).isfinite().all()


def test_constants_and_rows_that_cannot_be() -> None:
    for std_h, std_e in ((0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="std_h"):
            DSKD(d, D, std_h, std_e)
    module, student, teacher, logits = dskd_case()
    with pytest.raises(ValueError, match="3 rows of student|\\(0, 6\\)"):
        module(replace(student, mask_L=torch.zeros(5, dtype=torch.bool)), teacher, logits)
    with pytest.raises(ValueError, match="temperature 0"):
        module(student, teacher, logits, temperature=0.0)
    assert set(module.state_dict()) >= {"std_h", "std_e"}


def test_logits_are_those_of_a_model_with_bias_scale_and_soft_cap() -> None:
    module, student, teacher, logits = dskd_case()
    bias = torch.randn(V_T, dtype=F64)
    bent = replace(teacher, bias_V=bias, scale=0.5, softcap=3.0)
    want = 3 * torch.tanh((teacher.hidden_LE @ teacher.head_VE.T + bias) * 0.5 / 3)
    torch.testing.assert_close(bent.logits(teacher.hidden_LE), want)
    plain, terms = module(student, teacher, logits), module(student, bent, logits)
    torch.testing.assert_close(terms.t2s_ce_S, plain.t2s_ce_S)
    assert not torch.allclose(terms.s2t_kd_T, plain.s2t_kd_T)
