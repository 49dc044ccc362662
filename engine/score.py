"""Stage 10: a unit of documents in, one table per product out. The whole engine as one pure function.

    text ─ vocab ─▶ tokens ─ contexts ─▶ tree ─ teacher ─▶ hidden states ─ emit (rules, push-forward) ─▶ rows ─▶ table

Bad documents leave at the step that finds them, with a reason, and the others go on.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from engine.beam import Spending
from engine.boundaries import Aligner
from engine.bpe import build_merge_table
from engine.canonical import CanonicalNext
from engine.contexts import ContextBuilder
from engine.corpus import Document
from engine.emit import Emitter, Prepared, Side
from engine.evaluate import Open, hidden_states
from engine.exact import exact_side
from engine.exact_rows import Refinement
from engine.expansion import BYTES_END, Expansion, byte_expansion, subset_expansion
from engine.leaves import LeafFinder
from engine.outcomes import Outcomes
from engine.positions import Rows
from engine.prune import Pruner
from engine.pushforward import PushForward
from engine.regime import bos_of, regimes_of
from engine.rules import RuleBook, TeacherTokens
from engine.sketch import Sketcher
from engine.split import build_splitter
from engine.teacher import load_teacher
from engine.trie import Trie, build_trie
from engine.vocab import load_vocabulary
from engine.widen import Widener
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
        self.regimes = regimes_of(run, self.vocabulary, self.students)
        self.teacher = load_teacher(config, run.locate(config.model), tokenizer_end=self.vocabulary.eos_id)
        self.bos = bos_of(run, self.vocabulary)
        self._build()

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
            elif self.regimes[product] == "fast":
                book = RuleBook(tokens, student, build_merge_table(student), build_splitter(student))
                self.outcomes[product] = Outcomes(vocabulary, book)
                self.aligners[product] = Aligner(book, vocabulary.prefix_bytes, self.outcomes[product])
                fast[product] = PushForward(
                    book, teacher_rows=vocabulary.size, end_ids=ends, special_ids=specials, device=teacher.device
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
        budget = targets.max_nodes_per_token
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

    def score_unit(self, documents: Sequence[Document]) -> UnitResult:
        """Score documents. Every one of them is in each product's table or in the quarantine, never both."""
        stats: dict[str, float] = defaultdict(float)
        quarantine: list[dict[str, Any]] = []
        done: dict[str, list[pa.Table]] = {product: [] for product in self._products()}
        group: list[tuple[Document, Prepared]] = []

        def flush() -> None:
            for scored, refused in self._score_group(group, stats):
                quarantine.extend(refused)
                for product, table in scored.items():
                    done[product].append(table)
            group.clear()

        nodes = 0
        for document in documents:
            try:
                prepared = self._prepare(document)
            except BadDocument as error:
                quarantine.append(refusal(document, error.reason, error.detail))
                continue
            except IdentityError as error:  # two stages disagree about this text: a bug, but of this document only
                quarantine.append(refusal(document, "identity", str(error)))
                continue
            if group and nodes + len(prepared.tree.token) > 2 * self.run.teacher.batch_tokens:
                flush()
                nodes = 0
            group.append((document, prepared))
            nodes += len(prepared.tree.token)
        flush()
        stats["documents"] += len(documents)
        stats["quarantined"] += len(quarantine)
        quarantine.sort(key=lambda record: record["doc_row"])
        tables = {p: pa.concat_tables([ROW_SCHEMA.empty_table(), *parts]) for p, parts in done.items()}
        return UnitResult(tables, quarantine, dict(stats))

    def _products(self) -> list[str]:
        targets = self.run.targets
        return [*([TEACHER] if targets.teacher else []), *self.students, *([BYTES] if targets.bytes else [])]

    def _prepare(self, document: Document) -> Prepared:
        """Tokens, tree and boundaries of one document. Raises BadDocument."""
        if document.problem is not None:
            raise BadDocument(*document.problem)
        text = document.text.encode("utf-8")
        ids, ends = self.vocabulary.encode(document.text)
        sides = {TEACHER: (ids, ends)}
        for product, student in self.students.items():
            sides[product] = student.encode(document.text)
        if self.run.targets.bytes:
            sides[BYTES] = (list(text), list(range(1, len(text) + 1)))
        prefix = self.vocabulary.prefix_bytes
        wanted = self._wanted(sides, len(text))
        tree = self.builder.build(prefix + text, ids, wanted, self.bos, fringe=bool(self.aligners))
        out = {}
        for product in self._products():
            token_ids, byte_ends = sides[product]
            end = self._end_id(product)
            closing = ([], []) if end is None else ([end], [len(text)])
            side = Side(np.array([*token_ids, *closing[0]]), np.array([*byte_ends, *closing[1]]))
            if product in self.aligners:
                side.boundaries = self.aligners[product].boundaries(tree, text, token_ids, byte_ends)
            elif product == BYTES:
                units = np.frombuffer(prefix + text, np.uint8)
                places = np.arange(1, len(units) + 1)
                side.exact = exact_side(tree, *self._refined(product), units, places, skip=len(prefix))
            elif product in self.expansions:
                places = np.array(byte_ends) + len(prefix)
                side.exact = exact_side(tree, *self._refined(product), np.array(token_ids), places)
            out[product] = side
        return Prepared(tree, prefix + text, out, self.canonical.states(tree, prefix + text))

    def _refined(self, product: str) -> tuple[Trie, Expansion]:
        expansion, trie = self.expansions[product]
        return trie, expansion

    def _wanted(self, sides: dict[str, tuple[list[int], list[int]]], size: int) -> np.ndarray:
        """Bytes of prefix + text at which contexts are needed: all for bytes, else the boundaries of all students."""
        shift = len(self.vocabulary.prefix_bytes)
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

    def _score_group(self, group: list[tuple[Document, Prepared]], stats: dict[str, float]):
        """Yields (tables, quarantine). A group that fails is halved until the failing document stands alone."""
        if not group:
            return
        prepared = [p for _, p in group]
        try:
            batches: list[Open] | None = None if self.widener is None else []
            hidden = hidden_states(self.teacher, prepared, self.run.teacher, self.pruner, grow=batches)
            if self.widener is not None and batches:
                evaluations = self.widener.widen(prepared, hidden, batches, self.teacher.logits)
                stats["teacher_evaluations"] += int(evaluations.sum())
            rows = self.emitter.emit(prepared, hidden, self.teacher.logits)
        except (IdentityError, torch.OutOfMemoryError) as error:
            if len(group) > 1:
                for _, p in group:
                    p.bad = None
                yield from self._score_group(group[: len(group) // 2], stats)
                yield from self._score_group(group[len(group) // 2 :], stats)
                return
            reason = "identity" if isinstance(error, IdentityError) else "oom"
            yield {}, [refusal(group[0][0], reason, str(error))]
            return
        refused = [refusal(d, *p.bad) for d, p in group if p.bad is not None]
        for product in rows:
            if self._end_id(product) is not None:
                rows[product].mark_ends()
        good = [i for i, (_, p) in enumerate(group) if p.bad is None]
        for i in good:
            stats["teacher_tokens"] += len(prepared[i].tree.trunk)
            kept, tree = prepared[i].kept, prepared[i].tree
            stats["teacher_evaluations"] += (len(tree.token) if kept is None else kept.sum()) - tree.given
            stats["text_bytes"] += len(group[i][0].text.encode("utf-8"))
        tables = {product: self._table(product, group, good, rows[product]) for product in rows}
        for product, table in tables.items():
            _add_sums(stats, product, rows[product], good, table.num_rows)
        yield tables, refused

    def _table(self, product: str, group: list[tuple[Document, Prepared]], good: list[int], rows: Rows) -> pa.Table:
        spans = [(rows.start[i], rows.start[i + 1]) for i in good]
        at = np.concatenate([np.arange(a, b) for a, b in spans]) if spans else np.empty(0, np.int64)
        offsets = np.concatenate([[0], np.cumsum([b - a for a, b in spans])]).astype(np.int32)
        keep_text = self.run.targets.store_text
        flat: dict[str, np.ndarray] = {
            "token_ids": np.concatenate([group[i][1].sides[product].ids for i in good] or [np.empty(0)]).astype(
                np.int32
            ),
            "byte_end": np.concatenate([group[i][1].sides[product].ends for i in good] or [np.empty(0)]).astype(
                np.int32
            ),
            "scored": rows.scored[at],
            "topk_ids": rows.ids[at].reshape(-1),
            "topk_logps": rows.logps[at].reshape(-1).astype(np.float32),
            "flags": rows.flags[at],
        }
        for name in ("tail_logp", "gold_logp", "err", "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
            flat[name] = getattr(rows, name)[at].astype(np.float32)
        columns: dict[str, Any] = {
            "doc_id": pa.array([group[i][0].doc_id for i in good], pa.string()),
            "doc_row": pa.array([group[i][0].doc_row for i in good], pa.int64()),
            "text": pa.array([group[i][0].text if keep_text else "" for i in good], pa.string()),
        }
        for name, values in flat.items():
            width = rows.ids.shape[1] if name.startswith("topk") else 1
            kind = ROW_SCHEMA.field(name).type
            columns[name] = pa.ListArray.from_arrays(
                pa.array(offsets * width), pa.array(values, kind.value_type), type=kind
            )
        return pa.Table.from_arrays([columns[name] for name in ROW_SCHEMA.names], schema=ROW_SCHEMA)


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


def _add_sums(stats: dict[str, float], product: str, rows: Rows, good: list[int], documents: int) -> None:
    at = np.concatenate([np.arange(rows.start[i], rows.start[i + 1]) for i in good]) if good else np.empty(0, np.int64)
    scored = at[rows.scored[at]]
    stats[f"{product}.documents"] += documents
    stats[f"{product}.positions"] += len(at)
    stats[f"{product}.scored"] += len(scored)
    stats[f"{product}.stored_mass_sum"] += float(np.exp(rows.logps[scored]).sum())
    for name in ("err", "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
        stats[f"{product}.{name}_sum"] += float(getattr(rows, name)[scored].sum())
    gold = rows.gold_logp[scored]
    stats[f"{product}.gold_nats_sum"] -= float(gold[np.isfinite(gold)].sum())
    stats[f"{product}.gold_impossible"] += int(np.isneginf(gold).sum())
