"""What each token of a packed tree may attend to, as the attention mask that an architecture takes.

In: the intervals and depths of packed trees (engine/teacher/packing.py). Out: a mask, or one for each kind of layer.

Lemma 8: a node's hidden state is that of the last token of its context scored alone, if it attends to exactly the tokens of
that context, in the same relative positions. Full attention: ancestors and self. Sliding attention: those of them that are
less than `window` tokens away by depth, because on the path from the root depth is the place in the sequence, and transformers
cuts plain sequences so (a key is seen while query - key < window).

Letters: B rows, N places of a row, M query places (the last M of N).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask

from engine.teacher.packing import intervals


@dataclass(frozen=True, slots=True)
class Masking:
    """Which masks a model takes. window: tokens, None for none. by_layer: a dictionary of masks by the kind of layer."""

    window: int | None = None
    by_layer: bool = False


@dataclass(frozen=True, slots=True)
class Reach:
    """Packed trees on the device, int32 [B, N] each: enter and leave as `intervals` gives them (engine/teacher/packing.py), and
    depth, tokens above the node, which is its position id."""

    enter: torch.Tensor
    leave: torch.Tensor
    depth: torch.Tensor


def reach_of(parent_BN: np.ndarray, depth_BN: np.ndarray, device: torch.device) -> Reach:
    """Packed trees put on the device. parent, depth: int64 [B, N], parents before children. The N x N test is done there."""
    enter, leave = intervals(parent_BN)
    return Reach(*(torch.from_numpy(a).to(device) for a in (enter, leave, depth_BN.astype(np.int32))))


def allowed(reach: Reach, start: int, window: int | None) -> torch.Tensor:
    """bool [B, 1, M, N]: may place start + m attend to place n."""
    query = reach.enter[:, start:, None]
    out = reach.enter[:, None, :] <= query  # with the next line: the key is the query or an ancestor of it
    out &= query < reach.leave[:, None, :]
    if window is not None:  # on a path a difference of depths is a distance in tokens
        out &= reach.depth[:, start:, None] - reach.depth[:, None, :] < window
    return out[:, None]


def allowed_function(reach: Reach, window: int | None) -> Callable[..., torch.Tensor]:
    """The same test for single places, as FlexAttention asks for it: (row, head, query place, key place) -> bool."""

    def test(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        at = reach.enter[row, query]
        seen = (reach.enter[row, key] <= at) & (at < reach.leave[row, key])
        if window is not None:
            seen &= reach.depth[row, query] - reach.depth[row, key] < window
        return seen

    return test


def masks_for(masking: Masking, kernel: str, reach: Reach, start: int, dtype: torch.dtype) -> Any:
    """What the model is given as attention_mask: one mask, or a dictionary of them by the kind of layer.

    kernel "sdpa": bool, selects. "eager": `dtype`, added to the scores. "flex_attention": a BlockMask, for start = 0.
    """

    def made(window: int | None) -> Any:
        if kernel == "flex_attention":
            size = reach.enter.shape
            test = allowed_function(reach, window)
            return create_block_mask(test, size[0], None, size[1], size[1], device=str(reach.enter.device))
        mask = allowed(reach, start, window)
        if kernel != "eager":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    if masking.by_layer:
        return {"full_attention": made(None), "sliding_attention": made(masking.window)}
    return made(masking.window)
