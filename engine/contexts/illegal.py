"""What tokens may not follow, for many contexts at once: lists of ids made once, and the probability that rows give them.

In: what the ids of a context depend on (its tokens' actions, last token, whether a text may end there), under a number; later
rows of probabilities with such a number each. Out: the *non-canonical mass* of each row (docs/design.md, definition 10), which
`canonical-masked` sets to 0, too.

Ids come in two lists: those that nothing in the context can save (NEVER: shared by all contexts with the same actions), and those
that the last token rules out (PAIR: lemma 2). Both are made in compiled code when they are first asked for and kept in one
array, which is emptied when it is full. Letters: R rows, V ids, A numbers given out.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from engine.bpe.flatten import flatten
from engine.bpe.segmenter import Segmenter
from engine.contexts.illegal_kernels import illegal_mass, illegal_pairs
from engine.contexts.next_tokens import PAIR, NextTokens
from engine.kernels.flat import FlatTokenizer
from schemas.errors import IdentityError

_MOST_IDS = 40_000_000
"""int32 each. A row inside a character alone may have all V of them."""
_MOST_NUMBERS, _MOST_ACTIONS = 500_000, 1_000
"""Beyond these a new object is better than this one; actions are int8 [V] each."""
NOTHING = 0
"""The number of contexts that no list is kept for, because nobody asks."""


@dataclass(frozen=True, slots=True)
class Follows:
    """What the ids of a context depend on. last: -1 where no pair is looked at. closed: ids besides; ends: specials are
    allowed, because a text may end here."""

    tokens: NextTokens
    last: int
    ends: bool
    closed: tuple[int, ...]


class IllegalTokens:
    """The lists of one vocabulary. Numbers stay valid for as long as the object lives. One thread may ask for numbers while
    another asks what rows have on the lists."""

    def __init__(self, segmenter: Segmenter, flat: FlatTokenizer | None = None, *, most: int = _MOST_IDS) -> None:
        self._segmenter, self._given, self._most = segmenter, flat, most
        self.size = segmenter.vocabulary.size
        self._specials = tuple(sorted(segmenter.vocabulary.specials))
        self._guard = threading.Lock()  # of all that both ask for
        self._numbers: dict[tuple[int, int, bool, tuple[int, ...]], int] = {}
        self._follows: list[Follows | None] = [None]  # NOTHING
        self._actions: set[int] = set()  # numbers of the NextTokens that are held
        self._segment_A4 = np.zeros((64, 4), np.int32)  # places in `_ids`; all 0: not made, or forgotten
        self._made_A = np.arange(64) == NOTHING
        self._never: dict[int, tuple[int, int]] = {}  # NextTokens.number -> places of its NEVER ids
        self._ids = np.empty(1 << 16, np.int32)
        self._used = 0
        self._on_device: tuple[torch.Tensor, int] | None = None  # the same ids where the rows are, and how many of them
        self._bits = np.zeros(self.size // 64 + 1, np.uint64)
        self._out = np.empty(2 * self.size, np.int32)

    @cached_property
    def _flat(self) -> FlatTokenizer:
        return self._given or flatten(self._segmenter.vocabulary, self._segmenter.merges)

    # ==== numbers

    def number(self, tokens: NextTokens, last: int, ends: bool, closed: tuple[int, ...]) -> int:
        """The number of contexts that these ids may not follow. last: the last token; -1 behind a certain cut."""
        last = last if tokens.has_pair else -1
        key = (tokens.number, last, ends, closed)
        with self._guard:
            known = self._numbers.get(key)
            if known is None:
                known = self._numbers[key] = len(self._follows)
                self._follows.append(Follows(tokens, last, ends, closed))
                self._actions.add(tokens.number)
                if known == len(self._made_A):
                    self._made_A = np.concatenate([self._made_A, np.zeros(known, bool)])
                    self._segment_A4 = np.concatenate([self._segment_A4, np.zeros((known, 4), np.int32)])
            return known

    @property
    def is_full(self) -> bool:
        """Whether it holds so much that new contexts should get another object; the numbers of this one stay good."""
        return len(self._follows) > _MOST_NUMBERS or len(self._actions) > _MOST_ACTIONS

    def ids(self, number: int) -> np.ndarray:
        """int32, rising."""
        a, b, c, d = self._segments(np.array([number]))[0].tolist()
        return np.sort(np.concatenate([self._ids[a:b], self._ids[c:d]]))

    # ==== lists

    def _segments(self, number_R: np.ndarray) -> np.ndarray:
        """int32 [R, 4]: where the ids of each row lie in `_ids`. What is not there is made."""
        with self._guard:
            if not self._made_A[number_R].all():
                wanted = np.unique(number_R).tolist()
                for number in wanted:
                    if not self._made_A[number] and not self._make(number):
                        self._forget()  # and make all that these rows need, however much it is
                        for again in wanted:
                            self._make(again, most=np.iinfo(np.int32).max)
                        break
            return self._segment_A4[number_R]

    def _make(self, number: int, *, most: int | None = None) -> bool:
        """False: no room. Room is needed for twice as many ids at times, while the array grows."""
        follows = self._follows[number]
        if follows is None:
            return True
        closed = np.array((*follows.closed, *(() if follows.ends else self._specials)), np.int32)
        tokens, out = follows.tokens, self._out
        n = illegal_pairs(self._flat, follows.last, tokens.action, PAIR, closed, self._bits, out)
        never = self._never.get(tokens.number)
        if self._used + n + (0 if never else len(tokens.never)) > (self._most if most is None else most):
            return False
        if never is None:
            never = self._never[tokens.number] = self._append(tokens.never)
        self._segment_A4[number] = (*never, *self._append(out[:n]))
        self._made_A[number] = True
        return True

    def _append(self, ids: np.ndarray) -> tuple[int, int]:
        begin, end = self._used, self._used + len(ids)
        if end > len(self._ids):
            grown = np.empty(max(end, 2 * len(self._ids)), np.int32)
            grown[:begin] = self._ids[:begin]
            self._ids = grown
        self._ids[begin:end] = ids
        self._used = end
        return begin, end

    def _forget(self) -> None:
        self._used, self._on_device = 0, None
        self._never.clear()
        self._made_A[:] = np.arange(len(self._made_A)) == NOTHING

    # ==== rows

    def mass(self, prob_RV: torch.Tensor, number_R: np.ndarray, *, clear: bool = False) -> torch.Tensor:
        """float64 [R], on the rows' device: what each row has on ids that may not follow. prob_RV may have rows of an lm_head
        without a token (V' >= V). clear: also set these to 0, in place. Raises IdentityError for rows of another shape."""
        if prob_RV.shape[0] != len(number_R) or prob_RV.shape[1] < self.size or prob_RV.stride(1) != 1:
            raise IdentityError(
                f"canonical: probabilities {tuple(prob_RV.shape)} for {len(number_R)} contexts and {self.size} ids; "
                "want one row per context, its ids side by side"
            )
        segment_R4 = self._segments(number_R)
        if not len(number_R):
            return torch.zeros(0, dtype=torch.float64, device=prob_RV.device)
        stride = prob_RV.stride(0)
        cells = prob_RV.as_strided(((len(number_R) - 1) * stride + prob_RV.shape[1],), (1,), prob_RV.storage_offset())
        if prob_RV.device.type != "cpu" or prob_RV.dtype != torch.float32:
            return self._mass_at_once(cells, stride, segment_R4, clear=clear)
        mass_R = np.empty(len(number_R))
        illegal_mass(cells.numpy(), stride, segment_R4, self._ids, clear, mass_R)
        return torch.from_numpy(mass_R)

    def _mass_at_once(self, cells: torch.Tensor, stride: int, segment_R4: np.ndarray, *, clear: bool) -> torch.Tensor:
        """The same in a few operations on a device. The ids lie there, too: only new ones and the segments are sent."""
        device, ids = cells.device, self._ids_on(cells.device)
        begin_S, end_S = (
            torch.from_numpy(segment_R4[:, at::2].astype(np.int64)).to(device).reshape(-1) for at in (0, 1)
        )
        size_S = end_S - begin_S
        start_S = torch.cumsum(size_S, 0) - size_S
        which_F = torch.repeat_interleave(size_S)
        at_F = ids[torch.arange(len(which_F), device=device) + (begin_S - start_S)[which_F]].long()
        at_F += which_F // 2 * stride
        mass_S = torch.segment_reduce(cells[at_F].double(), "sum", lengths=size_S, initial=0)
        if clear:
            cells.index_fill_(0, at_F, 0)
        return mass_S.reshape(-1, 2).sum(1)

    @torch.inference_mode()  # made in that mode or not, it grows in both
    def _ids_on(self, device: torch.device) -> torch.Tensor:
        there, sent = self._on_device or (torch.empty(0, dtype=torch.int32, device=device), 0)
        if len(there) < self._used:
            grown = torch.empty(max(self._used, 2 * len(there)), dtype=torch.int32, device=device)
            grown[:sent] = there[:sent]
            there = grown
        if sent < self._used:
            there[sent : self._used] = torch.from_numpy(self._ids[sent : self._used]).to(device)
        self._on_device = (there, self._used)
        return there


@dataclass(frozen=True, slots=True)
class IllegalLists:
    """A list of ids for each of N contexts. parts: (whose numbers, int32 [N]); each context has a number in one of the parts,
    and NOTHING in the others. There is one part, but where contexts were prepared before and after an object was full."""

    parts: tuple[tuple[IllegalTokens, np.ndarray], ...]

    @staticmethod
    def join(some: Sequence[IllegalLists]) -> IllegalLists:
        """The contexts of all of these, one after another."""
        sizes = [len(lists.parts[0][1]) for lists in some]
        found: dict[int, tuple[IllegalTokens, np.ndarray]] = {}
        for at, lists in zip(np.cumsum([0, *sizes]).tolist(), some, strict=False):
            for tokens, number_N in lists.parts:
                _, joined = found.setdefault(id(tokens), (tokens, np.full(sum(sizes), NOTHING, np.int32)))
                joined[at : at + len(number_N)] = number_N
        return IllegalLists(tuple(found.values()))

    def take(self, at_R: np.ndarray) -> IllegalLists:
        """Those of these contexts."""
        return IllegalLists(tuple((tokens, number_N[at_R]) for tokens, number_N in self.parts))

    def mass(self, prob_RV: torch.Tensor) -> torch.Tensor:
        """float64 [R]: what each context's row has on the ids of its list. Raises IdentityError as `IllegalTokens.mass`."""
        return self._over_parts(prob_RV, clear=False)

    def clear_(self, prob_RV: torch.Tensor) -> torch.Tensor:
        """Set these ids to 0 in place; the mass taken out, float64 [R]. Does not renormalise.

        A row can lose everything: a context inside a character whose every completion merges with what is there has no
        canonical next token (such a context is none by definition 3, but the tree walks bytes). Its sum is then 0, and
        the caller must take it as a row without mass.
        """
        return self._over_parts(prob_RV, clear=True)

    def _over_parts(self, prob_RV: torch.Tensor, *, clear: bool) -> torch.Tensor:
        first, *others = (tokens.mass(prob_RV, number_R, clear=clear) for tokens, number_R in self.parts)
        for more in others:
            first = first + more
        return first
