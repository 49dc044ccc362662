"""Stage 10: everything that one actor loads and derives once: the teacher, the vocabularies, and the stages made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from engine.alignment.boundaries import Aligner
from engine.alignment.expansion import Expansion, byte_expansion, subset_expansion
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.alignment.strings import StringRules
from engine.alignment.token_trie import Trie, build_trie
from engine.beam.frontier import Spending
from engine.beam.leaves import LeafFinder
from engine.beam.search import BeamSearch
from engine.beam.sketch import Sketcher
from engine.bpe.merges import build_merge_table
from engine.bpe.pretokenizer import build_splitter
from engine.chat.special_tokens import SpecialBorders
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext
from engine.plan.regimes import bos_of, regimes_of
from engine.plan.vocabularies import load_vocabularies
from engine.targets.emit import Emitter
from engine.targets.exact_rows import Refinement
from engine.targets.pushforward import PushForward
from engine.targets.teacher_rows import JoinedEnds, Statistics
from engine.teacher.model import load_teacher
from engine.teacher.pruning import Pruner
from schemas.errors import TeacherError
from schemas.products import BYTES, BYTES_END, HIDDEN, TEACHER
from schemas.runfile import RunConfig
from schemas.target import row_schema

KEPT_TOKENS = 128
LEAST_SHARE = 1e-4


class Loaded:
    """The loaded teacher and all that is derived from the tokenizers. Built once per actor."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        config = run.teacher
        known = load_vocabularies(run)
        self.vocabulary, self.students, self.chat = known.teacher, known.students, known.chat
        as_it_comes = self.chat[TEACHER].full if self.chat else self.vocabulary
        self.teacher = load_teacher(config, run.locate(config.model), tokenizer_end=as_it_comes.eos_id)
        self.bos = () if self.chat else bos_of(run, self.vocabulary)  # a conversation's BOS is its template's
        if self.chat:
            ends = (*self.teacher.end_ids, *([] if self.vocabulary.eos_id is None else [self.vocabulary.eos_id]))
            self.teacher = replace(self.teacher, end_ids=tuple(dict.fromkeys(ends)))
        self.regimes = regimes_of(run, self.vocabulary, self.students)
        self.products = self._asked()
        self.schemas = {product: self._schema(product) for product in self.products}
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
        self.outcomes: dict[str, StringRules] = {}
        fast: dict[str, PushForward] = {}
        for product, student in self.students.items():
            if self.regimes[product] == "subset":
                expansion = subset_expansion(vocabulary, student)
                self.expansions[product] = (expansion, build_trie(expansion))
            elif self.regimes[product] in ("fast", "beam"):
                book = RuleBook(tokens, student, build_merge_table(student), build_splitter(student))
                self.outcomes[product] = StringRules(vocabulary, book)
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
        top_k = {product: targets.bytes_top_k if product == BYTES else targets.top_k for product in self.products}
        self.emitter = Emitter(
            top_k,
            real,
            fast,
            exact,
            self.canonical,
            masked=targets.semantics == "canonical-masked",
            draws=dict.fromkeys(self.students, targets.draws) if targets.codec == "sample" else {},
            seed=targets.seed,
            statistics=Statistics.make(vocabulary, ends, teacher.device) if targets.teacher_stats else None,
        )
        self.beam_search = self._make_beam_search(real, specials) if self.aligners else None

    def _make_beam_search(self, real: torch.Tensor, specials: list[int]) -> BeamSearch:
        targets, device, size = self.run.targets, self.teacher.device, self.vocabulary.size
        budget = 0.0 if targets.regime == "fast" else targets.max_nodes_per_token
        spending = Spending(targets.tolerance, budget, LEAST_SHARE if targets.tolerance else 0.0)
        top = KEPT_TOKENS if targets.tolerance else size
        finders = {
            product: LeafFinder(aligner.book, size, device, top=top, least=spending.least)
            for product, aligner in self.aligners.items()
        }
        heads = {p: (o.heads.of_token, o.heads.count) for p, o in self.outcomes.items()}
        return BeamSearch(
            finders,
            self.outcomes,
            dict.fromkeys(self.aligners, spending),
            Sketcher(heads, specials, top, size, device),
            real,
            self.canonical,
            masked=targets.semantics == "canonical-masked",
            max_length=self.teacher.max_length,
        )

    def _asked(self) -> list[str]:
        targets = self.run.targets
        asked = {
            TEACHER: targets.teacher,
            **dict.fromkeys(self.students, True),
            BYTES: targets.bytes,
            HIDDEN: targets.hidden,
        }
        return [product for product, wanted in asked.items() if wanted]

    def _schema(self, product: str) -> pa.Schema:
        if product == HIDDEN:
            return row_schema("hidden")
        codec = self.run.targets.codec if product in self.students else "topk"
        return row_schema(codec, product == TEACHER and self.run.targets.teacher_stats)

    def refined(self, product: str) -> tuple[Trie, Expansion]:
        expansion, trie = self.expansions[product]
        return trie, expansion

    def end_id(self, product: str) -> int | None:
        if not self.run.targets.end:
            return None
        if product == BYTES:
            return BYTES_END
        return (self.vocabulary if product in (TEACHER, HIDDEN) else self.students[product]).eos_id
