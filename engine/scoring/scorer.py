"""Stage 10: a unit of documents in, one table per product out. The whole engine as one pure function.

    text ─ vocab ─▶ tokens ─ contexts ─▶ tree ─ teacher ─▶ hidden states ─ emit (rules, push-forward) ─▶ rows ─▶ table

Bad documents leave at the step that finds them, with a reason, and the others go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from engine.alignment.passage import Passage, ProductView
from engine.alignment.refinement import exact_side
from engine.beam.calibration import Calibration
from engine.beam.sketch import RowSketch
from engine.chat.conversation import seen_by
from engine.chat.segments import SegmentedDocument
from engine.corpus.document import Document, refusal
from engine.dataset.unit_result import UnitResult
from engine.scoring import memory
from engine.scoring.stages import Loaded
from engine.targets.positions import TargetRows
from engine.targets.tables import Work, add_sums, first_parts, table_of
from engine.teacher.evaluate import BEAM_DEPTH, hidden_states
from engine.teacher.incremental import OpenBatch
from engine.teacher.windows import windows_of
from schemas.errors import BadDocument, IdentityError
from schemas.manifest import add_stats
from schemas.products import BYTES, BYTES_END, HIDDEN, TEACHER

T = TypeVar("T")
Stats = dict[str, float]


class Scorer(Loaded):
    """Scores units of documents. Built once per actor."""

    continuations_sha256: str | None = None

    def calibrate(self, documents: Sequence[Document]) -> None:
        """Learn from these documents how open leaves are usually continued (engine/beam/calibration.py). The same documents give
        the same means; without, open leaves are closed as if a boundary followed. Documents that are no good are left out."""
        self.learn(documents)
        if self.beam_search is not None:
            self.beam_search.finish_calibration()

    @property
    def means(self) -> dict[int, RowSketch]:
        """What `calibrate` has learned; without a beam_search nothing."""
        return {} if self.beam_search is None else self.beam_search.calibration.mean_rows

    @property
    def head_counts(self) -> dict[str, int]:
        """Product -> number of heads, of those that are closed by means."""
        return {product: known.heads.count for product, known in self.outcomes.items()}

    def recall(self, calibration: Calibration, sha256: str) -> None:
        """What was learned elsewhere, instead of `calibrate`. sha256: of the file that has it."""
        assert self.beam_search is not None
        self.beam_search.calibration, self.continuations_sha256 = calibration, sha256

    def learn(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """A part of `calibrate`, which is called once behind the last part. Returns records of documents that gave nothing."""
        left_out = []
        for document in documents if self.beam_search is not None else ():
            try:
                self._fitting(self._work(document).parts, self._learn, defaultdict(float))
            except BadDocument as error:  # mostly it goes to quarantine with its own unit, too
                left_out.append(refusal(document, error.reason, error.detail))
            except IdentityError as error:
                left_out.append(refusal(document, "identity", str(error)))
            except MemoryError as error:
                left_out.append(refusal(document, "oom", memory.told(error)))
        return left_out

    def score_unit(self, documents: Sequence[Document]) -> UnitResult:
        """Score documents. Every one of them is in each product's table or in the quarantine, never both."""
        stats: dict[str, float] = defaultdict(float)
        quarantine: list[dict[str, Any]] = []
        done: dict[str, list[pa.Table]] = {product: [] for product in self.products}
        group: list[Work] = []

        def flush() -> None:
            for scored, refused in self._score_group(group, stats):
                quarantine.extend(refused)
                for product, table in scored.items():
                    done[product].append(table)
            group.clear()

        nodes = 0
        for document in documents:
            try:
                work = self._work(document)
            except BadDocument as error:
                quarantine.append(refusal(document, error.reason, error.detail))
                continue
            except IdentityError as error:  # two stages disagree about this text: a bug, but of this document only
                quarantine.append(refusal(document, "identity", str(error)))
                continue
            except MemoryError as error:  # before any forward pass: no smaller batch helps
                quarantine.append(refusal(document, "oom", memory.told(error)))
                continue
            if group and nodes + work.nodes > 2 * self.run.teacher.batch_tokens:
                flush()
                nodes = 0
            group.append(work)
            nodes += work.nodes
        flush()
        stats["documents"] += len(documents)
        stats["quarantined"] += len(quarantine)
        quarantine.sort(key=lambda record: record["doc_row"])
        tables = {p: pa.concat_tables([self.schemas[p].empty_table(), *parts]) for p, parts in done.items()}
        return UnitResult(tables, quarantine, dict(stats), self.continuations_sha256)

    def _work(self, document: Document) -> Work:
        """A document as what is to be scored of it. Raises BadDocument."""
        if document.problem is not None:
            raise BadDocument(*document.problem)
        if self.chat:
            return self._conversation(document)
        talk = None if self.borders is None else self.borders.parts(document.text)
        if talk is not None:
            return self._in_parts(document, talk)
        part = self._prepare(document)
        part.place = (document.doc_row, 0)
        return Work(document, [part])

    def _conversation(self, document: Document) -> Work:
        """One part per scored message; what stands before it, as the teacher's own template writes it, is given."""
        end, roles = self.run.targets.end, self.run.corpus.roles
        talk = seen_by(self.chat, document.messages, roles, end=end, bytes_end=BYTES_END)
        return self._in_parts(document, talk)

    def _in_parts(self, document: Document, talk: SegmentedDocument) -> Work:
        """Each part behind what the teacher has read before it."""
        parts, lines = [], {**talk.lines, HIDDEN: talk.lines[TEACHER]}
        for i, text in enumerate(talk.texts):
            given = np.array([*self.bos, *lines[TEACHER].ids[: lines[TEACHER].parts[i].begin]], np.int64)
            closed = {product: lines[product].parts[i].closed for product in self.products}
            part = self._see(text, tuple(given.tolist()), closed)
            self._refuse_long(part)
            for product, side in part.views.items():
                stretch = lines[product].parts[i]
                if not np.array_equal(side.ids, lines[product].ids[stretch.begin : stretch.begin + stretch.rows]):
                    raise IdentityError(f"{product}: part {i} has other tokens alone than in the line of its document")
            part.place = (document.doc_row, i)
            parts.append(part)
        return Work(document, parts, {product: lines[product] for product in self.products})

    def _refuse_long(self, part: Passage) -> None:
        """What is given stands before every window; without room for a text behind it nothing can be scored."""
        room = self.teacher.max_length - (BEAM_DEPTH if self.beam_search else 0)
        if int(part.tree.depth.max()) < room:
            return
        try:
            windows_of(part.tree, max_length=room, overlap=self.run.teacher.overlap)
        except ValueError as error:
            given = part.tree.given + 1
            raise BadDocument(
                "prompt_too_long", f"{given} teacher tokens stand before a scored part: {error}"
            ) from error

    def _prepare(self, document: Document) -> Passage:
        """Tokens, tree and boundaries of one document. Raises BadDocument."""
        return self._see(document.text, self.bos, {p: self.end_id(p) is not None for p in self.products})

    def _see(self, words: str, given: tuple[int, ...], closed: dict[str, bool]) -> Passage:
        """One text behind the teacher's given tokens. closed: products that have a row for the end behind it."""
        text = words.encode("utf-8")
        sides = {TEACHER: self.vocabulary.encode(words) if words else ([], [])}
        for product, student in self.students.items():
            sides[product] = student.encode(words) if words else ([], [])
        sides[HIDDEN] = sides[TEACHER]
        if self.run.targets.bytes:
            sides[BYTES] = (list(text), list(range(1, len(text) + 1)))
        ids = sides[TEACHER][0]
        prefix = self.vocabulary.prefix_bytes if words else b""  # an empty text has no tokens, hence no prefix
        wanted = self._wanted(sides, len(text), len(prefix))
        tree = self.builder.build(prefix + text, ids, wanted, given, fringe=bool(self.aligners))
        out = {}
        for product in self.products:
            token_ids, byte_ends = sides[product]
            closing = ([self.end_id(product)], [len(text)]) if closed[product] else ([], [])
            side = ProductView(
                np.array([*token_ids, *closing[0]], np.int64),
                np.array([*byte_ends, *closing[1]], np.int64),
                closed=closed[product],
            )
            if product in self.aligners:
                side.boundaries = self.aligners[product].boundaries(tree, text, token_ids, byte_ends)
            elif product == BYTES:
                units = np.frombuffer(prefix + text, np.uint8)
                places = np.arange(1, len(units) + 1)
                side.exact = exact_side(tree, *self.refined(product), units, places, skip=len(prefix))
            elif product in self.expansions:
                places = np.array(byte_ends, np.int64) + len(prefix)
                side.exact = exact_side(tree, *self.refined(product), np.array(token_ids, np.int64), places)
            out[product] = side
        return Passage(tree, prefix + text, out, self.canonical.states(tree, prefix + text), lead=len(prefix))

    def _wanted(self, sides: dict[str, tuple[list[int], list[int]]], size: int, shift: int) -> np.ndarray:
        """Bytes of prefix + text at which contexts are needed: all for bytes, else the boundaries of all students."""
        if BYTES in sides:
            return np.arange(shift, shift + size + 1)
        asked = [np.array(sides[p][1], np.int64) + shift for p in (*self.aligners, *self.expansions)]
        return np.unique(np.concatenate([[shift], *asked])) if asked else np.empty(0, np.int64)

    def _learn(self, parts: list[Passage], batch_tokens: int, keep: bool) -> None:
        assert self.beam_search is not None
        config = self.run.teacher.model_copy(update={"batch_tokens": batch_tokens})
        hidden = hidden_states(self.teacher.with_less_memory(batch_tokens, keep=keep), parts, config)
        self.beam_search.add_calibration(parts, hidden, self.teacher.logits)

    def _rows(self, parts: list[Passage], batch_tokens: int, keep: bool) -> tuple[dict[str, TargetRows], int]:
        """Rows of every product, and the evaluations that the beam took. Raises IdentityError, and what memory raises."""
        for part in parts:  # an attempt before may have come half the way
            part.bad = None
        config = self.run.teacher.model_copy(update={"batch_tokens": batch_tokens})
        teacher = self.teacher.with_less_memory(batch_tokens, keep=keep)
        pruner = self.pruner and self.pruner.with_teacher(teacher)
        batches: list[OpenBatch] | None = None if self.beam_search is None else []
        hidden, spent = hidden_states(teacher, parts, config, pruner, open_batches=batches), 0
        if self.beam_search is not None and batches:
            spent = int(self.beam_search.search(parts, hidden, batches, teacher.logits).sum())
        return self.emitter.emit(parts, hidden, teacher.logits), spent

    def _fitting(self, parts: list[Passage], attempt: Callable[[list[Passage], int, bool], T], stats: Stats) -> T:
        """An attempt at one document, with less at a time whenever memory runs out. Raises BadDocument (oom) when nothing is
        small enough, and what the attempt raises. Nothing of a failed attempt may live on into the next."""
        batch_tokens, room = self.run.teacher.batch_tokens, self.teacher.max_length
        nodes = sum(len(part.tree.token) for part in parts)
        longest = max(min(int(part.tree.depth.max()) + 1, room) for part in parts)
        keeps = self.teacher.reuse and (self.beam_search is not None or self.pruner is not None)
        tries = [(batch_tokens, True)]
        tries += memory.smaller(batch_tokens, nodes=nodes, longest=longest, keeps=keeps)
        said = ""
        for tokens, keep in tries:
            try:
                return attempt(parts, tokens, keep)
            except memory.ERRORS as error:
                if not memory.is_out_of_memory(error):
                    raise
                said = memory.told(error)
            memory.free()
            stats["oom_retries"] += 1
        raise BadDocument(
            "oom",
            f"{nodes} contexts in windows of up to {longest} tokens do not fit alone, nor in {len(tries) - 1} smaller ways: "
            f"{said}",
        )

    def _score_group(self, group: list[Work], stats: Stats):
        """Yields (tables, quarantine). A group that fails is halved until the failing document stands alone."""
        if not group:
            return
        prepared = [part for work in group for part in work.parts]

        def attempt(parts: list[Passage], batch_tokens: int, keep: bool) -> UnitResult:
            return self._group_result(group, parts, *self._rows(parts, batch_tokens, keep))

        found: UnitResult | None = None
        try:
            if len(group) > 1:
                found = attempt(prepared, self.run.teacher.batch_tokens, True)
            else:
                found = self._fitting(prepared, attempt, stats)
        except BadDocument as error:
            yield {}, [refusal(group[0].document, error.reason, error.detail)]
            return
        except IdentityError as error:
            if len(group) == 1:
                yield {}, [refusal(group[0].document, "identity", str(error))]
                return
        except memory.ERRORS as error:
            if not memory.is_out_of_memory(error):
                raise
            stats["oom_retries"] += 1
        if found is None:  # outside of the handlers, which hold all that the attempt has made
            memory.free()
            yield from self._score_group(group[: len(group) // 2], stats)
            yield from self._score_group(group[len(group) // 2 :], stats)
            return
        add_stats(stats, found.stats)
        yield found.products, found.quarantine

    def _group_result(
        self, group: list[Work], prepared: list[Passage], rows: dict[str, TargetRows], spent: int
    ) -> UnitResult:
        """Tables, refusals and sums of a group. spent: evaluations that the beam took."""
        stats: Stats = defaultdict(float, teacher_evaluations=spent)
        refused = [refusal(work.document, *work.bad) for work in group if work.bad is not None]
        for product in rows:
            rows[product].mark_ends([p.views[product].closed for p in prepared])
        good = [i for i, work in enumerate(group) if work.bad is None]
        for part in (part for i in good for part in group[i].parts):
            stats["teacher_tokens"] += len(part.tree.trunk)
            kept, tree = part.kept, part.tree
            stats["teacher_evaluations"] += (len(tree.token) if kept is None else kept.sum()) - tree.given
        stats["text_bytes"] += sum(len(group[i].document.text.encode("utf-8")) for i in good)
        keep_text, first = self.run.targets.store_text, first_parts(group)
        begin = self.vocabulary.bos_id
        tables = {
            product: table_of(
                product, group, good, rows[product], schema=self.schemas[product], keep_text=keep_text, begin=begin
            )
            for product in rows
        }
        good_parts = [part for i in good for part in range(first[i], first[i + 1])]
        for product, table in tables.items():
            add_sums(stats, product, rows[product], good_parts, table)
        return UnitResult(tables, refused, stats)
