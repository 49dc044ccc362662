"""The byte head and DSKD beside loops over single tokens; where gradients go; which rows of bytes belong to a token."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from engine.losses.bytes_head import REACH, SYMBOLS, ByteHead, byte_loss, byte_rows
from engine.losses.chunks import chunked
from engine.losses.dskd import DSKD, Side, Terms
from engine.losses.sparse import forward_kl

END = 256
F64 = torch.float64


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


# ---- which rows of bytes belong to a token ----


def of_text(text: bytes, lengths: list[int], end_id: int = 99) -> tuple[torch.Tensor, ...]:
    """A text whose tokens have these lengths, with its end on both sides."""
    assert sum(lengths) == len(text)
    ends = torch.cat([ints(lengths).cumsum(0), ints([len(text)])])
    byte_end = [*range(1, len(text) + 1), len(text)]
    return ints([*range(len(lengths)), end_id]), ends, ints([*text, END]), ints(byte_end)


def test_bytes_of_a_text() -> None:
    first, length = byte_rows(*of_text(b"ab cde!", [2, 4, 1]), end_id=99)
    assert first.tolist() == [0, 2, 6, 7] and length.tolist() == [2, 4, 1, 1]
    first, length = byte_rows(*of_text(b"", []), end_id=99)
    assert first.tolist() == [0] and length.tolist() == [1]
    assert byte_rows(*of_text(b"abc", [3]), end_id=None)[1].tolist() == [3, 0]  # a student without an end


def test_bytes_without_an_end_and_tokens_cut_short() -> None:
    ids, ends, byte_ids, byte_end = of_text(b"abcdef", [2, 2, 2])
    first, length = byte_rows(ids, ends, byte_ids[:-1], byte_end[:-1], end_id=99)
    assert length.tolist() == [2, 2, 2, 0]
    first, length = byte_rows(ids[:2], ends[:2], byte_ids, byte_end, end_id=99)
    assert first.tolist() == [0, 2] and length.tolist() == [2, 2]
    assert byte_rows(ids[:1], ends[:1], byte_ids[:2], byte_end[:2], end_id=99)[1].tolist() == [2]
    with pytest.raises(ValueError, match="tokens end at byte 6, the byte rows at byte 4"):
        byte_rows(ids, ends, byte_ids[:4], byte_end[:4], end_id=99)


def test_bytes_of_a_conversation() -> None:
    """Contents "hi" (context), "yes " (scored, its space stripped by the template, so behind the 256), "" and "" (both
    scored: two ends at one byte, that no token can be told from). Template tokens are 50 and 51; 99 ends each turn."""
    byte_ids = ints([*b"hi", *b"yes", END, *b" ", END, END])
    byte_end = ints([1, 2, 3, 4, 5, 5, 6, 6, 6])
    #       header hi  eot  header  ye  s  eot  header(+space)  eot  header  eot
    ids = ints([50, 0, 99, 50, 1, 2, 99, 51, 99, 50, 99])
    end = ints([0, 2, 2, 2, 4, 5, 5, 6, 6, 6, 6])
    first, length = byte_rows(ids, end, byte_ids, byte_end, end_id=99)
    assert length.tolist() == [0, 2, 0, 0, 2, 1, 1, 1, 0, 0, 0]
    assert first.tolist() == [0, 0, 0, 0, 2, 4, 5, 6, 0, 0, 0]
    over = byte_rows(ints([0, 1]), ints([4, 6]), byte_ids, byte_end, end_id=99)  # "s" and the space: a 256 between them
    assert over[1].tolist() == [4, 0]


def test_bytes_of_a_special_that_ends_a_text() -> None:
    """The special's string (here 5 bytes) has one byte row, its 256."""
    byte_ids, byte_end = ints([*b"ab", END, *b"cd", END]), ints([1, 2, 7, 8, 9, 9])
    first, length = byte_rows(ints([0, 99, 1, 99]), ints([2, 7, 9, 9]), byte_ids, byte_end, end_id=99)
    assert first.tolist() == [0, 2, 3, 5] and length.tolist() == [2, 1, 2, 1]
    assert byte_rows(ints([0, 98]), ints([2, 7]), byte_ids, byte_end, end_id=99)[1].tolist() == [2, 0]


def test_every_byte_has_one_token_on_random_cuts() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        lengths = torch.randint(1, 15, (8,), generator=draw).tolist()
        text = bytes(torch.randint(0, 256, (sum(lengths),), generator=draw).tolist())
        document = of_text(text, lengths)
        first, length = byte_rows(*document, end_id=99)
        rows = [int(a) + j for a, n in zip(first, length, strict=True) for j in range(int(n))]
        assert rows == list(range(len(text) + 1))
        assert bytes(document[2][rows[:-1]].tolist()) == text


# ---- the byte head ----


def byte_case(k: int = 3) -> tuple[torch.Tensor, ...]:
    """(logits [R, J, 257], first, length, byte ids, ids, logps, tail): tokens of 2, 12, 1 and 0 bytes and an end."""
    draw = torch.Generator().manual_seed(1)
    n = 16
    teacher = torch.randn(n, SYMBOLS, dtype=F64, generator=draw).mul(2).softmax(1)
    best = teacher.topk(k, dim=1)
    ids, logp = best.indices.clone(), best.values.log()
    logp[4, 1:], ids[4, 1:] = -math.inf, 0  # padding
    tail = teacher.scatter(1, ids.masked_fill(logp == -math.inf, int(ids[4, 0])), 0.0)
    tail = torch.stack([teacher[r].sum() - logp[r].exp().sum() for r in range(n)]).log()
    logp[9], ids[9], tail[9] = -math.inf, 0, 0.0  # unscored
    byte_ids = torch.randint(0, 256, (n,), generator=draw)
    byte_ids[15] = END
    logits = torch.randn(5, REACH, SYMBOLS, dtype=F64, generator=draw).requires_grad_()
    return logits, ints([0, 2, 14, 0, 15]), ints([2, 12, 1, 0, 1]), byte_ids, ids, logp, tail


@pytest.mark.parametrize("weights", [(1.0, 0.1), (0.5, 2.0), (0.0, 1.0)])
def test_byte_loss_is_its_double_loop(weights: tuple[float, float]) -> None:
    logits, first, length, byte_ids, ids, logp, tail = byte_case()
    wanted = []
    for r in range(5):
        total = torch.zeros((), dtype=F64)
        for j in range(min(int(length[r]), 10)):
            n = int(first[r]) + j
            student = logits[r, j].log_softmax(0)
            total = total - weights[0] * student[byte_ids[n]]
            kept = [(int(i), p) for i, p in zip(ids[n], logp[n], strict=True) if p > -math.inf]
            rest = [v for v in range(SYMBOLS) if v not in {i for i, _ in kept}]
            for i, p in kept:
                total = total + weights[1] * p.exp() * (p - student[i])
            total = total + weights[1] * tail[n].exp() * (tail[n] - student[rest].exp().sum().log())
        wanted.append(total)
    found = byte_loss(logits, first, length, byte_ids, ids, logp, tail, *weights)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-12, atol=1e-12)
    (found_grad,) = torch.autograd.grad(found.sum(), logits)
    (wanted_grad,) = torch.autograd.grad(torch.stack(wanted).sum(), logits)
    torch.testing.assert_close(found_grad, wanted_grad, rtol=1e-12, atol=1e-12)
    assert found[3] == 0 and (found[[0, 1, 2, 4]] > 0).all()


def test_bytes_beyond_the_tenth_are_not_taught() -> None:
    logits, first, length, *product = byte_case()
    byte_ids, ids, logp, tail = product
    value = byte_loss(logits, first, length, byte_ids, ids, logp, tail)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert ((grad != 0).any(2).sum(1) == length.clamp(max=10)).all()
    changed = byte_ids.clone()
    changed[12:14] = (changed[12:14] + 1) % 256  # bytes 10 and 11 of the token of 12
    assert torch.equal(byte_loss(logits, first, length, changed, ids, logp, tail), value)


def test_byte_head_reads_one_hidden_state_per_token_and_runs_in_chunks() -> None:
    _, first, length, byte_ids, ids, logp, tail = byte_case()
    torch.manual_seed(2)
    head = ByteHead(6).double()
    hidden = torch.randn(5, 6, dtype=F64, requires_grad=True)
    logits = head(hidden)
    assert logits.shape == (5, 10, 257)
    byte_3 = hidden @ head.maps.weight[3 * 257 : 4 * 257].T + head.maps.bias[3 * 257 : 4 * 257]
    torch.testing.assert_close(logits[:, 3], byte_3)
    loss = partial(byte_loss, byte_ids_N=byte_ids, ids_NK=ids, logp_NK=logp, tail_logp_N=tail)
    whole, parts = loss(logits, first, length), chunked(loss, hidden, head, first, length, rows_per_chunk=2)
    torch.testing.assert_close(parts, whole)
    sources = (hidden, *head.parameters())
    for a, b in zip(torch.autograd.grad(parts.sum(), sources), torch.autograd.grad(whole.sum(), sources), strict=True):
        torch.testing.assert_close(a, b)


def test_byte_loss_in_half_precision_and_with_extreme_logits() -> None:
    logits, first, length, byte_ids, ids, logp, tail = byte_case()
    rows = byte_ids, ids, logp.float(), tail.float()
    half = logits.detach().to(torch.bfloat16)
    value = byte_loss(half, first, length, *rows)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, byte_loss(half.float(), first, length, *rows), rtol=0, atol=0)
    huge = (logits.detach().float() * 1000).requires_grad_()
    value = byte_loss(huge, first, length, *rows)
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), huge)[0].isfinite().all()


# ---- DSKD ----

d, D, V_S, V_T = 4, 6, 11, 13


def dskd_case(s: int = 5, t: int = 7, seed: int = 0) -> tuple[DSKD, Side, Side, torch.Tensor]:
    """float64. A student whose rows 0 and 3 do not count, a teacher whose row 2 does not; everything asks for a gradient."""
    torch.manual_seed(seed)

    def side(length: int, size: int, vocabulary: int, off: list[int]) -> Side:
        mask = torch.ones(length, dtype=torch.bool)
        mask[off] = False
        tokens = torch.randint(vocabulary, (2, length))
        hidden, embedding, head = (
            torch.randn(n, size, dtype=F64, requires_grad=True) for n in (length, vocabulary, vocabulary)
        )
        return Side(hidden, tokens[0], tokens[1], mask, embedding, head)

    module = DSKD(d, D, std_h=1.5, std_e=0.25).double()
    student, teacher = side(s, d, V_S, [0, 3]), side(t, D, V_T, [2])
    logits = torch.randn(s, V_S, dtype=F64, requires_grad=True)
    return module, student, teacher, logits


def agreeing(module: DSKD, student: Side, teacher: Side, logits: torch.Tensor) -> Side:
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


def loops(module: DSKD, student: Side, teacher: Side, logits: torch.Tensor, temperature: float) -> Terms:
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


def leaves(module: DSKD, student: Side, teacher: Side, logits: torch.Tensor) -> dict[str, torch.Tensor]:
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

    def moved(side: Side, order: torch.Tensor, pad: int) -> Side:
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
    tokens = ints([0, 1, 2, 3, 4])
    hidden = torch.eye(5, dtype=F64)[tokens] * 3
    side = Side(hidden, tokens, tokens, torch.ones(5, dtype=torch.bool), embedding, torch.eye(5, dtype=F64))
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


def test_the_byte_kl_is_forward_kl_on_bytes() -> None:
    logits, _, _, byte_ids, ids, logp, tail = byte_case()
    one = byte_loss(logits[:1], ints([4]), ints([1]), byte_ids, ids, logp, tail, lambda_b=0.0, lambda_kl=1.0)
    torch.testing.assert_close(one, forward_kl(logits[0, :1], ids[4:5], logp[4:5], tail[4:5]))
