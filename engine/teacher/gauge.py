"""How far apart two ways of running a teacher are, and how far they may be.

A plain teacher in float32 gives one value for a context, whatever stands beside it in a batch, to 1e-4 nats. Any other one, in
half precision or with quantised weights, is defined only up to the noise of its kernels: they round otherwise for other shapes,
and some choose what to round by all that is in the batch. So that noise is measured first, as total variation between the
distributions that one context has in two batches, and it is the limit for whatever else is compared. Nats would say little there:
the rarest of 200,000 tokens may differ by several, and no row that is stored would show it.

Letters: n contexts, D hidden size, V rows of the lm_head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from engine.teacher.decoder import Decoder
from engine.teacher.packing import Window

LogProbs = Callable[[torch.Tensor], torch.Tensor]  # hidden states [n, D] -> fp32 log-probabilities [n, V]
T = TypeVar("T")

PLAIN_NATS = 1e-3
"""What two ways of a plain teacher may differ by."""
LEAST = 1e-3
"""Total variation that is allowed to any other teacher, however small its noise: verify allows as much to two batches."""
_TIMES = 2  # of the largest noise that was seen: other contexts may have more
_COMPARED = 64  # last nodes of each window that are compared: all branches, and the end of the trunk
_CHAIN = 24  # tokens of the longest chain whose noise is measured
_CROWD, _STRETCH = 16, 4  # chains of the largest batch, and how many times as long the others are


@dataclass(frozen=True, slots=True)
class Noise:
    """Total variation between the distributions that one context has in two batches: the mean of all that were tried, and the
    largest."""

    mean: float
    most: float


@dataclass(frozen=True, eq=False)
class Gauge:
    """Compares hidden states by the distributions that they stand for. limit: for `gap`, in nats, or as total variation where
    there is noise."""

    log_probs: LogProbs
    limit: float = PLAIN_NATS
    noise: Noise | None = None

    @property
    def unit(self) -> str:
        """Of limit and gaps, behind a number."""
        return "nats" if self.noise is None else "in total variation"

    def gap(self, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
        """The largest difference over the last contexts of all windows, as hidden states [n, D] each; among ranks, rank 0's."""
        pairs = [(a[-_COMPARED:], b[-_COMPARED:]) for a, b in zip(ours, theirs, strict=True)]
        return agreed(max([self.apart(self.log_probs(a), self.log_probs(b)) for a, b in pairs if len(a)], default=0.0))

    def apart(self, ours_nV: torch.Tensor, theirs_nV: torch.Tensor) -> float:
        """The same of log-probabilities; infinite where some are not finite."""
        gap = _nats(ours_nV, theirs_nV) if self.noise is None else _variation(ours_nV, theirs_nV)
        worst = float(gap.max())
        return worst if worst < float("inf") else float("inf")


def noisy_gauge(decoder: Decoder, log_probs: LogProbs, vocab: int, max_length: int) -> Gauge:
    """For a teacher in half precision, or with quantised weights: its noise is measured."""
    noise = agreed(measured(decoder, log_probs, vocab, max_length))
    return Gauge(log_probs, max(LEAST, _TIMES * noise.most), noise)


def measured(decoder: Decoder, log_probs: LogProbs, vocab: int, max_length: int) -> Noise:
    """The same contexts alone, beside a few others, in another order, beside themselves, and in a crowd of longer ones."""
    longest = min(_CHAIN, max_length)
    lengths = [max(1, longest * part // 12) for part in (12, 12, 8, 6, 3, 0)]
    chains = [_chain(vocab, length, seed) for seed, length in enumerate(lengths)]
    alone = [decoder.chains([chain])[0] for chain in chains]
    batches = list(_batches(vocab, min(_STRETCH * longest, max_length)))
    gaps = [gap for batch in batches for gap in _moved(decoder, log_probs, chains, alone, batch)]
    together = torch.cat(gaps)
    return Noise(float(together.mean()), float(together.max()))


def _batches(vocab: int, wide: int) -> Iterator[tuple[list[int], list[Window]]]:
    """(Numbers of the chains in a batch, others behind them). wide: tokens of the others, so that rows get another length."""
    for order in ([0, 1], [3, 0], [4, 2], [5, 4], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 1, 1]):
        yield order, []
    yield [0, 1, 2, 3, 4, 5], [_chain(vocab, wide, seed) for seed in range(6, _CROWD)]


def _moved(
    decoder: Decoder,
    log_probs: LogProbs,
    chains: list[Window],
    alone: list[torch.Tensor],
    batch: tuple[list[int], list[Window]],
) -> Iterator[torch.Tensor]:
    """Total variation [n] between each chain of a batch and the same chain alone."""
    order, others = batch
    found = decoder.chains([*(chains[i] for i in order), *others])
    for i, states in zip(order, found, strict=False):
        yield _variation(log_probs(states), log_probs(alone[i]))


def _chain(vocab: int, length: int, seed: int) -> Window:
    token = torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(100 + seed)).tolist()
    return Window(token, list(range(-1, length - 1)), list(range(length)))


def _nats(ours_nV: torch.Tensor, theirs_nV: torch.Tensor) -> torch.Tensor:
    return (ours_nV - theirs_nV).abs().amax(-1)


def _variation(ours_nV: torch.Tensor, theirs_nV: torch.Tensor) -> torch.Tensor:
    return (ours_nV.exp() - theirs_nV.exp()).abs().sum(-1) / 2


def agreed(found: T) -> T:
    """What rank 0 has found, where several processes share the model: clocks and sums differ, and all must go the same way."""
    if not torch.distributed.is_initialized():
        return found
    box: list[T] = [found]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
