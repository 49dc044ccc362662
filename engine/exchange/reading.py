"""One sequence of tokens as a model reads it, begin token first where there is one, with the distribution of each token.

Row i is the distribution of token i given the tokens before it. Most other programs count from the input instead: their row j is
what a model says behind input j, the distribution of token j + 1; `behind` and `before` turn one into the other.
T tokens, K entries of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import CorpusError
from schemas.target import PAD_ID


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What is exchanged of a sequence.

    asked_T    to be learned from; false: context (prompts, chat templates, begin tokens)
    scored_T   there is a distribution
    ids_TK     falling log-probability; PAD_ID where there are fewer than K, -inf beside it
    """

    name: str  # of the document; "" where nobody knows it
    token_ids_T: npt.NDArray[np.int32]
    asked_T: npt.NDArray[np.bool_]
    scored_T: npt.NDArray[np.bool_]
    ids_TK: npt.NDArray[np.int32]
    logps_TK: npt.NDArray[np.float32]  # nats
    gold_logp_T: npt.NDArray[np.float32]  # nats, of the token itself; -inf where unscored or not known
    tail_logp_T: npt.NDArray[np.float32] | None  # nats, of all that is not in the row; None: not known

    def __len__(self) -> int:
        return len(self.token_ids_T)

    @property
    def first_row_is_lost(self) -> bool:
        """Whether the first token has a distribution and there is no input that a model could give it behind."""
        return bool(len(self) and self.scored_T[0])

    def part(self, here: slice) -> Reading:
        """Some of its tokens."""
        cut: dict[str, Any] = {name: getattr(self, name)[here] for name in _LISTS}
        return replace(self, tail_logp_T=None if self.tail_logp_T is None else self.tail_logp_T[here], **cut)


_LISTS = ("token_ids_T", "asked_T", "scored_T", "ids_TK", "logps_TK", "gold_logp_T")


def behind(values_T: np.ndarray, fill: object) -> np.ndarray:
    """Rows of tokens -> rows of inputs, [T, ...]: row j is that of token j + 1, the last one is `fill`."""
    return np.concatenate([values_T[1:], np.full_like(values_T[:1], fill)])


def before(values_T: np.ndarray, fill: object, tokens: int) -> np.ndarray:
    """Rows of inputs -> rows of so many tokens: row i is that behind input i - 1, the first is `fill`. There may be one row too
    many, of a token that is not there."""
    first = np.full((1, *values_T.shape[1:]), fill, values_T.dtype)
    return np.concatenate([first, values_T[: tokens - 1]])


def sorted_rows(
    ids_TK: np.ndarray, logps_TK: np.ndarray, kept_TK: np.ndarray, top_k: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """(whether there is an entry [T], ids [T, top_k], log-probabilities [T, top_k]): what is kept, by falling log-probability.
    Raises CorpusError for a row with more than top_k."""
    if (most := int(kept_TK.sum(axis=1).max(initial=0))) > top_k:
        raise CorpusError(
            f"a row with {most} entries in files that say they have at most {top_k}; copy the files again"
        )
    logps = np.where(kept_TK, logps_TK, -np.inf).astype(np.float32)
    order = np.argsort(-logps, axis=1, kind="stable")[:, :top_k]
    rows = np.arange(len(logps))[:, None]
    logps, ids = logps[rows, order], np.where(kept_TK, ids_TK, PAD_ID)[rows, order]
    short = top_k - logps.shape[1]
    pad = ((0, 0), (0, max(0, short)))
    return (
        np.asarray(kept_TK.any(axis=1)),
        np.pad(np.where(logps == -np.inf, PAD_ID, ids), pad, constant_values=PAD_ID).astype(np.int32),
        np.pad(logps, pad, constant_values=-np.inf),
    )
