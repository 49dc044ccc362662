"""Stored documents scored once more by the live teacher, or without tolerance, and compared (engine/verify/compare.py).

The run file says where teacher and tokenizers are; its plan must be that of the output. Where the output stores its texts
the corpus is not needed; conversations and outputs without texts are read from the corpus again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from engine.beam.calibration_file import read_calibration
from engine.corpus.document import Document
from engine.corpus.scan import CorpusScan, scan_corpus
from engine.corpus.units import read_units
from engine.dataset.layout import load_plan
from engine.dataset.parquet import open_shard
from engine.dataset.sidecars import LM_HEAD, has_calibration
from engine.dataset.store import Out, open_store
from engine.plan.make_plan import make_plan
from engine.plan.pin import pin
from engine.plan.retry import read_retried, renumbered, retry_plan
from engine.scoring.scorer import Scorer
from engine.teacher.lm_head import head_tensors
from engine.verify.compare import Comparison, DocumentPair, oracle, rescored
from engine.verify.findings import Finding, short
from engine.verify.records import corpus_of, sound_seals
from schemas.errors import FingerprintMismatch, OutputError
from schemas.manifest import Plan, Seal
from schemas.products import HIDDEN
from schemas.runfile import RunConfig

ORACLE_BYTES = 60
"""The oracle takes documents of at most this many bytes, where there are such: it asks the teacher for everything."""
ORACLE_NODES = 16.0
"""Teacher evaluations for each student token at most; what is open even then is accounted for."""
ORACLE_TOP_K = 4096
_UNITS_SEARCHED = 16  # for short documents

Place = tuple[int, int]  # (unit, row of its files)


def open_rescorer(out: Out, run: RunConfig, *, seed: int, damaged: Collection[str] = ()) -> Rescorer:
    """Checks that the run file is that of the output. damaged: files that are not to be read. Raises TargetsmithError."""
    plan = load_plan(out)
    seals = sound_seals(open_store(out), plan, damaged)
    retried = plan.retry
    from_texts = run.targets.store_text and not run.corpus.in_parts and retried is None
    scan = corpus_of(plan, run.base_dir) if from_texts else scan_corpus(run.corpus, run.base_dir)
    mine = make_plan(run, scan, plan.regimes)
    if retried is not None:
        mine = retry_plan(mine, retried.of, scan, retried.rows)
    if mine.fingerprint != plan.fingerprint:
        listed = "\n  ".join(plan.difference(mine))
        raise FingerprintMismatch(
            f"{out}: the run file is not that of this output (output -> run file):\n  {listed}\nName the run file that it was "
            "made with, and the teacher, tokenizers and corpus as they were."
        )
    if not any(_rows(seal) for seal in seals.values()):
        raise OutputError(
            f"{out}: no document to compare with the teacher: all that is sealed without findings is in quarantine, or nothing is"
        )
    return Rescorer(out, plan, pin(run), scan, seals, from_texts=from_texts, seed=seed)


class Rescorer:
    """Scores documents of an output once more."""

    def __init__(
        self,
        out: Out,
        plan: Plan,
        run: RunConfig,
        scan: CorpusScan,
        seals: dict[int, Seal],
        *,
        from_texts: bool,
        seed: int,
    ) -> None:
        self.store, self.plan, self.run, self.scan, self.seals = open_store(out), plan, run, scan, seals
        self.from_texts, self.seed = from_texts, seed

    def rescore(self, count: int, tolerance: float) -> list[Comparison]:
        """`count` random documents, as the run scored them. tolerance: nats."""
        places = self._random(count)
        scorer = Scorer(self.run, regimes=self.plan.regimes)
        if has_calibration(self.plan):
            scorer.use_calibration(*read_calibration(self.store, self.plan, scorer.head_counts))
        comparisons = {product: Comparison("rescored", product) for product in self.plan.products}
        for product, pair in self._pairs(scorer, places, comparisons):
            rescored(comparisons[product], pair, tolerance)
        if HIDDEN in comparisons and self.store.exists(LM_HEAD):
            comparisons[HIDDEN].findings += self._head(scorer)
        return list(comparisons.values())

    def oracle(self, count: int) -> list[Comparison]:
        """`count` short documents in the lossless setting: no tolerance, no pruning, almost any number of evaluations."""
        targets = self.run.targets
        largest = max((facts.vocab_size for facts in self.plan.products.values()), default=1)
        setting = {
            "tolerance": 0.0, "max_nodes_per_token": ORACLE_NODES, "eps": 0.0, "codec": "topk", "hidden": False,
            "teacher_stats": False, "top_k": min(largest, ORACLE_TOP_K), "bytes_top_k": 257,
            "regime": "auto" if targets.regime == "fast" else targets.regime,
        }  # fmt: skip
        run = self.run.model_copy(update={"targets": targets.model_copy(update=setting)})
        asked = [product for product, facts in self.plan.products.items() if facts.codec != "hidden"]
        comparisons = {product: Comparison("oracle", product) for product in asked}
        scorer = Scorer(run, regimes=None if targets.regime == "fast" else self.plan.regimes)
        for product, pair in self._pairs(scorer, self._short(count), comparisons):
            oracle(comparisons[product], pair)
        return list(comparisons.values())

    def _head(self, scorer: Scorer) -> Iterator[Finding]:
        """The stored lm_head and embedding are the teacher's, to the bit. What cannot be read is a finding already."""
        try:
            stored = load(self.store.read(LM_HEAD))
        except (SafetensorError, ValueError):
            return
        mine = head_tensors(scorer.stages.teacher)
        for name in sorted(mine.keys() | stored.keys()):
            if name not in stored or name not in mine or not torch.equal(stored[name], mine[name]):
                yield Finding(
                    LM_HEAD, f"another {name} than the teacher's, or only one of both has it", "the teacher's own"
                )

    # ---- documents

    def _random(self, count: int) -> list[Place]:
        places = [(unit, row) for unit, seal in self.seals.items() for row in range(_rows(seal))]
        chosen = np.random.default_rng(self.seed).choice(len(places), min(count, len(places)), replace=False)
        return [places[i] for i in sorted(chosen.tolist())]

    def _short(self, count: int) -> list[Place]:
        rng = np.random.default_rng([self.seed, 1])
        found: list[tuple[int, Place]] = []
        filled = sorted(unit for unit, seal in self.seals.items() if _rows(seal))
        for unit in rng.permutation(filled)[:_UNITS_SEARCHED].tolist():
            product = next(iter(self.plan.products))
            ends = (
                self._read(unit, product, range(_rows(self.seals[unit])), ["byte_end"]).column("byte_end").to_pylist()
            )
            found += [(end[-1], (unit, row)) for row, end in enumerate(ends)]
        small = [place for size, place in found if size <= ORACLE_BYTES]
        if len(small) < count:
            return sorted(place for _, place in sorted(found)[:count])
        return sorted(small[i] for i in rng.choice(len(small), count, replace=False).tolist())

    def _pairs(
        self, scorer: Scorer, places: Sequence[Place], comparisons: dict[str, Comparison]
    ) -> Iterator[tuple[str, DocumentPair]]:
        """Every document of `places` and product, stored and made again, a unit's documents at a time."""
        for unit in sorted({unit for unit, _ in places}):
            rows = [row for one, row in places if one == unit]
            stored = {product: self._read(unit, product, rows) for product in comparisons}
            documents = self._documents(unit, next(iter(stored.values())))
            result = renumbered(scorer.score_unit(documents), self.plan)
            for product, table in stored.items():
                again = result.products[product]
                file = self._file(unit, product)
                at = {row: i for i, row in enumerate(again.column("doc_row").to_pylist())}
                for i, row in enumerate(table.column("doc_row").to_pylist()):
                    one = table.slice(i, 1)
                    if row in at:
                        yield (
                            product,
                            DocumentPair(file, self.plan.products[product], _own(one), _own(again.slice(at[row], 1))),
                        )
                        continue
                    why = next((r for r in result.quarantine if r["doc_row"] == row), {"reason": "lost", "detail": ""})
                    found = f"a document that is refused now: {why['reason']}: {short(why['detail'])}"
                    finding = Finding(file, found, "the same as in the run", one.column("doc_id")[0].as_py())
                    comparisons[product].findings.append(finding)

    def _documents(self, unit: int, stored: pa.Table) -> list[Document]:
        rows = stored.column("doc_row").to_pylist()
        if not self.from_texts:
            retried = self.plan.retry
            if retried is None:
                _, documents = next(iter(read_units(self.run.corpus, self.scan, {unit})))
            else:
                _, documents = next(iter(read_retried(self.run.corpus, self.scan, retried.rows, {unit})))
                rows = [retried.rows[row] for row in rows]
            by_row = {document.doc_row: document for document in documents}
            return [by_row[row] for row in rows if row in by_row]
        names, texts = stored.column("doc_id").to_pylist(), stored.column("text").to_pylist()
        part = self.plan.source_of(self.plan.units[unit])
        return [Document(*one, "", "", part=part) for one in zip(names, rows, texts, strict=True)]

    # ---- files

    def _file(self, unit: int, product: str) -> str:
        file = self.seals[unit].files[product]
        return "" if file is None else file.name

    def _read(self, unit: int, product: str, rows: Sequence[int], columns: list[str] | None = None) -> pa.Table:
        """Rows of a file, by their number in it, rising."""
        name = self._file(unit, product)
        with self.store.open(name) as data, open_shard(data, self.store.place(name)) as shard:
            parts, begin = [], 0
            for group in range(shard.file.num_row_groups):
                size = shard.file.metadata.row_group(group).num_rows
                wanted = [row - begin for row in rows if begin <= row < begin + size]
                if wanted:
                    parts.append(shard.file.read_row_group(group, columns).take(pa.array(wanted)))
                begin += size
            return pa.concat_tables(parts)


def _own(table: pa.Table) -> pa.Table:
    """A slice as a table of its own, so that offsets begin at 0."""
    return table.take(pa.array([0])).combine_chunks()


def _rows(seal: Seal) -> int:
    return max((file.rows for file in seal.files.values() if file is not None), default=0)
