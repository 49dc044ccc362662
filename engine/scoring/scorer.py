"""Documents of a unit -> one table for each product, the records of those that cannot be scored, and sums.

    text ─ tokenizers ─▶ tokens ─ contexts ─▶ tree ─ teacher ─▶ hidden states ─ beam search, targets ─▶ rows ─▶ tables

Documents are scored in groups that fill the teacher's batches. One that is bad leaves at the step that finds it, with a reason,
and the others go on; a group that does not fit into memory is halved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeVar

import pyarrow as pa

from engine.alignment.passage import Passage
from engine.beam.calibration import Calibration
from engine.corpus.document import Document, refusal
from engine.dataset.unit_result import UnitResult
from engine.scoring import memory
from engine.scoring.ahead import prepared_ahead
from engine.scoring.prepare import prepare
from engine.scoring.stages import Progress, Stages, load_stages, silent
from engine.targets.positions import TargetRows
from engine.targets.tables import Work, add_sums, first_parts, table_of
from engine.teacher.evaluate import hidden_states
from engine.teacher.incremental import OpenBatch
from engine.teacher.kept_logits import KeptLogits, LogitsStore
from schemas.errors import BadDocument, IdentityError
from schemas.manifest import NOISE_MEAN, NOISE_MOST, Regime, add_stats
from schemas.runfile import RunConfig

T = TypeVar("T")
Stats = dict[str, float]
_CPU_GROUP_NODES = 1024
Report = Callable[[int, int], None]
"""Called with how many documents of a unit are decided, and how many teacher tokens these have."""


class Scorer:
    """Scores units of documents with the stages of one run. An actor builds one and keeps it."""

    def __init__(
        self,
        run: RunConfig,
        stages: Stages | None = None,
        progress: Progress = silent,
        regimes: Mapping[str, Regime] | None = None,
    ) -> None:
        """run: as `pin` gives it, where its actors are elsewhere. stages: those of the run, if they are loaded already; else
        they are loaded here, which `progress` is told of. regimes: of the students, as the plan has them; None: what their
        tokenizers allow, whatever the corpus holds. Raises what `load_stages` raises."""
        self.stages = load_stages(run, progress, regimes) if stages is None else stages
        self._kept_logits = LogitsStore()
        self.calibration_sha256: str | None = None  # of the file that the calibration came from

    # ---- calibration: how the teacher usually goes on behind each token, for leaves that nobody evaluates

    @property
    def calibration(self) -> Calibration:
        """What open leaves are closed by; empty before anything was learned, and without a beam search."""
        return Calibration() if self.stages.beam_search is None else self.stages.beam_search.calibration

    @property
    def head_counts(self) -> dict[str, int]:
        """Product -> H, the number of heads in its mean rows (engine/alignment/strings.py)."""
        return {product: strings.heads.count for product, strings in self.stages.strings.items()}

    def calibrate(self, documents: Sequence[Document]) -> None:
        """Learn from all these documents. The same documents give the same calibration; without any, open leaves are closed
        as if a boundary followed. Documents that are no good are left out."""
        self.learn_calibration(documents)
        self.finish_calibration()

    def learn_calibration(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Some of the documents of the sample; it counts once `finish_calibration` was called. Returns records, as in the
        quarantine, of documents that gave nothing."""
        left_out = []
        for document in documents if self.stages.beam_search is not None else ():
            try:
                self._within_memory(prepare(self.stages, document).parts, self._learn, defaultdict(float))
            except (BadDocument, IdentityError, MemoryError) as error:  # mostly its own unit quarantines it, too
                left_out.append(_refused(document, error))
        return left_out

    def finish_calibration(self) -> None:
        """From here on open leaves are closed by what was learned."""
        if self.stages.beam_search is not None:
            self.stages.beam_search.finish_calibration()

    def use_calibration(self, calibration: Calibration, sha256: str) -> None:
        """Close open leaves by what was learned elsewhere. sha256: of the file that has it. Only for runs with a beam search."""
        assert self.stages.beam_search is not None
        self.stages.beam_search.calibration, self.calibration_sha256 = calibration, sha256

    def _learn(self, parts: list[Passage], batch_tokens: int, keep: bool) -> None:
        stages = self.stages
        assert stages.beam_search is not None
        config = stages.run.teacher.model_copy(update={"batch_tokens": batch_tokens})
        hidden = hidden_states(stages.teacher.with_less_memory(batch_tokens, keep=keep), parts, config)
        stages.beam_search.add_calibration(parts, hidden, stages.teacher.logits)

    # ---- scoring

    def score_unit(self, documents: Sequence[Document], report: Report | None = None) -> UnitResult:
        """Score documents. Every one of them is in each product's table or in the quarantine, never both.

        report: called behind each group. Raises what no single document is to blame for, such as a RuntimeError of the device.
        """
        stats: Stats = defaultdict(float)
        quarantine: list[dict[str, Any]] = []
        schemas, done = self.stages.schemas, {product: list[pa.Table]() for product in self.stages.products}

        def flush() -> None:
            for tables, refused in self._score_group(group, stats):
                quarantine.extend(refused)
                for product, table in tables.items():
                    done[product].append(table)

        group, nodes = list[Work](), 0
        with closing(prepared_ahead(self.stages, documents)) as ahead:
            for at, (document, prepared) in enumerate(ahead):
                try:
                    work = prepared.result()
                except (BadDocument, IdentityError, MemoryError) as error:
                    quarantine.append(_refused(document, error))
                    continue
                if group and nodes + work.nodes > self._group_nodes:
                    flush()
                    group, nodes = [], 0
                    if report is not None:
                        report(at, int(stats["teacher_tokens"]))
                group.append(work)
                nodes += work.nodes
        flush()
        if report is not None:
            report(len(documents), int(stats["teacher_tokens"]))
        stats["documents"] += len(documents)
        stats["quarantined"] += len(quarantine)
        if (noise := self.stages.teacher.noise) is not None:
            add_stats(stats, {NOISE_MEAN: noise.mean, NOISE_MOST: noise.most})
        quarantine.sort(key=lambda record: record["doc_row"])
        products = {p: pa.concat_tables([schemas[p].empty_table(), *tables]) for p, tables in done.items()}
        return UnitResult(products, quarantine, dict(stats), self.calibration_sha256)

    @property
    def _group_nodes(self) -> int:
        """Contexts of a group at most, but for a single document: two forward passes. With compiled pairs on a processor, where
        large passes save nothing, fewer: a group is what `report` is told of. All other runs keep to the groups of 0.6.0, whose
        numbers they repeat bit by bit: what is evaluated together decides how sums are rounded."""
        most = 2 * self.stages.run.teacher.batch_tokens
        small = bool(self.stages.walks) and self.stages.teacher.device.type == "cpu"
        return min(most, _CPU_GROUP_NODES) if small else most

    def _score_group(
        self, group: list[Work], stats: Stats
    ) -> Iterator[tuple[dict[str, pa.Table], list[dict[str, Any]]]]:
        """(tables, quarantine) of the group, or of its parts. One that fails is halved until the failing document is alone."""
        if not group:
            return
        parts = [part for work in group for part in work.parts]

        def attempt(parts: list[Passage], batch_tokens: int, keep: bool) -> UnitResult:
            return self._group_result(group, parts, *self._rows(parts, batch_tokens, keep))

        found: UnitResult | None = None
        try:
            if len(group) > 1:
                found = attempt(parts, self.stages.run.teacher.batch_tokens, True)
            else:
                found = self._within_memory(parts, attempt, stats)
        except BadDocument as error:
            yield {}, [_refused(group[0].document, error)]
            return
        except IdentityError as error:
            if len(group) == 1:
                yield {}, [_refused(group[0].document, error)]
                return
        except memory.ERRORS as error:
            if not memory.is_out_of_memory(error):
                raise
            stats["oom_retries"] += 1
        if found is None:  # outside of the handlers: an exception holds all that the attempt has made
            memory.release()
            yield from self._score_group(group[: len(group) // 2], stats)
            yield from self._score_group(group[len(group) // 2 :], stats)
            return
        add_stats(stats, found.stats)
        yield found.products, found.quarantine

    def _rows(self, parts: list[Passage], batch_tokens: int, keep: bool) -> tuple[dict[str, TargetRows], Stats]:
        """Rows of every product, and sums of the search: the evaluations that it took, and its outlook. Raises IdentityError,
        and what running out of memory raises."""
        stages = self.stages
        for part in parts:  # an attempt before may have come half the way
            part.bad = None
        config = stages.run.teacher.model_copy(update={"batch_tokens": batch_tokens})
        teacher = stages.teacher.with_less_memory(batch_tokens, keep=keep)
        pruner = stages.pruner and stages.pruner.with_teacher(teacher)
        batches: list[OpenBatch] | None = [] if stages.searches else None
        kept = None
        if keep and (stages.searches or pruner is not None):  # whose contexts are read before their rows are made
            kept = KeptLogits(teacher.logits, self._kept_logits, sum(len(part.tree.token) for part in parts))
        hidden, spent = hidden_states(teacher, parts, config, pruner, open_batches=batches, logits=kept), 0
        logits = kept or teacher.logits
        if stages.beam_search is not None and batches:
            with stages.guard:
                spent = int(stages.beam_search.search(parts, hidden, batches, logits).sum())
        longer, outlook = parts, Stats()
        if stages.compiled_search is not None and batches:
            longer, hidden, more, outlook = stages.compiled_search.search(parts, hidden, batches, logits)
            spent += more
        rows = stages.emitter.emit(longer, hidden, logits)
        for part, long in zip(parts, longer, strict=True):
            part.bad = long.bad
        return rows, {"teacher_evaluations": float(spent), **outlook}

    def _within_memory(self, parts: list[Passage], attempt: Callable[[list[Passage], int, bool], T], stats: Stats) -> T:
        """An attempt at one document, with less at a time whenever memory runs out. Raises BadDocument (oom) when nothing is
        small enough, and what the attempt raises. Nothing of a failed attempt may live on into the next."""
        stages = self.stages
        batch_tokens, room = stages.run.teacher.batch_tokens, stages.teacher.max_length
        nodes = sum(len(part.tree.token) for part in parts)
        longest = max(min(int(part.tree.depth.max()) + 1, room) for part in parts)
        keeps = stages.teacher.reuse and (stages.searches or stages.pruner is not None)
        ways = [
            (batch_tokens, True),
            *memory.smaller_ways(batch_tokens, nodes=nodes, longest=longest, keeps=keeps),
        ]
        said = ""
        for tokens, keep in ways:
            try:
                return attempt(parts, tokens, keep)
            except memory.ERRORS as error:
                if not memory.is_out_of_memory(error):
                    raise
                said = memory.first_line(error)
            memory.release()
            stats["oom_retries"] += 1
        raise BadDocument(
            "oom",
            f"{nodes} contexts in windows of up to {longest} tokens do not fit alone, nor in {len(ways) - 1} smaller ways: "
            f"{said}",
        )

    def _group_result(
        self, group: list[Work], parts: list[Passage], rows: dict[str, TargetRows], searched: Stats
    ) -> UnitResult:
        """Tables, refusals and sums of a group. searched: those of the search."""
        stages, stats = self.stages, defaultdict(float, searched)
        refused = [refusal(work.document, *work.bad) for work in group if work.bad is not None]
        for product in rows:
            rows[product].mark_ends([part.views[product].closed for part in parts])
        good = [i for i, work in enumerate(group) if work.bad is None]
        for part in (part for i in good for part in group[i].parts):
            stats["teacher_tokens"] += len(part.tree.trunk)
            kept, tree = part.kept, part.tree
            stats["teacher_evaluations"] += (len(tree.token) if kept is None else kept.sum()) - tree.given
        if cut := sum(group[i].cut for i in good):
            stats["shortened_prompts"] += cut
        stats["text_bytes"] += sum(len(group[i].document.text.encode("utf-8")) for i in good)
        keep_text, begin, first = stages.run.targets.store_text, stages.vocabulary.bos_id, first_parts(group)
        tables = {
            product: table_of(
                product, group, good, rows[product], schema=stages.schemas[product], keep_text=keep_text, begin=begin
            )
            for product in rows
        }
        good_parts = [part for i in good for part in range(first[i], first[i + 1])]
        for product, table in tables.items():
            add_sums(stats, product, rows[product], good_parts, table)
        return UnitResult(tables, refused, stats)


def _refused(document: Document, error: BadDocument | IdentityError | MemoryError) -> dict[str, Any]:
    """The quarantine record of a document that raised this. An IdentityError means that two stages disagree about its text: a
    bug, but of this document only. A MemoryError came before any forward pass: no smaller batch would help."""
    if isinstance(error, BadDocument):
        return refusal(document, error.reason, error.detail)
    if isinstance(error, IdentityError):
        return refusal(document, "identity", str(error))
    return refusal(document, "oom", memory.first_line(error))
