"""Realistic targets tables: Zipf-like ids, softmax log-probabilities, sentences as text. Used by the shard tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.dataset.commit import publish_unit
from engine.dataset.layout import load_seals
from engine.dataset.store import Out
from schemas.manifest import Plan, PlanUnit, ProductFacts
from schemas.target import FLAG_BOUNDED, FLAG_END, FLAG_GIVEN, PAD_ID, ROW_SCHEMA

SHARES = ("err", "open_mass", "excluded_mass", "noncanonical_mass")
WORDS = "the a cat tree river Zürich 猫 said that two and three make five because \n".split(" ")


def sealed_names(out: Out, product: str) -> list[str]:
    """Names of the sealed Parquet files of a product, in unit order."""
    return [file.name for seal in load_seals(out) if (file := seal.files[product]) is not None]


def sealed_paths(out: Path, product: str) -> list[Path]:
    """The same as paths, of an output that is a local folder."""
    return [out / name for name in sealed_names(out, product)]


def publish_all(out: Out, plan: Plan) -> None:
    """Every unit of the plan, with the tables of `unit_tables`."""
    for unit in plan.units:
        publish_unit(out, plan, unit.index, unit_tables(plan, unit.index), [], {"documents": unit.n_rows})


def targets_table(
    rng: np.random.Generator, lengths: list[int], *, top_k: int, vocab_size: int, first_row: int = 0
) -> pa.Table:
    """Documents of the given numbers of positions, at full float32 precision (not yet rounded).

    Ids follow a Zipf law over [0, vocab_size); the head and the gap between ranks are random, so that the mass in the
    top-k lies mostly between 0.7 and 1. The first position of every second document is unscored.
    """
    count = sum(lengths)
    ids = _distinct_ids(rng, count, top_k, vocab_size)
    gaps = rng.exponential(0.4 + 2.0 / np.arange(1, top_k + 1), size=(count, top_k))
    scores = -np.cumsum(gaps, axis=1)
    rest = np.log(rng.uniform(1e-7, 0.4, size=count)) + np.log(np.exp(scores).sum(1))
    total = np.logaddexp(np.log(np.exp(scores).sum(1)), rest)
    logps, tail = (scores - total[:, None]).astype(np.float32), (rest - total).astype(np.float32)
    rank = rng.integers(0, top_k + 2, size=count)
    inside = rank < top_k
    at = np.minimum(rank, top_k - 1)
    rows = np.arange(count)
    absent = (ids.max(axis=1) + 1) % vocab_size
    absent = np.where((ids == absent[:, None]).any(1), PAD_ID, absent)
    inside |= absent == PAD_ID
    tokens = np.where(inside, ids[rows, at], absent).astype(np.int32)
    gold = np.where(inside, logps[rows, at], np.minimum(logps[:, -1], tail) - 5).astype(np.float32)

    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int)
    scored = np.ones(count, bool)
    scored[starts[1::2]] = False
    ids[~scored], logps[~scored], tail[~scored], gold[~scored] = PAD_ID, -np.inf, 0.0, -np.inf
    flags = np.where(scored, FLAG_BOUNDED, FLAG_GIVEN).astype(np.uint8)
    flags[np.cumsum(lengths) - 1] |= FLAG_END
    texts = [" ".join(rng.choice(WORDS, size=max(1, length // 2))) for length in lengths]
    ends = [np.linspace(1, len(text.encode()), n).astype(np.int32) for text, n in zip(texts, lengths, strict=True)]
    shares = {name: rng.beta(0.3, 30, size=count).astype(np.float32) for name in SHARES}
    columns = {
        "doc_id": [f"corpus.jsonl#{first_row + i}" for i in range(len(lengths))],
        "doc_row": range(first_row, first_row + len(lengths)),
        "text": texts,
        "token_ids": _lists(tokens, lengths, 1),
        "byte_end": _lists(np.concatenate(ends) if ends else np.zeros(0, np.int32), lengths, 1),
        "scored": _lists(scored, lengths, 1),
        "topk_ids": _lists(ids.ravel(), lengths, top_k),
        "topk_logps": _lists(logps.ravel(), lengths, top_k),
        "tail_logp": _lists(tail, lengths, 1),
        "gold_logp": _lists(gold, lengths, 1),
        **{name: _lists(values, lengths, 1) for name, values in shares.items()},
        "pruned_mass": _lists(shares["err"], lengths, 1),
        "flags": _lists(flags, lengths, 1),
    }
    arrays = [
        value.cast(field.type) if isinstance(value, pa.ListArray) else pa.array(value, field.type)
        for field, value in ((field, columns[field.name]) for field in ROW_SCHEMA)
    ]
    return pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)


def facts_of(top_k: int = 8, vocab_size: int = 1000, **more: Any) -> ProductFacts:
    """The facts of a product, as far as they are given."""
    named = {"tokenizer": "a", "tokenizer_hash": "a" * 64, "regime": "own", "semantics": "canonical-context"}
    return ProductFacts(**{**named, "top_k": top_k, "vocab_size": vocab_size, **more})


def small_plan(
    units: int = 3,
    rows: int = 4,
    *,
    top_k: int = 8,
    vocab_size: int = 1000,
    with_bytes: bool = False,
    **semantic: object,
) -> Plan:
    """A plan of `units` equal units with the products teacher and student/small, and bytes if asked."""
    kinds: tuple[tuple[str, str, Any], ...] = (("teacher", "a", "own"), ("student/small", "b", "fast"))
    facts = {
        name: ProductFacts(
            tokenizer=name,
            tokenizer_hash=letter * 64,
            vocab_size=vocab_size,
            top_k=top_k,
            bos_id=1,
            eos_id=2,
            regime=regime,
            semantics="canonical-context",
        )
        for name, letter, regime in kinds
    }
    if with_bytes:
        facts["bytes"] = ProductFacts(
            tokenizer="bytes",
            tokenizer_hash="bytes",
            vocab_size=257,
            top_k=4,
            eos_id=256,
            regime="bytes",
            semantics="canonical-context",
        )
    cut = [PlanUnit(index=i, file_index=0, first_row=i * rows, n_rows=rows, doc_row=i * rows) for i in range(units)]
    return Plan.make({"targets": {"top_k": top_k, "regime": "fast"}, **semantic}, cut, facts)


def unit_tables(plan: Plan, unit: int, *, without: tuple[int, ...] = (), seed: int = 0) -> dict[str, pa.Table]:
    """The tables of one unit of a plan, the same at every call; documents `without` (doc_row) left out."""
    tables = {}
    for number, (product, facts) in enumerate(sorted(plan.products.items())):
        rng = np.random.default_rng([seed, unit, number])
        lengths = [int(n) for n in rng.integers(2, 60, size=plan.units[unit].n_rows)]
        first = plan.units[unit].doc_row
        table = targets_table(rng, lengths, top_k=facts.top_k, vocab_size=facts.vocab_size, first_row=first)
        keep = [row - first for row in range(first, first + len(lengths)) if row not in without]
        tables[product] = table.take(pa.array(keep, pa.int64())).combine_chunks()
    return tables


def quarantine_record(doc_row: int, reason: str = "oom") -> dict[str, object]:
    return {
        "doc_id": f"corpus.jsonl#{doc_row}",
        "doc_row": doc_row,
        "source": "corpus.jsonl",
        "place": f"line {doc_row + 1}",
        "reason": reason,
        "detail": "needs 90 GB",
        "text_sha256": None,
    }


def _distinct_ids(rng: np.random.Generator, count: int, top_k: int, vocab_size: int) -> np.ndarray:
    """[count, top_k] int32, Zipf-like, no id twice in a row: a random walk of Zipf steps around the circle of ids."""
    steps = np.minimum(rng.zipf(1.3, size=(count, top_k)), vocab_size // top_k)
    start = rng.integers(0, vocab_size, size=(count, 1))
    ids = (start + np.cumsum(steps, axis=1)) % vocab_size
    return rng.permuted(ids, axis=1).astype(np.int32)


def _lists(values: np.ndarray, lengths: list[int], width: int) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64) * width
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
