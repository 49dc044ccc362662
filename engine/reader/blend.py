"""Several outputs read as one, each with its weight: in every stretch of the order they have their shares.

    blend = Blend([Targets("maths", "small"), Targets("web", "small")], weights=[3, 1])
    dataset = TargetsDataset(blend, 8, seed=0)

Weights are shares of documents. Document j of output i (in that output's own order) has the time (j + 1/2) / weight i, and
the order of the blend is by time: before any place each output of n has given its share s of the documents, to within
(1 + s n) / 2 of them. So batches, ranks and workers have the same mixture, and all else is as with one output: the order depends
on seed and epoch alone, each document is given once, states resume, with other ranks, too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from .row_groups import DocumentPool, RowGroup
from .spans import Spans
from .targets import Targets
from .walk import Parts, Walk

WINDOW = 512
"""Documents whose order is worked out at a time."""

_SAME = ("codec", "top_k", "draws", "vocab_size", "hidden_size", "tokenizer_hash")


class Blend(Walk):
    """The documents of several outputs, in proportion.

    outputs  Targets of one and the same vocabulary and codec, with the same products beside
    weights  shares of documents, numbers above 0 (their sum means nothing). For shares of positions, divide each by the
             output's `positions / rows`. None: the outputs' own sizes, so that an epoch is each document of each once
    until    when an epoch ends. "first": where an output would be at its end, so that no document is given twice in an epoch; of
             the others a part is left out, another one in each epoch (with a seed; without, always their ends).
             "last": where every output has been given whole; those that end before begin again, in another order
             (with a seed), as often as it takes

    Batches have `output` beside `doc_row`: the number, in `outputs`, of the output that a document is of.
    Raises ValueError where outputs do not fit together, and for weights that are not finite and above 0.

    Memory: one pool of each output at a time.
    """

    def __init__(
        self,
        outputs: Sequence[Targets],
        weights: Sequence[float] | None = None,
        *,
        until: Literal["first", "last"] = "first",
    ) -> None:
        self.outputs = list(outputs)
        if not self.outputs or not all(output.rows for output in self.outputs):
            raise ValueError(
                f"documents of the outputs {[o.rows for o in self.outputs]}: wanted at least 1 output, none empty"
            )
        self._check_alike()
        sizes = [output.rows for output in self.outputs]
        self.weights = [float(weight) for weight in (sizes if weights is None else weights)]
        if len(self.weights) != len(sizes) or not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights {self.weights} for {len(sizes)} outputs: wanted a finite number > 0 for each")
        if until not in ("first", "last"):
            raise ValueError(f"until {until!r}: wanted 'first' or 'last'")
        first = self.outputs[0]
        self.product, self.beside = first.product, first.beside
        self.counts = _counts(sizes, self.weights, until)
        self.rows = sum(self.counts)
        names = [[output.fingerprint, output.product, output.rows] for output in self.outputs]
        made = json.dumps([names, self.weights, until, WINDOW])
        self.fingerprint = hashlib.sha256(made.encode()).hexdigest()

    def prepare(self) -> None:
        for output in self.outputs:
            output.prepare()

    def pools(self, seed: int | None, epoch: int, spans: Spans, pool_groups: int) -> Iterator[list[Parts]]:
        if not spans.bounds:
            return
        before = [(self._before(start), self._before(stop)) for start, stop in spans.bounds]
        streams = [
            _Stream(output, number, [(int(a[number]), int(b[number])) for a, b in before], seed, epoch, pool_groups)
            for number, output in enumerate(self.outputs)
        ]
        window, last = self._window(spans.bounds[0][0]), self._window(spans.bounds[-1][1] - 1)
        for at in range(window, last + 1):
            first, outputs_N = int(self._starts(at).sum()), self._sequence(at)
            numbers = spans.numbers(first + np.arange(len(outputs_N)))
            if not (numbers >= 0).any():
                continue
            parts: list[Parts] = [[] for _ in range(1 + len(self.beside))]
            for number, stream in enumerate(streams):
                places = numbers[(outputs_N == number) & (numbers >= 0)]
                for groups in stream.take(len(places)):
                    here, places = places[: len(groups[0])], places[len(groups[0]) :]
                    for product, group in zip(parts, groups, strict=True):
                        product.append((group, here))
            yield parts

    # ---- the order: times in windows of about WINDOW documents ----

    def _starts(self, window: int) -> npt.NDArray[np.int64]:
        """[outputs] documents of each before a window."""
        per_window = WINDOW * np.array(self.weights) / sum(self.weights)
        return np.clip(np.ceil(window * per_window - 0.5), 0, self.counts).astype(np.int64)

    def _sequence(self, window: int) -> npt.NDArray[np.int64]:
        """[N] the output of each document of a window, in order."""
        starts, stops = self._starts(window), self._starts(window + 1)
        numbers = np.repeat(np.arange(len(starts)), stops - starts)
        times = np.concatenate(
            [(np.arange(a, b) + 0.5) / w for a, b, w in zip(starts, stops, self.weights, strict=True)]
        )
        return numbers[np.lexsort((numbers, times))]

    def _window(self, place: int) -> int:
        """The window of the document at this place of the order."""
        low, high = 0, 1
        while self._starts(high).sum() <= place:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._starts(middle).sum() <= place else (low, middle)
        return low

    def _before(self, place: int) -> npt.NDArray[np.int64]:
        """[outputs] documents of each before this place of the order."""
        if place == self.rows:
            return np.array(self.counts, np.int64)
        window = self._window(place)
        starts = self._starts(window)
        part = self._sequence(window)[: place - int(starts.sum())]
        return starts + np.bincount(part, minlength=len(starts))

    def _check_alike(self) -> None:
        first = self.outputs[0]
        for output in self.outputs[1:]:
            for name in (*_SAME, "beside"):
                mine, theirs = (o.beside if name == "beside" else o.facts.get(name) for o in (first, output))
                if mine != theirs:
                    raise ValueError(
                        f"{output.out}: {name} {theirs!r}, but {mine!r} in {first.out}: outputs of a blend are of one "
                        "vocabulary, codec and size; read others with a loader of their own"
                    )


def _counts(sizes: Sequence[int], weights: Sequence[float], until: str) -> list[int]:
    """Documents of each output in an epoch. "first": those before the time at which the first output would have to begin
    again; "last": those up to the time of the last output's last document."""
    pairs = list(zip(sizes, weights, strict=True))
    if until == "first":
        end = min((size + 0.5) / weight for size, weight in pairs)
        return [min(size, math.ceil(end * weight - 0.5)) for size, weight in pairs]
    end = max((size - 0.5) / weight for size, weight in pairs)
    return [
        size if (size - 0.5) / weight == end else max(size, math.floor(end * weight - 0.5) + 1)
        for size, weight in pairs
    ]


class _Stream:
    """The documents [a, b) of an output, numbered on through its repetitions, one behind another."""

    def __init__(
        self,
        output: Targets,
        number: int,
        ranges: Sequence[tuple[int, int]],
        seed: int | None,
        epoch: int,
        pool_groups: int,
    ) -> None:
        self._pools = self._read(output, number, ranges, seed, epoch, pool_groups)
        self._now: list[RowGroup] = []
        self._at = 0

    def take(self, count: int) -> Iterator[list[RowGroup]]:
        """The next so many documents: of each product, in one or several parts."""
        while count:
            if not self._now or self._at == len(self._now[0]):
                self._now, self._at = [], 0  # before the next ones are read: half the memory
                self._now = next(self._pools)
            stop = min(self._at + count, len(self._now[0]))
            yield [group.part(self._at, stop) for group in self._now]
            count, self._at = count - (stop - self._at), stop

    @staticmethod
    def _read(
        output: Targets,
        number: int,
        ranges: Sequence[tuple[int, int]],
        seed: int | None,
        epoch: int,
        pool_groups: int,
    ) -> Iterator[list[RowGroup]]:
        for again in range(ranges[0][0] // output.rows, (ranges[-1][1] - 1) // output.rows + 1):
            first = again * output.rows
            here = [(max(a - first, 0), min(b - first, output.rows)) for a, b in ranges]
            spans = Spans.joined([Spans(((a, b),)) for a, b in here if a < b])
            own = None if seed is None else int(np.random.SeedSequence([seed, number, again]).generate_state(1)[0])
            for parts in output.pools(own, epoch, spans, pool_groups):
                groups = [DocumentPool(part).after(0) for part in parts]
                for group in groups:
                    group.columns["output"] = np.full(len(group), number, np.int64)
                yield groups
