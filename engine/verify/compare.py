"""Stored rows beside rows that were made again, or beside the lossless value: how far apart, and where that is too far.

Letters: N positions of one document, K stored tokens, M tokens of the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.dataset.invariants import mass_tolerance
from engine.dataset.parquet import flat
from engine.verify.findings import Finding
from schemas.counts import counted
from schemas.manifest import ProductFacts
from schemas.target import (
    COARSER,
    FLAG_ANEW,
    FLAG_CONTEXT,
    FLAG_END,
    FLAG_GIVEN,
    FLAG_NO_MASS,
    PAD_ID,
    STATISTIC_COLUMNS,
)

Array = npt.NDArray[Any]

NOISE = 1e-3
"""What two batches of different shapes may differ by: nats of a log-probability, or probability of a total variation."""
_STATE_NOISE = 0.02  # of a hidden state, relative to its length: bfloat16 has 8 bits
_TINY = 1e-6  # probabilities that no loss sees
_CELLS = 16_000_000
_PLACES = FLAG_ANEW | FLAG_END | FLAG_CONTEXT | FLAG_GIVEN | FLAG_NO_MASS


@dataclass(slots=True)
class Comparison:
    """One product over all documents that were looked at. measures: name -> values of all positions."""

    how: str  # "rescored" or "oracle"
    product: str
    documents: int = 0
    positions: int = 0
    measures: dict[str, list[Array]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def put(self, name: str, values: Array) -> None:
        self.measures.setdefault(name, []).append(np.asarray(values, np.float64).ravel())

    def numbers(self) -> dict[str, tuple[float, float]]:
        """name -> (mean, largest); 0 where nothing was compared."""
        joined = {name: np.concatenate(values) for name, values in self.measures.items()}
        return {name: (float(v.mean()) if v.size else 0.0, float(v.max(initial=0.0))) for name, v in joined.items()}

    def lines(self) -> Iterator[str]:
        yield f"{self.how} {self.product}: {counted(self.documents, 'document')}, {counted(self.positions, 'position')}"
        for name, (mean, largest) in self.numbers().items():
            yield f"  {name}: mean {mean:.2e}, max {largest:.2e}"

    def to_json(self) -> dict[str, Any]:
        numbers = {name: {"mean": mean, "max": largest} for name, (mean, largest) in self.numbers().items()}
        head = {"how": self.how, "product": self.product, "documents": self.documents, "positions": self.positions}
        return {**head, "measures": numbers, "findings": len(self.findings)}


@dataclass(frozen=True, slots=True)
class DocumentPair:
    """One document, stored and made again (unrounded): tables of one row. file: where the first lies."""

    file: str
    facts: ProductFacts
    stored: pa.Table
    again: pa.Table

    def both(self, name: str) -> tuple[Array, Array]:
        return flat(self.stored, name), flat(self.again, name)

    def finding(self, bad_N: Array, column: str, found: str, wanted: str, *numbers: Array) -> Iterator[Finding]:
        """The first position where `bad` holds."""
        if bad_N.any():
            at = int(np.argmax(bad_N))
            told = [f"{float(values[at]):.6g}" for values in numbers]
            document = self.stored.column("doc_id")[0].as_py()
            text = found.format(*told[:1])
            yield Finding(self.file, text, wanted.format(*told[1:]), document, at, column, int(bad_N.sum()))


def rescored(into: Comparison, pair: DocumentPair, tolerance: float) -> None:
    """Put one document to the comparison. tolerance: nats, for what rounding and other batches change."""
    into.documents += 1
    into.findings += list(_same_places(pair))
    if into.findings and into.findings[-1].file == pair.file and into.findings[-1].column in ("token_ids", "scored"):
        return
    scored_N = flat(pair.stored, "scored")
    into.positions += int(scored_N.sum())
    if pair.facts.codec == "hidden":
        into.findings += list(_hidden(into, pair, scored_N))
        return
    width_N = np.sum([values.astype(np.float64) for values in pair.both("err")], axis=0)
    if pair.facts.codec == "topk":
        into.findings += list(_topk(into, pair, scored_N, width_N, tolerance))
    else:
        into.findings += list(_draws(into, pair, scored_N, width_N, tolerance))
    into.findings += list(_logp(into, pair, "gold_logp", scored_N, width_N, tolerance, "gold, nats"))
    err_N, other_N = pair.both("err")
    gap_N = np.abs(err_N.astype(np.float64) - other_N)
    into.put("err", gap_N[scored_N])
    far_N = scored_N & (gap_N > tolerance + 2.0 ** -COARSER["err"] * err_N)
    into.findings += list(pair.finding(far_N, "err", "err {}", "about {}, as made again", err_N, other_N))
    for name in STATISTIC_COLUMNS if pair.facts.statistics else ():
        into.findings += list(_logp(into, pair, name, scored_N, 0 * width_N, tolerance, f"{name}, nats"))


def _same_places(pair: DocumentPair) -> Iterator[Finding]:
    for name in ("token_ids", "byte_end", "scored"):
        mine, other = pair.both(name)
        if len(mine) != len(other):
            text, wanted = f"{len(mine)} positions", f"{len(other)}, as made again"
            yield Finding(pair.file, text, wanted, pair.stored.column("doc_id")[0].as_py(), None, "token_ids")
            return
        yield from pair.finding(mine != other, name, f"{name} {{}}", "{}, as made again", mine, other)
        if name == "scored" and (mine != other).any():
            return
    mine, other = (values & _PLACES for values in pair.both("flags"))
    yield from pair.finding(mine != other, "flags", "flags {}", "{}, as made again", mine, other)


def _logp(
    into: Comparison, pair: DocumentPair, name: str, scored_N: Array, width_N: Array, tolerance: float, called: str
) -> Iterator[Finding]:
    """A column of one log-probability a position. What the certified widths allow is no finding."""
    mine, other = (values.astype(np.float64) for values in pair.both(name))
    gap = _gap(mine, other)
    into.put(called, gap[scored_N & np.isfinite(gap)])
    far = scored_N & (gap > tolerance)
    if name.endswith("logp"):
        far &= np.abs(np.exp(mine) - np.exp(other)) > width_N + (0 if name == "gold_logp" else _TINY)
    yield from pair.finding(far, name, f"{name} {{}}", f"{{}} within {tolerance:g} nats, as made again", mine, other)


def _topk(into: Comparison, pair: DocumentPair, scored_N: Array, width_N: Array, tolerance: float) -> Iterator[Finding]:
    k = pair.facts.top_k
    ids, others = (values.reshape(-1, k) for values in pair.both("topk_ids"))
    logps, again = (values.reshape(-1, k).astype(np.float64) for values in pair.both("topk_logps"))
    there, value = matched(ids, others, again)
    gap = np.where(there, _gap(logps, value), 0.0)
    into.put("shared ids, nats", gap[there & scored_N[:, None]])
    far = there & (gap > tolerance) & (np.abs(np.exp(logps) - np.exp(value)) > width_N[:, None])
    worst = np.argmax(np.where(far, gap, -1), axis=1)
    rows = np.arange(len(ids))
    text, wanted = "log-probability {}", f"{{}} within {tolerance:g} nats, as made again"
    yield from pair.finding(scored_N & far.any(1), "topk_logps", text, wanted, logps[rows, worst], value[rows, worst])
    back, _ = matched(others, ids, logps)
    for here, mine, last, words in (
        (there, logps, again[:, -1], "stored, but not among the likeliest that were made again (last: {})"),
        (back, again, logps[:, -1], "made again, but not among the stored (last: {})"),
    ):
        alone = ~here & (mine > last[:, None] + tolerance)
        alone &= np.exp(mine) - np.exp(last)[:, None] > width_N[:, None]
        first = np.argmax(alone, axis=1)
        text = f"a token of log-probability {{}} {words.partition(' (')[0]}"
        yield from pair.finding(
            scored_N & alone.any(1), "topk_ids", text, "the same tokens; last of the others {}", mine[rows, first], last
        )
    yield from _logp(into, pair, "tail_logp", scored_N, width_N, tolerance, "tail, nats")


def _draws(
    into: Comparison, pair: DocumentPair, scored_N: Array, width_N: Array, tolerance: float
) -> Iterator[Finding]:
    moved = np.zeros(len(scored_N))
    split = []
    for table in (pair.stored, pair.again):
        cuts = np.cumsum(flat(table, "sample_sizes").astype(np.int64))[:-1]
        split.append([np.split(flat(table, name), cuts) for name in ("sample_ids", "sample_counts")])
    for at in np.flatnonzero(scored_N):
        (ids, counts), (others, again) = [(one[0][at], one[1][at].astype(int)) for one in split]
        both = np.concatenate([ids, others])
        signed = np.concatenate([counts, -again])
        moved[at] = np.abs(np.bincount(np.unique(both, return_inverse=True)[1], signed)).sum() / 2 / pair.facts.draws
    into.put("share of the draws that differ", moved[scored_N])
    if not scored_N.any():
        return
    mean, allowed = float(moved[scored_N].mean()), tolerance + float(width_N[scored_N].mean())
    if mean > allowed:
        bad = scored_N & (moved > allowed)
        text, wanted = (
            "{} of the draws differ",
            f"a mean of at most {allowed:.3g}: draws hang on the distribution alone",
        )
        yield from pair.finding(bad, "sample_ids", text, wanted, moved)


def _hidden(into: Comparison, pair: DocumentPair, scored_N: Array) -> Iterator[Finding]:
    shape = (len(scored_N), pair.facts.hidden_size)
    mine, other = ((bits.astype(np.uint32) << 16).view(np.float32).reshape(shape) for bits in pair.both("hidden"))
    gap = np.linalg.norm(mine - other, axis=1) / np.maximum(np.linalg.norm(other, axis=1), 1e-30)
    into.put("hidden, relative", gap[scored_N])
    far = scored_N & (gap > _STATE_NOISE)
    yield from pair.finding(far, "hidden", "a state that differs by {} of its length", f"at most {_STATE_NOISE}", gap)


def oracle(into: Comparison, pair: DocumentPair) -> None:
    """Total variation of the stored to the lossless row, over the stored tokens and the tail, beside the certified width.

    pair.again: lossless rows, with at least the stored number of tokens. Their own `err` is what even they leave open; where
    a stored token is not among theirs, the nearest value that it can have there is taken.
    """
    into.documents += 1
    scored_N, known_N = pair.both("scored")
    err_N, left_N = (values.astype(np.float64) for values in pair.both("err"))
    golds = [np.exp(values.astype(np.float64)) for values in pair.both("gold_logp")]
    far_N = np.abs(golds[0] - golds[1])
    slack = NOISE
    if pair.facts.codec == "topk":
        k, count = pair.facts.top_k, len(scored_N)
        m = len(flat(pair.again, "topk_ids")) // max(1, count)
        ids, logps = flat(pair.stored, "topk_ids").reshape(-1, k), flat(pair.stored, "topk_logps").reshape(-1, k)
        others, again = flat(pair.again, "topk_ids").reshape(-1, m), flat(pair.again, "topk_logps").reshape(-1, m)
        prob = np.exp(logps.astype(np.float64))
        there, value = matched(ids, others, again.astype(np.float64))
        most = np.exp(again[:, -1:].astype(np.float64))
        true = np.where(ids == PAD_ID, 0, np.where(there, np.exp(value), np.minimum(prob, most)))
        tail = np.exp(flat(pair.stored, "tail_logp").astype(np.float64))
        variation = (np.abs(prob - true).sum(1) + np.abs(tail - np.maximum(0, 1 - true.sum(1)))) / 2
        far_N = np.maximum(far_N, variation)
        slack += mass_tolerance(k) / 2
    asked = scored_N & known_N
    into.positions += int(asked.sum())
    into.put("total variation to the lossless value", far_N[asked])
    into.put("certified width", err_N[asked])
    into.put("left open by the lossless setting itself", left_N[asked])
    bound = err_N + left_N + slack
    into.put("total variation / (width + rounding)", (far_N / bound)[asked])
    text, wanted = "{} away from the lossless value", "at most {} (width, what is left open there, rounding)"
    into.findings += list(pair.finding(asked & (far_N > bound), "err", text, wanted, far_N, bound))


def matched(ids_NK: Array, others_NM: Array, values_NM: Array) -> tuple[Array, Array]:
    """(is an id among the others [N, K], its value there [N, K]; 0 where it is not). PAD_ID is never there."""
    there, value = np.zeros(ids_NK.shape, bool), np.zeros(ids_NK.shape)
    step = max(1, _CELLS // max(1, ids_NK.shape[1] * others_NM.shape[1]))
    for begin in range(0, len(ids_NK), step):
        part = slice(begin, begin + step)
        equal = (ids_NK[part, :, None] == others_NM[part, None, :]) & (ids_NK[part, :, None] != PAD_ID)
        there[part] = equal.any(2)
        value[part] = np.where(there[part], np.take_along_axis(values_NM[part], equal.argmax(2), 1), 0.0)
    return there, value


def _gap(a: Array, b: Array) -> Array:
    """|a - b|; 0 where both are minus infinity."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, np.abs(a - b))
