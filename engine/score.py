"""Stage 10: a unit of documents in, one table per product out. The whole engine as one pure function.

    text ─ vocab ─▶ tokens ─ contexts ─▶ tree ─ teacher ─▶ hidden states ─ emit (rules, push-forward) ─▶ rows ─▶ table

Bad documents leave at the step that finds them, with a reason, and the others go on.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from engine.beam import Spending
from engine.boundaries import Aligner
from engine.bpe import build_merge_table
from engine.canonical import CanonicalNext
from engine.chat import chat_sides, seen_by
from engine.contexts import ContextBuilder
from engine.corpus import Document
from engine.emit import Emitter, JoinedEnds, Prepared, Side
from engine.evaluate import BEAM_DEPTH, Open, hidden_states
from engine.exact import exact_side
from engine.exact_rows import Refinement
from engine.expansion import BYTES_END, Expansion, byte_expansion, subset_expansion
from engine.leaves import LeafFinder
from engine.lines import Talk
from engine.outcomes import Outcomes
from engine.positions import Rows
from engine.prune import Pruner
from engine.pushforward import PushForward
from engine.regime import bos_of, regimes_of
from engine.rows import flat
from engine.rules import RuleBook, TeacherTokens
from engine.sketch import Sketcher
from engine.specials import SpecialBorders
from engine.split import build_splitter
from engine.tables import Work, first_parts, table_of
from engine.teacher import load_teacher
from engine.trie import Trie, build_trie
from engine.vocab import load_vocabulary
from engine.widen import Widener
from engine.windows import windows_of
from schemas.errors import BadDocument, IdentityError, TeacherError
from schemas.runfile import RunConfig
from schemas.target import ROW_SCHEMA

TEACHER = "teacher"
BYTES = "bytes"
KEPT_TOKENS = 128
LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class UnitResult:
    """products: "teacher" and "student/<name>" -> table of ROW_SCHEMA. stats: sums that add up over units."""

    products: dict[str, pa.Table]
    quarantine: list[dict[str, Any]]
    stats: dict[str, float]


class Scorer:
    """The loaded teacher and all that is derived from the tokenizers. Built once per actor."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        config = run.teacher
        self.vocabulary = load_vocabulary(
            run.locate(config.tokenizer or config.model),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            where="[teacher]",
        )
        self.students = {
            f"student/{s.name}": load_vocabulary(
                run.locate(s.tokenizer),
                revision=s.revision,
                trust_remote_code=s.trust_remote_code,
                where=f"[[student]] {s.name}",
            )
            for s in run.student
        }
        self.teacher = load_teacher(config, run.locate(config.model), tokenizer_end=self.vocabulary.eos_id)
        self.chat = chat_sides(run, {TEACHER: self.vocabulary, **self.students})
        self.bos = () if self.chat else bos_of(run, self.vocabulary)  # a conversation's BOS is its template's
        if self.chat:  # from here on a text is a content, and its end the end of a turn
            self.vocabulary = self.chat[TEACHER].vocabulary
            self.students = {product: self.chat[product].vocabulary for product in self.students}
            ends = (*self.teacher.end_ids, *([] if self.vocabulary.eos_id is None else [self.vocabulary.eos_id]))
            self.teacher = replace(self.teacher, end_ids=tuple(dict.fromkeys(ends)))
        self.regimes = regimes_of(run, self.vocabulary, self.students)
        self._build()
        self.borders: SpecialBorders | None = None
        if run.corpus.specials == "boundary":
            sides, ends = {TEACHER: self.vocabulary, **self.students}, self.teacher.end_ids
            end, given = run.targets.end, bool(self.bos)
            self.borders = SpecialBorders.make(sides, ends, end=end, given=given, bytes_end=BYTES_END)
        if self.chat:
            self.emitter = replace(self.emitter, joined=self._joined_ends())

    def _joined_ends(self) -> dict[str, JoinedEnds]:
        """In a conversation the teacher's ends are one event for every student, also for one with its tokenizer."""
        ends = [i for i in self.teacher.end_ids if i in self.vocabulary.specials]
        found = {p: self.students[p].eos_id for p, regime in self.regimes.items() if regime == "same"}
        return {product: JoinedEnds(ends, end) for product, end in found.items() if end is not None}

    def _build(self) -> None:
        vocabulary, teacher, targets = self.vocabulary, self.teacher, self.run.targets
        if teacher.vocab_rows < vocabulary.size:
            raise TeacherError(
                f"[teacher] the model has {teacher.vocab_rows} output rows but its tokenizer has ids up to "
                f"{vocabulary.size - 1}; want one row per token. Check that model and tokenizer belong together."
            )
        is_token = [b is not None or i in vocabulary.specials for i, b in enumerate(vocabulary.token_bytes)]
        real = torch.tensor(is_token, device=teacher.device)
        ends = tuple(i for i in teacher.end_ids if i in vocabulary.specials)  # an end that is text is text
        specials = sorted(vocabulary.specials)
        merges, splitter = build_merge_table(vocabulary), build_splitter(vocabulary)
        self.builder = ContextBuilder(vocabulary, merges, splitter)
        self.canonical = CanonicalNext(vocabulary, merges, splitter, device=teacher.device)
        tokens = TeacherTokens(vocabulary)
        self.aligners: dict[str, Aligner] = {}
        self.expansions: dict[str, tuple[Expansion, Trie]] = {}
        self.outcomes: dict[str, Outcomes] = {}
        fast: dict[str, PushForward] = {}
        for product, student in self.students.items():
            if self.regimes[product] == "subset":
                expansion = subset_expansion(vocabulary, student)
                self.expansions[product] = (expansion, build_trie(expansion))
            elif self.regimes[product] in ("fast", "beam"):
                book = RuleBook(tokens, student, build_merge_table(student), build_splitter(student))
                self.outcomes[product] = Outcomes(vocabulary, book)
                self.aligners[product] = Aligner(book, vocabulary.prefix_bytes, self.outcomes[product])
                fast[product] = PushForward(
                    book,
                    teacher_rows=vocabulary.size,
                    end_ids=ends,
                    special_ids=specials,
                    device=teacher.device,
                    tolerance=targets.tolerance if self.regimes[product] == "beam" else None,
                )
        if targets.bytes:
            expansion = byte_expansion(vocabulary)
            self.expansions[BYTES] = (expansion, build_trie(expansion))
        exact = {
            product: Refinement.make(trie, expansion, ends, np.flatnonzero(is_token), teacher.device)
            for product, (expansion, trie) in self.expansions.items()
        }
        self.pruner = None
        if targets.eps > 0:
            trie = self.expansions[BYTES][1] if targets.bytes else build_trie(byte_expansion(vocabulary))
            self.pruner = Pruner(teacher, trie, real, targets.eps)
        top_k = {product: targets.bytes_top_k if product == BYTES else targets.top_k for product in self._products()}
        masked = targets.semantics == "canonical-masked"
        self.emitter = Emitter(top_k, real, fast, exact, self.canonical, masked)
        self.widener = self._make_widener(real, specials) if self.aligners else None

    def _make_widener(self, real: torch.Tensor, specials: list[int]) -> Widener:
        targets, device, size = self.run.targets, self.teacher.device, self.vocabulary.size
        budget = 0.0 if targets.regime == "fast" else targets.max_nodes_per_token
        spending = Spending(targets.tolerance, budget, LEAST_SHARE if targets.tolerance else 0.0)
        top = KEPT_TOKENS if targets.tolerance else size
        finders = {
            product: LeafFinder(aligner.book, size, device, top=top, least=spending.least)
            for product, aligner in self.aligners.items()
        }
        heads = {p: (o.heads.of_token, o.heads.count) for p, o in self.outcomes.items()}
        return Widener(
            finders,
            self.outcomes,
            dict.fromkeys(self.aligners, spending),
            Sketcher(heads, specials, top, size, device),
            real,
            self.canonical,
            masked=targets.semantics == "canonical-masked",
            max_length=self.teacher.max_length,
        )

    def calibrate(self, documents: Sequence[Document]) -> None:
        """Learn from these documents how open leaves are usually continued (engine/calibrate.py). The same documents give
        the same means; without, open leaves are closed as if a boundary followed. Documents that are no good are left out."""
        if self.widener is None:
            return
        for document in documents:
            try:
                parts = self._work(document).parts
                hidden = hidden_states(self.teacher, parts, self.run.teacher)
                self.widener.calibrate(parts, hidden, self.teacher.logits)
            except (BadDocument, IdentityError):  # the same in every actor; it goes to quarantine with its own unit
                continue
        self.widener.continuations.close()

    def score_unit(self, documents: Sequence[Document]) -> UnitResult:
        """Score documents. Every one of them is in each product's table or in the quarantine, never both."""
        stats: dict[str, float] = defaultdict(float)
        quarantine: list[dict[str, Any]] = []
        done: dict[str, list[pa.Table]] = {product: [] for product in self._products()}
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
            if group and nodes + work.nodes > 2 * self.run.teacher.batch_tokens:
                flush()
                nodes = 0
            group.append(work)
            nodes += work.nodes
        flush()
        stats["documents"] += len(documents)
        stats["quarantined"] += len(quarantine)
        quarantine.sort(key=lambda record: record["doc_row"])
        tables = {p: pa.concat_tables([ROW_SCHEMA.empty_table(), *parts]) for p, parts in done.items()}
        return UnitResult(tables, quarantine, dict(stats))

    def _products(self) -> list[str]:
        targets = self.run.targets
        return [*([TEACHER] if targets.teacher else []), *self.students, *([BYTES] if targets.bytes else [])]

    def _work(self, document: Document) -> Work:
        """A document as what is to be scored of it. Raises BadDocument."""
        if document.problem is not None:
            raise BadDocument(*document.problem)
        if self.chat:
            return self._conversation(document)
        talk = None if self.borders is None else self.borders.parts(document.text)
        if talk is not None:
            return self._in_parts(document, talk)
        return Work(document, [self._prepare(document)])

    def _conversation(self, document: Document) -> Work:
        """One part per scored message; what stands before it, as the teacher's own template writes it, is given."""
        end, roles = self.run.targets.end, self.run.corpus.roles
        talk = seen_by(self.chat, document.messages, roles, end=end, bytes_end=BYTES_END)
        return self._in_parts(document, talk)

    def _in_parts(self, document: Document, talk: Talk) -> Work:
        """Each part behind what the teacher has read before it."""
        parts, lines = [], talk.lines
        for i, text in enumerate(talk.texts):
            given = np.array([*self.bos, *lines[TEACHER].ids[: lines[TEACHER].parts[i].begin]], np.int64)
            closed = {product: lines[product].parts[i].closed for product in self._products()}
            part = self._see(text, tuple(given.tolist()), closed)
            self._refuse_long(part)
            for product, side in part.sides.items():
                stretch = lines[product].parts[i]
                if not np.array_equal(side.ids, lines[product].ids[stretch.begin : stretch.begin + stretch.rows]):
                    raise IdentityError(f"{product}: part {i} has other tokens alone than in the line of its document")
            parts.append(part)
        return Work(document, parts, {product: lines[product] for product in self._products()})

    def _refuse_long(self, part: Prepared) -> None:
        """What is given stands before every window; without room for a text behind it nothing can be scored."""
        room = self.teacher.max_length - (BEAM_DEPTH if self.widener else 0)
        if int(part.tree.depth.max()) < room:
            return
        try:
            windows_of(part.tree, max_length=room, overlap=self.run.teacher.overlap)
        except ValueError as error:
            given = part.tree.given + 1
            raise BadDocument(
                "prompt_too_long", f"{given} teacher tokens stand before a scored part: {error}"
            ) from error

    def _prepare(self, document: Document) -> Prepared:
        """Tokens, tree and boundaries of one document. Raises BadDocument."""
        return self._see(document.text, self.bos, {p: self._end_id(p) is not None for p in self._products()})

    def _see(self, words: str, given: tuple[int, ...], closed: dict[str, bool]) -> Prepared:
        """One text behind the teacher's given tokens. closed: products that have a row for the end behind it."""
        text = words.encode("utf-8")
        sides = {TEACHER: self.vocabulary.encode(words) if words else ([], [])}
        for product, student in self.students.items():
            sides[product] = student.encode(words) if words else ([], [])
        if self.run.targets.bytes:
            sides[BYTES] = (list(text), list(range(1, len(text) + 1)))
        ids = sides[TEACHER][0]
        prefix = self.vocabulary.prefix_bytes if words else b""  # an empty text has no tokens, hence no prefix
        wanted = self._wanted(sides, len(text), len(prefix))
        tree = self.builder.build(prefix + text, ids, wanted, given, fringe=bool(self.aligners))
        out = {}
        for product in self._products():
            token_ids, byte_ends = sides[product]
            closing = ([self._end_id(product)], [len(text)]) if closed[product] else ([], [])
            side = Side(
                np.array([*token_ids, *closing[0]], np.int64),
                np.array([*byte_ends, *closing[1]], np.int64),
                closed=closed[product],
            )
            if product in self.aligners:
                side.boundaries = self.aligners[product].boundaries(tree, text, token_ids, byte_ends)
            elif product == BYTES:
                units = np.frombuffer(prefix + text, np.uint8)
                places = np.arange(1, len(units) + 1)
                side.exact = exact_side(tree, *self._refined(product), units, places, skip=len(prefix))
            elif product in self.expansions:
                places = np.array(byte_ends, np.int64) + len(prefix)
                side.exact = exact_side(tree, *self._refined(product), np.array(token_ids, np.int64), places)
            out[product] = side
        return Prepared(tree, prefix + text, out, self.canonical.states(tree, prefix + text))

    def _refined(self, product: str) -> tuple[Trie, Expansion]:
        expansion, trie = self.expansions[product]
        return trie, expansion

    def _wanted(self, sides: dict[str, tuple[list[int], list[int]]], size: int, shift: int) -> np.ndarray:
        """Bytes of prefix + text at which contexts are needed: all for bytes, else the boundaries of all students."""
        if BYTES in sides:
            return np.arange(shift, shift + size + 1)
        asked = [np.array(sides[p][1], np.int64) + shift for p in (*self.aligners, *self.expansions)]
        return np.unique(np.concatenate([[shift], *asked])) if asked else np.empty(0, np.int64)

    def _end_id(self, product: str) -> int | None:
        if not self.run.targets.end:
            return None
        if product == BYTES:
            return BYTES_END
        return (self.vocabulary if product == TEACHER else self.students[product]).eos_id

    def _score_group(self, group: list[Work], stats: dict[str, float]):
        """Yields (tables, quarantine). A group that fails is halved until the failing document stands alone."""
        if not group:
            return
        prepared = [part for work in group for part in work.parts]
        try:
            batches: list[Open] | None = None if self.widener is None else []
            hidden = hidden_states(self.teacher, prepared, self.run.teacher, self.pruner, grow=batches)
            if self.widener is not None and batches:
                evaluations = self.widener.widen(prepared, hidden, batches, self.teacher.logits)
                stats["teacher_evaluations"] += int(evaluations.sum())
            rows = self.emitter.emit(prepared, hidden, self.teacher.logits)
        except (IdentityError, torch.OutOfMemoryError) as error:
            if len(group) > 1:
                for p in prepared:
                    p.bad = None
                yield from self._score_group(group[: len(group) // 2], stats)
                yield from self._score_group(group[len(group) // 2 :], stats)
                return
            reason = "identity" if isinstance(error, IdentityError) else "oom"
            yield {}, [refusal(group[0].document, reason, str(error))]
            return
        refused = [refusal(work.document, *work.bad) for work in group if work.bad is not None]
        for product in rows:
            rows[product].mark_ends([p.sides[product].closed for p in prepared])
        good = [i for i, work in enumerate(group) if work.bad is None]
        for part in (part for i in good for part in group[i].parts):
            stats["teacher_tokens"] += len(part.tree.trunk)
            kept, tree = part.kept, part.tree
            stats["teacher_evaluations"] += (len(tree.token) if kept is None else kept.sum()) - tree.given
        stats["text_bytes"] += sum(len(group[i].document.text.encode("utf-8")) for i in good)
        keep_text, first = self.run.targets.store_text, first_parts(group)
        tables = {product: table_of(product, group, good, rows[product], keep_text=keep_text) for product in rows}
        good_parts = [part for i in good for part in range(first[i], first[i + 1])]
        for product, table in tables.items():
            _add_sums(stats, product, rows[product], good_parts, table)
        yield tables, refused


def refusal(document: Document, reason: str, detail: str) -> dict[str, Any]:
    """The quarantine record of one document: where it is, why it is out, and the hash of its text (never the text)."""
    digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest() if document.text else None
    return {
        "doc_id": document.doc_id,
        "doc_row": document.doc_row,
        "source": document.source,
        "place": document.place,
        "reason": reason,
        "detail": detail,
        "text_sha256": digest,
    }


def _add_sums(stats: dict[str, float], product: str, rows: Rows, good: list[int], table: pa.Table) -> None:
    at = np.concatenate([np.arange(rows.start[i], rows.start[i + 1]) for i in good]) if good else np.empty(0, np.int64)
    scored = at[rows.scored[at]]
    stats[f"{product}.documents"] += table.num_rows
    stats[f"{product}.positions"] += len(flat(table, "token_ids"))
    stats[f"{product}.scored"] += len(scored)
    stats[f"{product}.stored_mass_sum"] += float(np.exp(rows.logps[scored]).sum())
    for name in ("err", "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
        stats[f"{product}.{name}_sum"] += float(getattr(rows, name)[scored].sum())
    gold = rows.gold_logp[scored]
    stats[f"{product}.gold_nats_sum"] -= float(gold[np.isfinite(gold)].sum())
    stats[f"{product}.gold_impossible"] += int(np.isneginf(gold).sum())
