"""All that an actor needs to score documents, loaded and derived once: teacher, vocabularies, and the stages made of them.

run file -> Stages, a value: nothing in it changes while documents are scored, but the calibration of its beam search
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from engine.alignment.boundaries import Aligner
from engine.alignment.expansion import Expansion, byte_expansion, subset_expansion
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.alignment.strings import StringRules
from engine.alignment.token_trie import Trie, build_trie
from engine.beam.compiled_search import CompiledSearch, Students
from engine.beam.compiled_search import Spending as ErrorSpending
from engine.beam.frontier import Spending
from engine.beam.leaves import LeafFinder
from engine.beam.search import BeamSearch
from engine.beam.sketch import Sketcher
from engine.bpe.segmenter import Segmenter, build_segmenter
from engine.bpe.vocabulary import Vocabulary
from engine.chat.conversation import ChatEncoder
from engine.chat.special_tokens import SpecialSplitter
from engine.compiled.cache import open_pair
from engine.compiled.pair import CompiledPair
from engine.compiled.walk import StudentWalk
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext
from engine.kernels import jit
from engine.plan.regimes import bos_of, is_compiled, regimes_of
from engine.plan.vocabularies import Vocabularies, load_vocabularies
from engine.push.compiled_push import CompiledPush
from engine.push.push_tables import TableStore
from engine.scoring.emit import Emitter
from engine.scoring.teacher_here import load_here
from engine.targets.exact_rows import Refinement
from engine.targets.pushforward import PushForward
from engine.targets.teacher_rows import JoinedEnds, Statistics
from engine.teacher.model import Teacher
from engine.teacher.pruning import Pruner
from schemas.errors import TeacherError, TokenizerError
from schemas.manifest import Regime
from schemas.products import BYTES, BYTES_END, HIDDEN, TEACHER
from schemas.runfile import RunConfig
from schemas.target import row_schema

KEPT_TOKENS = 128
"""Heaviest next tokens of a context that the beam search keeps one by one, where a tolerance is given; else all."""
LEAST_SHARE = 1e-4
"""Leaves of a smaller share of their boundary's mass are not looked at one by one, where a tolerance is given."""

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what) before and within steps that take their time; 0, 0 where nothing is counted."""


def silent(done: int, total: int, what: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True, eq=False)
class Stages:
    """What the run file asks for, ready to be used. Dictionaries are by product, in the order in which products are stored."""

    run: RunConfig
    # ---- texts -> tokens
    vocabulary: Vocabulary  # the teacher's, as it reads a text (in conversations: the content of a message)
    students: dict[str, Vocabulary]
    chat: dict[str, ChatEncoder]  # of conversations; else empty
    special_splitter: SpecialSplitter | None  # with [corpus] specials = "boundary"
    bos: tuple[int, ...]  # teacher tokens before every text
    # ---- what is stored
    regimes: dict[str, Regime]  # of students
    products: tuple[str, ...]
    schemas: dict[str, pa.Schema]
    # ---- tokens -> contexts and what each product makes of them
    builder: ContextBuilder
    canonical: CanonicalNext
    aligners: dict[str, Aligner]  # students of regimes fast and beam
    strings: dict[str, StringRules]  # of these, those whose open leaves are split one by one (not in `walks`)
    walks: dict[str, StudentWalk]  # of these, those that are made by compiled functions
    expansions: dict[str, tuple[Expansion, Trie]]  # subset students and bytes
    # ---- contexts -> hidden states -> rows
    teacher: Teacher
    pruner: Pruner | None  # with [targets] eps above 0
    beam_search: BeamSearch | None  # for students in `strings`
    compiled_search: CompiledSearch | None  # for those in `walks`, where evaluations are spent on them
    emitter: Emitter

    @property
    def guard(self) -> threading.RLock:
        """Held by whoever asks what is not thread-safe (scoring/ahead.py)."""
        return self.emitter.guard

    @property
    def searches(self) -> bool:
        """Whether contexts are hung off those of the text."""
        return self.beam_search is not None or self.compiled_search is not None

    def end_id(self, product: str) -> int | None:
        """The token that closes a text in this product; None when ends are not scored, or it has no such token."""
        if not self.run.targets.end:
            return None
        if product == BYTES:
            return BYTES_END
        return (self.vocabulary if product in (TEACHER, HIDDEN) else self.students[product]).eos_id


def load_stages(run: RunConfig, progress: Progress = silent, regimes: Mapping[str, Regime] | None = None) -> Stages:
    """Load the tokenizers and the teacher that a (pinned) run file names, and derive the rest. progress: told before each step.
    regimes: as for `Scorer`.

    Raises TokenizerError, TeacherError, and RunFileError for what these tokenizers do not allow.
    """
    step = "reading compiled functions" if jit.is_compiled() else "compiling functions, once on this machine"
    jit.compile_all(lambda done, total: progress(done, total, step))
    progress(0, 0, "loading the tokenizers")
    known = load_vocabularies(run)
    progress(0, 0, "loading the teacher")
    as_it_comes = known.chat[TEACHER].full if known.chat else known.teacher
    teacher = load_here(run, as_it_comes.eos_id)
    if known.chat and known.teacher.eos_id is not None:  # the end of a turn is an end, too
        teacher = replace(teacher, end_ids=tuple(dict.fromkeys((*teacher.end_ids, known.teacher.eos_id))))
    progress(0, 0, "deriving tables from the tokenizers")
    if regimes is None:
        regimes = regimes_of(run, known.teacher, known.students)
    return derive_stages(run, known, teacher, dict(regimes), progress)


def derive_stages(
    run: RunConfig,
    known: Vocabularies,
    teacher: Teacher,
    regimes: dict[str, Regime],
    progress: Progress = silent,
) -> Stages:
    """Stages from what is loaded. Raises TeacherError when the model has no output rows for tokens that texts are made of."""
    try:
        known = replace(known, teacher=known.teacher.within(teacher.vocab_rows))
    except TokenizerError as error:
        raise TeacherError(f"[teacher] {error}") from error
    vocabulary, students, targets = known.teacher, known.students, run.targets
    is_token = [b is not None or i in vocabulary.specials for i, b in enumerate(vocabulary.token_bytes)]
    products = _products(run, students)
    real = torch.tensor(is_token, device=teacher.device)  # bool [V]: some ids below V belong to no token
    ends = tuple(i for i in teacher.end_ids if i in vocabulary.specials)  # an end that is text is text
    segmenter = build_segmenter(vocabulary, run.corpus.longest_run)
    canonical = CanonicalNext(segmenter)
    bos = () if run.corpus.messages else bos_of(run, vocabulary)  # a conversation's BOS is its template's
    special_splitter = None
    if run.corpus.specials == "boundary":
        special_splitter = SpecialSplitter.make(known.by_product, teacher.end_ids, end=targets.end, given=bool(bos))
    books = _rule_books(vocabulary, students, regimes, run.corpus.longest_run)
    compiled = {p for p in books if is_compiled(run.targets, regimes[p], vocabulary, students[p])}
    strings = {p: StringRules(vocabulary, book) for p, book in books.items() if p not in compiled}
    aligners = {p: Aligner(book, vocabulary.prefix_bytes, strings.get(p)) for p, book in books.items()}
    walks = {p: StudentWalk(_pair(segmenter, books[p], progress), aligners[p]) for p in sorted(compiled)}
    for product, walk in walks.items():
        books[product].settled = walk.pair.settled  # for the few boundaries that the rules make
    expansions = _expansions(run, vocabulary, students, regimes)
    top_k = {product: targets.bytes_top_k if product == BYTES else targets.top_k for product in products}
    emitter = Emitter(
        top_k,
        real,
        {
            product: _push_forward(
                book,
                targets.tolerance if regimes[product] == "beam" and product in strings else None,
                teacher,
                vocabulary,
                ends,
            )
            for product, book in books.items()
        },
        {
            product: Refinement.make(trie, expansion, ends, np.flatnonzero(is_token), teacher.device)
            for product, (expansion, trie) in expansions.items()
        },
        noncanonical=True,
        compiled={p: _compiled_push(walk, len(real), vocabulary, ends) for p, walk in walks.items()},
        masked=targets.semantics == "canonical-masked",
        joined=_joined_ends(known, regimes, ends) if known.chat else {},
        draws=dict.fromkeys(students, targets.draws) if targets.codec == "sample" else {},
        seed=targets.seed,
        statistics=Statistics.make(vocabulary, ends, teacher.device) if targets.teacher_stats else None,
    )
    split = {product: aligner for product, aligner in aligners.items() if product not in walks}
    pruner = None
    if targets.eps > 0:
        trie = expansions[BYTES][1] if BYTES in expansions else build_trie(byte_expansion(vocabulary))
        pruner = Pruner(teacher, trie, real, targets.eps)
    return Stages(
        run=run,
        vocabulary=vocabulary,
        students=students,
        chat=known.chat,
        special_splitter=special_splitter,
        bos=bos,
        regimes=regimes,
        products=products,
        schemas={product: _schema(run, product) for product in products},
        builder=ContextBuilder(segmenter),
        canonical=canonical,
        aligners=aligners,
        strings=strings,
        walks=walks,
        expansions=expansions,
        teacher=teacher,
        pruner=pruner,
        beam_search=_beam_search(run, vocabulary, teacher, split, strings, real, canonical) if split else None,
        compiled_search=_compiled_search(run, vocabulary, teacher, regimes, walks, emitter, canonical),
        emitter=emitter,
    )


def _products(run: RunConfig, students: Sequence[str] | dict[str, Vocabulary]) -> tuple[str, ...]:
    targets = run.targets
    asked = {TEACHER: targets.teacher, **dict.fromkeys(students, True), BYTES: targets.bytes, HIDDEN: targets.hidden}
    return tuple(product for product, wanted in asked.items() if wanted)


def _schema(run: RunConfig, product: str) -> pa.Schema:
    if product == HIDDEN:
        return row_schema("hidden", sources=bool(run.corpus.parts))
    codec = "topk" if product in (TEACHER, BYTES) else run.targets.codec
    return row_schema(codec, product == TEACHER and run.targets.teacher_stats, bool(run.corpus.parts))


# ---- how each product is made ----------------------------------------------------------------------------------------


def _rule_books(
    vocabulary: Vocabulary, students: dict[str, Vocabulary], regimes: dict[str, Regime], longest_run: int
) -> dict[str, RuleBook]:
    """Of the students that are made from boundaries, regimes fast and beam."""
    tokens = TeacherTokens(vocabulary)
    return {
        product: RuleBook(tokens, build_segmenter(student, longest_run))
        for product, student in students.items()
        if regimes[product] in ("fast", "beam")
    }


def _expansions(
    run: RunConfig, vocabulary: Vocabulary, students: dict[str, Vocabulary], regimes: dict[str, Regime]
) -> dict[str, tuple[Expansion, Trie]]:
    """Of the products that are exact (lemma 12): subset students, and bytes."""
    found = {
        product: subset_expansion(vocabulary, student)
        for product, student in students.items()
        if regimes[product] == "subset"
    }
    if run.targets.bytes:
        found[BYTES] = byte_expansion(vocabulary)
    return {product: (expansion, build_trie(expansion)) for product, expansion in found.items()}


def _pair(teacher: Segmenter, book: RuleBook, progress: Progress) -> CompiledPair:
    """The pair of the teacher's and a student's tokenizer, compiled, from its files where there are any."""
    student = book.segmenter
    names = [vocabulary.name.rstrip("/").rpartition("/")[2] for vocabulary in (teacher.vocabulary, student.vocabulary)]
    return open_pair(
        teacher.vocabulary,
        student.vocabulary,
        merges=(teacher.merges, student.merges),
        splitter=student.splitter,
        progress=lambda done, total, what: progress(done, total, f"compiling {names[0]} -> {names[1]}: {what}"),
    )


def _compiled_push(walk: StudentWalk, width: int, vocabulary: Vocabulary, ends: tuple[int, ...]) -> CompiledPush:
    others = sorted(i for i in vocabulary.specials if i not in ends)
    store = TableStore(walk.pair, width)
    return CompiledPush(store, np.array(ends, np.int64), np.array(others, np.int64))


def _push_forward(
    book: RuleBook, tolerance: float | None, teacher: Teacher, vocabulary: Vocabulary, ends: tuple[int, ...]
) -> PushForward:
    return PushForward(
        book,
        teacher_rows=vocabulary.size,
        end_ids=ends,
        special_ids=sorted(vocabulary.specials),
        device=teacher.device,
        tolerance=tolerance,
    )


def _joined_ends(known: Vocabularies, regimes: dict[str, Regime], ends: tuple[int, ...]) -> dict[str, JoinedEnds]:
    """In a conversation the teacher's ends are one event for every student, also for one with its tokenizer."""
    found = {p: known.students[p].eos_id for p, regime in regimes.items() if regime == "same"}
    return {product: JoinedEnds(list(ends), end) for product, end in found.items() if end is not None}


def _beam_search(
    run: RunConfig,
    vocabulary: Vocabulary,
    teacher: Teacher,
    aligners: dict[str, Aligner],
    strings: dict[str, StringRules],
    real: torch.Tensor,
    canonical: CanonicalNext,
) -> BeamSearch:
    targets, device, size = run.targets, teacher.device, vocabulary.size
    budget = 0.0 if targets.regime == "fast" else targets.max_nodes_per_token
    spending = Spending(targets.tolerance, budget, LEAST_SHARE if targets.tolerance else 0.0)
    top = KEPT_TOKENS if targets.tolerance else size
    finders = {
        product: LeafFinder(aligner.book, size, device, top=top, least=spending.least)
        for product, aligner in aligners.items()
    }
    heads = {product: (known.heads.of_token, known.heads.count) for product, known in strings.items()}
    return BeamSearch(
        finders,
        strings,
        dict.fromkeys(aligners, spending),
        Sketcher(heads, sorted(vocabulary.specials), top, size, device),
        real,
        canonical,
        masked=targets.semantics == "canonical-masked",
        max_length=teacher.max_length,
    )


def _compiled_search(
    run: RunConfig,
    vocabulary: Vocabulary,
    teacher: Teacher,
    regimes: dict[str, Regime],
    walks: dict[str, StudentWalk],
    emitter: Emitter,
    canonical: CanonicalNext,
) -> CompiledSearch | None:
    targets, searched = run.targets, {p: walk for p, walk in walks.items() if regimes[p] == "beam"}
    if not searched or not targets.max_nodes_per_token:
        return None
    return CompiledSearch(
        Students(searched, {p: emitter.compiled[p] for p in searched}, vocabulary.token_bytes),
        ErrorSpending(targets.target_error, targets.max_nodes_per_token),
        emitter.real,
        canonical,
        masked=targets.semantics == "canonical-masked",
        max_length=teacher.max_length,
        guard=emitter.guard,
    )
