"""A loss of rows, from hidden states: the student's head and the loss run over chunks of rows, forward and backward.

Letters: R rows (positions that count, of any documents), r rows of one chunk, D hidden size, V student vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def chunked(
    loss: Callable[..., torch.Tensor],
    hidden_RD: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    *rows: torch.Tensor,
    rows_per_chunk: int = 256,
) -> torch.Tensor:
    """`loss(head(hidden_RD), *rows)` [R], the same values and gradients, without [R, V] as a whole.

    loss  takes logits [r, V] and the chunk of every tensor in `rows`; returns one number per row, [r], that depends on
          this row alone. What is not of rows goes in with functools.partial: `partial(jsd, beta=0.1)`
    head  [r, D] -> [r, V], such as a model's lm_head; its parameters get their gradients. It may be any function of
          hidden states, and V anything
    rows  tensors with R rows each

    Memory: nothing of width V outlives its chunk. The forward pass keeps hidden_RD and `rows` only (torch's checkpoint,
    not reentrant); the backward pass computes logits and loss of a chunk once more, then its gradients. So the peak is
    c * r * V * 4 bytes whatever R is, with c = 6.4 for losses with a tail and 3.1 for sampled_ce (counted over all tensors
    alive, with logits in float32 or bfloat16): 1.0 GB for 256 rows and V = 150,000. Beside it stand the gradient of the
    head's weight and one chunk's part of it. The price is one more pass through head and loss.

    Raises ValueError for rows_per_chunk below 1, and for tensors that do not have R rows.
    """
    if rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk {rows_per_chunk}: wanted a number >= 1")
    n = len(hidden_RD)
    if any(len(row) != n for row in rows):
        raise ValueError(f"{n} hidden states, beside tensors of {[len(row) for row in rows]} rows: wanted {n} in each")

    def of_chunk(hidden_rD: torch.Tensor, *part: torch.Tensor) -> torch.Tensor:
        return loss(head(hidden_rD), *part)

    losses = []
    for a in range(0, max(n, 1), rows_per_chunk):  # no rows: one empty chunk, so that the graph is there
        part = [tensor[a : a + rows_per_chunk] for tensor in (hidden_RD, *rows)]
        losses.append(checkpoint(of_chunk, *part, use_reentrant=False))
    return torch.cat(losses)
