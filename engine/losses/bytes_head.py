"""A byte head beside the student's own, taught by the teacher's next-byte distributions, and thrown away afterwards.

Source: BLD, arXiv 2604.07466. Its own teacher rows are marginals along one segmentation or a beam; the product `bytes` of
a run is the exact marginal.

Letters: R rows (student tokens that count), S tokens of a student's document, N rows of its product `bytes`, J bytes of a
token that are taught, K stored symbols of a byte row, D hidden size, P pairs of a token and one of its bytes. Symbols are
0..255 and 256, the end of the text.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from .sparse import forward_kl

SYMBOLS = 257
REACH = 10


class ByteHead(torch.nn.Module):
    """`reach` linear maps side by side: the hidden state that predicts a token -> logits of the token's first bytes.

    [.., D] -> [.., reach, 257]. Byte j is predicted without seeing bytes 0..j-1 of its token, so that where those leave
    a choice the divergence from the teacher's row has a least value above 0.
    """

    def __init__(self, hidden_size: int, reach: int = REACH) -> None:
        super().__init__()
        self.reach = reach
        self.maps = torch.nn.Linear(hidden_size, reach * SYMBOLS)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.maps(hidden).unflatten(-1, (self.reach, SYMBOLS))


def byte_loss(
    logits_RJB: torch.Tensor,
    first_R: torch.Tensor,
    length_R: torch.Tensor,
    byte_ids_N: torch.Tensor,
    ids_NK: torch.Tensor,
    logp_NK: torch.Tensor,
    tail_logp_N: torch.Tensor,
    lambda_b: float = 1.0,
    lambda_kl: float = 0.1,
) -> torch.Tensor:
    """lambda_b sum_j CE(byte_j) + lambda_kl sum_j KL(teacher's row of byte_j || head j), j < min(length, J): [R], nats.

    Equation 5 of arXiv 2604.07466 without its first term, the student's own cross-entropy on the token, which the caller
    adds with weight 1. Bytes beyond the J-th are not taught; a token of length 0 has loss 0. The KL is forward_kl: over
    the K stored symbols and their tail.

    logits_RJB [R, J, 257] float, of ByteHead, computed in float32 (float64 stays)
    first_R, length_R int64, of byte_rows: the token's rows in the product `bytes`, which `byte_ids_N` (its token_ids) and
    the stored ids_NK, logp_NK (-inf: padding), tail_logp_N are. The rows may be those of several documents put together,
    with first_R counted accordingly. A byte row that is not scored counts in the CE, and in the KL as 0.

    Select tokens with the mask first. With chunked: `partial(byte_loss, byte_ids_N=..., ids_NK=...)` and first_R, length_R
    as its rows.
    """
    reach = logits_RJB.shape[1]
    place_J = torch.arange(reach, device=logits_RJB.device)
    token_P, place_P = (place_J < length_R[:, None]).nonzero(as_tuple=True)
    row_P = first_R[token_P] + place_P
    logits_PB = logits_RJB[token_P, place_P]
    logits_PB = logits_PB if logits_PB.dtype == torch.float64 else logits_PB.float()
    ce_P = cross_entropy(logits_PB, byte_ids_N[row_P], reduction="none")
    kl_P = forward_kl(logits_PB, ids_NK[row_P], logp_NK[row_P], tail_logp_N[row_P])
    return logits_PB.new_zeros(len(first_R)).index_add(0, token_P, lambda_b * ce_P + lambda_kl * kl_P)


def byte_rows(
    token_ids_S: torch.Tensor,
    byte_end_S: torch.Tensor,
    byte_ids_N: torch.Tensor,
    byte_end_N: torch.Tensor,
    end_id: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(first_S, length_S) int64: byte n of token s is row first + n of the product `bytes` of the same document.

    A token of bytes has one row for each. The student's end token (`end_id`) has one row, the 256 that ends where it
    ends: the last row of a text, the row behind a scored content in a conversation. All other tokens have length 0:
    tokens without bytes (of a template, or a lone space before a text), or over white space that a template strips, with
    a 256 in between; ends where the bytes have none or several (of empty contents); specials that end a text, where they
    are not `end_id`.

    All arguments int64 of one document, without padding: token_ids and byte_end of the student, and of `bytes`. Raises
    ValueError where the tokens reach beyond the last byte row: cut the tokens of a document whose bytes are cut.
    """
    device, byte_N = byte_ids_N.device, byte_ids_N < 256
    size = int(byte_end_N[-1]) if len(byte_end_N) else 0
    if len(byte_end_S) and int(byte_end_S[-1]) > size:
        raise ValueError(f"the tokens end at byte {int(byte_end_S[-1])}, the byte rows at byte {size}: cut the tokens")
    row_at = torch.full(
        (size + 1,), -1, device=device
    )  # row of each byte of the text; one place more, for empty tokens
    row_at[byte_end_N[byte_N] - 1] = byte_N.nonzero()[:, 0]
    known = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), (row_at >= 0).cumsum(0)])
    start_S = torch.cat([torch.zeros_like(byte_end_S[:1]), byte_end_S[:-1]])
    length_S = known[byte_end_S] - known[start_S]
    first_S = torch.where(length_S > 0, row_at[start_S], 0)
    last_S = torch.where(length_S > 0, row_at[byte_end_S - 1], -1)
    whole_S = (length_S == byte_end_S - start_S) & (last_S - first_S + 1 == length_S)
    first_S, length_S = torch.where(whole_S, first_S, 0), torch.where(whole_S, length_S, 0)
    end_rows = (~byte_N).nonzero()[:, 0]
    end_at = byte_end_N[end_rows]
    before_S, after_S = (torch.searchsorted(end_at, byte_end_S, right=right) for right in (False, True))
    is_end_S = (length_S == 0) & (after_S - before_S == 1)
    is_end_S &= token_ids_S == (-1 if end_id is None else end_id)
    end_rows = torch.cat([end_rows, end_rows.new_zeros(1)])
    return torch.where(is_end_S, end_rows[before_S], first_S), torch.where(is_end_S, 1, length_S)
