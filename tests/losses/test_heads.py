"""The byte head beside a double loop over tokens and bytes; which rows of bytes belong to a token."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from engine.losses.bytes_head import REACH, SYMBOLS, ByteHead, byte_loss, byte_rows
from engine.losses.chunked_head import chunked
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
    spelled = byte_rows(
        ints([99, 99]), *of_text(b"</s>", [4])[1:], end_id=99
    )  # its string as text, then the end itself
    assert [x.tolist() for x in spelled] == [[0, 4], [4, 1]]
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


def test_the_byte_kl_is_forward_kl_on_bytes() -> None:
    logits, _, _, byte_ids, ids, logp, tail = byte_case()
    one = byte_loss(logits[:1], ints([4]), ints([1]), byte_ids, ids, logp, tail, lambda_b=0.0, lambda_kl=1.0)
    torch.testing.assert_close(one, forward_kl(logits[0, :1], ids[4:5], logp[4:5], tail[4:5]))


def test_byte_rows_of_a_student_without_bpe() -> None:
    """docs/train.md, students without BPE: ends by the offsets that a Unigram tokenizer gives."""
    tokenizer = Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.2), ("ab", -1.1), ("é", -2.0)], 0, False))
    text = "abéab"
    own = tokenizer.encode(text)
    ends = torch.tensor([len(text[:stop].encode()) for _, stop in own.offsets])
    data = text.encode()
    byte_ids, byte_end = torch.tensor([*data, 256]), torch.tensor([*range(1, len(data) + 1), len(data)])
    first, length = byte_rows(torch.tensor(own.ids), ends, byte_ids, byte_end, end_id=None)
    assert first.tolist() == [0, 2, 4] and length.tolist() == [2, 2, 2]
