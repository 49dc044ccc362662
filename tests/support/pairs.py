"""Pairs of toy tokenizers through the real pipeline, and random documents of theirs.

The harness feeds a table teacher's log-probabilities to the real Emitter by node path; no engine code is replaced.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch

from engine.alignment.boundaries import Aligner
from engine.alignment.expansion import Expansion, byte_expansion, subset_expansion, subset_gap
from engine.alignment.passage import Passage, ProductView
from engine.alignment.refinement import exact_pairs
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.alignment.strings import StringRules
from engine.alignment.token_trie import Trie, build_trie
from engine.bpe.segmenter import build_segmenter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext
from engine.contexts.tree import ContextTree
from engine.scoring.emit import Emitter
from engine.targets.exact_rows import Refinement
from engine.targets.positions import TopK
from engine.targets.pushforward import PushForward
from schemas.errors import BadDocument
from schemas.products import BYTES_END
from tests.support.toys import BYTE_LEVEL, SENTENCEPIECE, TableTeacher, added_texts, alphabet, random_text, toy

STUDENT, BYTES = "student/toy", "bytes"


@dataclass(frozen=True, eq=False)
class Pair:
    """A teacher and a student tokenizer with all that the engine derives from them. subset: the student is made exactly;
    bytes: the byte product is made beside it; masked: semantics `canonical-masked`."""

    teacher: Vocabulary
    student: Vocabulary
    chars: tuple[str, ...]
    subset: bool = False
    bytes: bool = False
    masked: bool = False

    @cached_property
    def canonical(self) -> CanonicalNext:
        return CanonicalNext(build_segmenter(self.teacher))

    @cached_property
    def builder(self) -> ContextBuilder:
        return ContextBuilder(build_segmenter(self.teacher))

    @cached_property
    def aligner(self) -> Aligner:
        book = RuleBook(TeacherTokens(self.teacher), build_segmenter(self.student))
        return Aligner(book, self.teacher.prefix_bytes, StringRules(self.teacher, book))

    @cached_property
    def strings(self) -> StringRules:
        made = self.aligner.strings
        assert made is not None
        return made

    @cached_property
    def expansions(self) -> dict[str, tuple[Expansion, Trie]]:
        made = {}
        if self.subset:
            made[STUDENT] = subset_expansion(self.teacher, self.student)
        if self.bytes:
            made[BYTES] = byte_expansion(self.teacher)
        return {product: (expansion, build_trie(expansion)) for product, expansion in made.items()}

    @cached_property
    def emitter(self) -> Emitter:
        assert self.teacher.eos_id is not None
        ends, specials, device = (self.teacher.eos_id,), sorted(self.teacher.specials), torch.device("cpu")
        fast = {}
        if not self.subset:
            fast[STUDENT] = PushForward(
                self.aligner.book, teacher_rows=self.teacher.size, end_ids=ends, special_ids=specials, device=device
            )
        exact = {
            product: Refinement.make(trie, expansion, ends, np.arange(self.teacher.size), device)
            for product, (expansion, trie) in self.expansions.items()
        }
        real = torch.ones(self.teacher.size, dtype=torch.bool)
        k = max(self.student.size, self.teacher.size)
        sizes = {"teacher": k, STUDENT: k, BYTES: BYTES_END + 1}
        return Emitter(sizes, real, fast, exact, self.masked, self.masked)

    def prepare(self, text: str, bos: tuple[int, ...], *, every_byte: bool = False) -> Passage:
        """What scoring/prepare.py does for one text and one student. Raises BadDocument."""
        raw, prefix = text.encode(), self.teacher.prefix_bytes
        shift = len(prefix)
        ids, ends = self.teacher.encode(text)
        s_ids, s_ends = self.student.encode(text)
        every_byte = every_byte or self.bytes
        wanted = range(shift, shift + len(raw) + 1) if every_byte else sorted({shift, *(e + shift for e in s_ends)})
        tree = self.builder.build(prefix + raw, ids, list(wanted), bos)
        assert self.teacher.eos_id is not None and self.student.eos_id is not None
        own = ProductView(np.array([*ids, self.teacher.eos_id]), np.array([*ends, len(raw)]))
        other = ProductView(np.array([*s_ids, self.student.eos_id]), np.array([*s_ends, len(raw)]))
        sides = {"teacher": own, STUDENT: other}
        if self.subset:
            expansion, trie = self.expansions[STUDENT]
            other.exact = exact_pairs(tree, trie, expansion, np.array(s_ids), np.array(s_ends) + shift)
        else:
            other.boundaries = self.aligner.boundaries(tree, raw, s_ids, s_ends)
        if self.bytes:
            expansion, trie = self.expansions[BYTES]
            data = np.frombuffer(prefix + raw, np.uint8)
            exact = exact_pairs(tree, trie, expansion, data, np.arange(1, len(data) + 1), skip=shift)
            sides[BYTES] = ProductView(
                np.array([*raw, BYTES_END]), np.array([*range(1, len(raw) + 1), len(raw)]), exact=exact
            )
        illegal = self.canonical.lists(self.canonical.states(tree, prefix + raw)) if self.masked else None
        return Passage(tree, prefix + raw, sides, illegal)

    def emit(
        self,
        docs: list[Passage],
        table: TableTeacher,
        *,
        broken: set[tuple[int, int]] | None = None,
        emitter: Emitter | None = None,
    ) -> dict[str, TopK]:
        """The real Emitter, or another one; `broken`: (document, node) whose row of log-probabilities is NaN."""
        where = [(i, node) for i, doc in enumerate(docs) for node in range(len(doc.tree.token))]

        def logits(hidden_C1: torch.Tensor) -> torch.Tensor:
            rows = []
            for number in hidden_C1[:, 0].long().tolist():
                i, node = where[number]
                if (i, node) in (broken or ()):
                    rows.append(np.full(self.teacher.size, np.nan))
                else:
                    rows.append(table.logp(path_of(docs[i].tree, node, self.teacher)))
            return torch.from_numpy(np.array(rows))

        rows = (emitter or self.emitter).emit(docs, torch.arange(len(where), dtype=torch.float64)[:, None], logits)
        return cast(dict[str, TopK], rows)


def path_of(tree: ContextTree, node: int, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The text tokens from the root to a node, BOS left out."""
    path: list[int] = []
    while node >= 0:
        path.append(int(tree.token[node]))
        node = int(tree.parent[node])
    return tuple(t for t in reversed(path) if t not in vocabulary.specials)


def added_pair(rng: random.Random, folder: Path) -> Pair:
    """`random_pair` with added texts on both sides, such that one may begin, end or lie in another."""
    return random_pair(rng, folder, added=True)


def added_bytes(rng: random.Random, folder: Path) -> Pair:
    """The same, with bytes as a product."""
    pair = random_pair(rng, folder, added=True)
    return Pair(pair.teacher, pair.student, pair.chars, bytes=True)


def random_pair(rng: random.Random, folder: Path, *, added: bool = False) -> Pair:
    """Two random tokenizers over one alphabet, of any two styles. added: with added texts, but where these would be barred."""
    chars = alphabet(rng)
    if added:  # brute force reads half a character without its added texts
        chars = tuple(c for c in chars if c.isascii())
    name = "".join(rng.choices(string.ascii_lowercase, k=12))
    styles = [rng.choice(BYTE_LEVEL * 2 + SENTENCEPIECE) for _ in range(2)]
    sides = [
        toy(
            rng,
            folder / name / str(i),
            style,
            chars,
            whole=rng.random() < 0.3,
            merges=rng.randint(3, 10),
            added=added_texts(rng, chars) if added and style != "prepend" else (),
        )
        for i, style in enumerate(styles)
    ]
    return Pair(sides[0], sides[1], chars)


NFC_ALPHABETS = (
    ("a", "e", "\u0301", "é", " "),
    ("o", " ", "\u0304", "\u0328", "ō", "ǫ", "ǭ"),  # two marks, which NFC puts in order
)


def nfc_pair(rng: random.Random, folder: Path) -> Pair:
    """A teacher without normaliser, a student with NFC."""
    chars, name = rng.choice(NFC_ALPHABETS), "".join(rng.choices(string.ascii_lowercase, k=12))
    styles = [rng.choice(("gpt2", "llama3", "none")) for _ in range(2)]
    teacher, _ = (
        toy(rng, folder / name / str(i), style, chars, whole=False, merges=rng.randint(4, 10))
        for i, style in enumerate(styles)
    )
    file = folder / name / "1" / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["normalizer"] = {"type": "NFC"}
    file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    return Pair(teacher, load_vocabulary(str(file.parent)), chars)


def subset_of(rng: random.Random, teacher: Vocabulary, folder: Path) -> Vocabulary:
    """A student made of the first merges of a teacher: its ids shuffled, tokens that only later merges make left out."""
    spec = json.loads(teacher.tokenizer.to_str())
    model = spec["model"]
    merges = model["merges"]
    model["merges"] = merges[: rng.randrange(len(merges) + 1)]
    parts = {part for pair in model["merges"] for part in (*pair, "".join(pair))}
    made = {"".join(pair) for pair in merges}
    whole = [w for w in model["vocab"] if len(w) > 1 and w not in made and not w.startswith("<")]
    dropped = {w for w in made - parts if len(w) > 1} | {w for w in whole if rng.random() < 0.5}
    names = [t for t in model["vocab"] if t not in dropped]
    rng.shuffle(names)
    model["vocab"] = {name: i for i, name in enumerate(names)}
    for token in spec["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    names_file = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names_file), encoding="utf-8")
    return load_vocabulary(str(folder))


def lacking_pair(rng: random.Random, folder: Path) -> Pair:
    """A random teacher with added texts, and a subset of it that lacks at least one of them. The model's token ids stay first."""
    while True:
        chars = tuple(c for c in alphabet(rng) if c.isascii())
        style, name = (
            rng.choice([s for s in BYTE_LEVEL * 2 + SENTENCEPIECE if s != "prepend"]),
            folder / f"{rng.randrange(1 << 40)}",
        )
        texts = added_texts(rng, chars)
        teacher = toy(rng, name / "t", style, chars, whole=False, merges=rng.randint(3, 12), added=texts)
        spec = json.loads(teacher.tokenizer.to_str())
        model, kept = spec["model"], rng.sample(texts, rng.randrange(len(texts)))
        model["merges"] = model["merges"][: rng.randrange(len(model["merges"]) + 1)]
        spec["added_tokens"] = [t for t in spec["added_tokens"] if t["special"] or t["content"] in kept]
        for i, token in enumerate(t for t in spec["added_tokens"] if t["content"] not in model["vocab"]):
            token["id"] = len(model["vocab"]) + i
        (name / "s").mkdir()
        (name / "s" / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        names_file = {"bos_token": "<s>", "eos_token": "</s>"}
        (name / "s" / "tokenizer_config.json").write_text(json.dumps(names_file), encoding="utf-8")
        student = load_vocabulary(str(name / "s"))
        if subset_gap(teacher, student) is None:
            return Pair(teacher, student, chars, subset=True, bytes=True)


def subset_pair(rng: random.Random, folder: Path) -> Pair:
    """A random teacher and a subset of it. Without `ignore_merges` every beginning of a merge list is one."""
    while True:
        chars = alphabet(rng)
        style = rng.choice(BYTE_LEVEL * 2 + SENTENCEPIECE)
        name = folder / f"{rng.randrange(1 << 40)}"
        teacher = toy(rng, name / "t", style, chars, whole=rng.random() < 0.3, merges=rng.randint(3, 12))
        student = subset_of(rng, teacher, name / "s")
        if subset_gap(teacher, student) is None:
            return Pair(teacher, student, chars, subset=True, bytes=True)
        assert teacher.ignore_merges, name


@dataclass
class Case:
    """One random document of one pair, ready to be emitted. every_byte: contexts at all bytes, not at boundaries only."""

    pair: Pair
    table: TableTeacher
    text: str
    bos: tuple[int, ...]
    every_byte: bool
    doc: Passage

    def __str__(self) -> str:
        sides = [f"{v.name}: {v.kind} ignore_merges={v.ignore_merges}" for v in (self.pair.teacher, self.pair.student)]
        return f"{self.text!r} bos {self.bos} every byte {self.every_byte} masked {self.table.masked}; {sides}"


def cases(
    rng: random.Random,
    folder: Path,
    count: int,
    make_pair: Callable[[random.Random, Path], Pair],
    *,
    masked: float = 0.3,
    texts: int = 8,
    longest: int = 8,
) -> Iterator[Case]:
    """`count` random documents; a new pair of tokenizers and a new teacher after every `texts` of them."""
    done = 0
    while done < count:
        pair = make_pair(rng, folder)
        hidden = rng.random() < masked
        table = TableTeacher(pair.teacher, pair.chars, rng.randrange(1 << 30), masked=hidden, order=rng.choice((1, 2)))
        assert pair.teacher.bos_id is not None
        for _ in range(texts):
            text = table.sample(rng, 8) if hidden else random_text(rng, pair.chars, longest)
            bos = (pair.teacher.bos_id,) if rng.random() < 0.8 else ()
            every_byte = rng.random() < 0.15
            if not text:
                continue
            try:
                doc = pair.prepare(text, bos, every_byte=every_byte)
            except BadDocument as error:
                assert error.reason in ("not_reversible", "added_token") or (error.reason == "too_short" and not bos), (
                    error
                )
                continue
            done += 1
            yield Case(pair, table, text, bos, every_byte, doc)


def stored(rows: TopK, at: int, size: int) -> np.ndarray:
    q = np.zeros(size)
    here = rows.ids[at] >= 0
    q[rows.ids[at][here]] = np.exp(rows.logps[at][here])
    return q
