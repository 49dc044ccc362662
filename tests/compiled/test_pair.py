"""A compiled pair says of every boundary what the rules say: real tokenizers, and random ones of every kind."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.alignment.openness import Openness
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.alignment.token_range import TokenRange
from engine.bpe.merges import MergeTable, build_merge_table
from engine.bpe.pending import cut_text
from engine.bpe.pretokenizer import Splitter, build_splitter
from engine.bpe.segmenter import Segmenter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.compiled.classes import agreed_cuts
from engine.compiled.pair import CompiledPair, compile_pair
from engine.compiled.pair_kernels import SURE
from engine.compiled.state import STATE_ARRAYS
from engine.kernels.jit import declared
from tests.alignment.test_openness import NFC_CHARS, changed
from tests.support.tiers import usual
from tests.support.toys import BYTE_LEVEL, SENTENCEPIECE, alphabet, random_text, toy
from tests.support.vocabularies import (
    EFFORT,
    SHARED,
    merge_table,
    needs_shared,
    segmenter,
    splitter,
    texts,
    vocabulary,
)

MODELS = Path(os.environ.get("TARGETSMITH_MODELS", SHARED / "none"))
STUDENTS = (
    "gpt2", "llama-2", "llama-3", "mistral-v0.3", "jamba-v0.1", "smollm2", "o200k_base", "deepseek-llm-7b", "gpt-neox-20b",
    "starcoder2", "qwen2.5", "babyllama-tok105", "stories260K",
)  # fmt: skip
BY_BYTES = ("llama-2", "mistral-v0.3", "jamba-v0.1", "babyllama-tok105", "stories260K")
BEFORE = (
    "",
    "the",
    "a ",
    "x\n  ",
    "it'",
    "3",
    "né",
    "\n\n",
    " ",
    "<",
    "  ",
    "\t",
    "12",
    "don't",
    "日",
    "...",
    "\r\n",
    "</",
)


def few_tokens(whole: Vocabulary, count: int, rng: random.Random) -> Vocabulary:
    """The same tokenizer with `count` of its tokens, so that the slow rules take seconds and not hours."""
    usable = [i for i, piece in enumerate(whole.token_bytes) if piece]
    chosen = set(rng.sample(usable, min(count, len(usable))))
    return replace(whole, token_bytes=[b if i in chosen else None for i, b in enumerate(whole.token_bytes)])


def pending(student: Vocabulary, split: Splitter, text: str) -> str:
    """The reduced classes of what is pending behind a text."""
    data = student.prefix_bytes + text.encode()
    cut = cut_text(split, data)
    start, unit, _ = cut.pendings([len(data)])[0]
    return split.reduce(cut.units[start:unit])


class Twins:
    """A compiled pair beside the rules of the same pair."""

    def __init__(
        self, teacher: Vocabulary, student: Vocabulary, tables: tuple[MergeTable, MergeTable], split: Splitter
    ):
        self.pair: CompiledPair = compile_pair(teacher, student, merges=tables, splitter=split)
        self.tokens = TeacherTokens(teacher)
        self.book = RuleBook(self.tokens, Segmenter(student, tables[1], split))
        self.openness = Openness(self.book.segmenter)
        self.compared, self.joined, self.opened, self.excluded = 0, 0, 0, 0

    def compare(self, left: str, lead: bytes, beginnings: Iterable[bytes]) -> None:
        """Every token that begins with one of these, behind one pending part."""
        state = self.pair.state(left, lead)
        whole = self.pair.suffixes.token_start_R[:-1]
        np.testing.assert_array_equal(state.whole_R, state.cell_U[self.pair.suffixes.suffix_of[whole]])
        assert state.cell_U.max() < state.cells
        for z in dict.fromkeys(beginnings):
            begin, end = self.tokens.range_of(z)
            if begin == end:
                continue
            rule = self.book.rule(z, lead, b"", left, ())
            number = self.pair.suffixes.suffix_of[self.pair.suffixes.token_start_R[begin:end] + len(z)]
            first, action, opened = self.pair.decode(state, state.cell_U[number])
            here = f"{self.pair.vocabulary.name} {left!r} {lead!r} {z!r}"
            np.testing.assert_array_equal(first, rule.first, err_msg=here)
            np.testing.assert_array_equal(action, rule.action, err_msg=here)
            np.testing.assert_array_equal(opened, rule.open, err_msg=here)
            cuts_inside = any(rule.variants[v][0] for v in set(rule.variant.tolist()))
            assert not (state.simple and cuts_inside), here
            self._ends(left, lead, z, begin, number)
            if not lead:
                self._settled(z, begin, end)
            self.compared += end - begin
            self.joined += int((action == 2).sum())
            self.opened += int(opened.sum())
            self.excluded += int((first < 0).sum())

    def _settled(self, z: bytes, begin: int, end: int) -> None:
        """What the rules take from a pair is what they would find out."""
        ids, every = self.tokens.ids[begin:end], np.arange(end - begin)
        span = TokenRange(self.book.segmenter, ids, [piece[len(z) :] for piece in self.tokens.pieces[begin:end]])
        np.testing.assert_array_equal(
            self.pair.settled(ids, len(z)), self.openness.settled(span, every), err_msg=repr(z)
        )

    def _ends(self, left: str, lead: bytes, z: bytes, begin: int, number: np.ndarray) -> None:
        state = self.pair.state(left, lead)
        for i in range(0, len(number), max(1, len(number) // 20)):
            r = lead + self.tokens.pieces[begin + i][len(z) :]
            span = TokenRange(self.book.segmenter, np.zeros(1, np.int64), [r])
            _, stop, sure, variant, variants = span.cuts(left)
            assert state.stop_U[number[i]] == len(self.book.segmenter.units(r, int(stop[0]))), r
            assert (state.sure_U[number[i]] == SURE) == (sure[0] and not span.composing[0]), r
            if self.pair.vocabulary.nfc and not self.pair.splitter.byte_units:
                part = span.classes[0][: span.known_classes[0]]
                ways = self.openness.cuts(left, part) if part else None
                agrees = bool(sure[0]) or (ways is not None and ways.variant == variants[variant[0]])
                assert state.agrees_U[number[i]] == (agrees and not span.composing[0]), r


@needs_shared
@pytest.mark.parametrize("name", usual(STUDENTS))
def test_real_tokenizers(name: str) -> None:
    rng, student, split = random.Random(name), vocabulary(name), splitter(name)
    for teacher in ("gpt-neox-20b", "llama-2") if name != "gpt-neox-20b" else ("gpt2", "llama-2"):
        few = few_tokens(vocabulary(teacher), 350 * EFFORT, rng)
        twins = Twins(few, student, (merge_table(teacher), merge_table(name)), split)
        pieces = twins.tokens.pieces
        some = [rng.choice(pieces)[: rng.randint(1, 3)] for _ in range(4)]
        for lead in dict.fromkeys((b"", student.prefix_bytes)):
            twins.compare("", lead, [b"", *some])
        for before in (*BEFORE, *(rng.choice(texts())[:60] for _ in range(6))):
            twins.compare(pending(student, split, before), b"", [b"", *rng.sample(some, 2)])
        assert twins.compared > 2500 and min(twins.joined, twins.opened) > 50


@needs_shared
@pytest.mark.parametrize("name", usual([name for name in STUDENTS if name not in BY_BYTES]))
def test_long_runs_have_the_state_of_shorter_ones(name: str) -> None:
    """The premise of `Splitter.shorten`, on what is pending in real text and in long runs behind it."""
    rng, student, split = random.Random(name), vocabulary(name), splitter(name)
    few = few_tokens(vocabulary("gpt-neox-20b"), 350 * EFFORT, rng)
    pair = compile_pair(few, student, merges=(merge_table("gpt-neox-20b"), merge_table(name)), splitter=split)
    lefts: set[str] = set()
    while len(lefts) < 6 * EFFORT:
        text = rng.choice(texts())
        text = text[: rng.randrange(1, min(len(text), 400) + 1)]
        if rng.random() < 0.5:
            text += rng.choice((text[-1], *"a .\n1é日'\t")) * rng.choice((5, 6, 8, 13, 40))
        left = pending(student, split, text)
        if split.shorten(left) != left:
            lefts.add(left)
    compared = 0
    for left in sorted(lefts):
        want, got = pair.make(left, b""), pair.state(left)
        compared += got is pair.state(split.shorten(left))
        for array in STATE_ARRAYS:
            np.testing.assert_array_equal(getattr(got, array), getattr(want, array), err_msg=f"{array} {left!r}")
        assert (got.variants, got.simple) == (want.variants, want.simple), left
    assert compared > 2 * EFFORT  # not where cuts lie inside: these count units


@pytest.mark.skipif(not MODELS.is_dir(), reason="TARGETSMITH_MODELS names no folder with models")
def test_tokenizers_of_real_models() -> None:
    found = {p.name: load_vocabulary(str(p)) for p in sorted(MODELS.iterdir()) if (p / "tokenizer.json").is_file()}
    tables = {name: build_merge_table(v) for name, v in found.items()}
    for name, student in found.items():
        rng, split = random.Random(name), build_splitter(student)
        for teacher in found:
            if teacher != name:
                few = few_tokens(found[teacher], 350 * EFFORT, rng)
                twins = Twins(few, student, (tables[teacher], tables[name]), split)
                some = [rng.choice(twins.tokens.pieces)[: rng.randint(1, 3)] for _ in range(3)]
                for lead in dict.fromkeys((b"", student.prefix_bytes)):
                    twins.compare("", lead, [b"", *some])
                for before in BEFORE:
                    twins.compare(pending(student, split, before), b"", [b"", *some])


@pytest.mark.parametrize(
    "change", ["plain", "ignore_merges", "added", "nfc", "nfc marks", "sentencepiece", "sentencepiece added"]
)
def test_random_tokenizers(change: str, tmp_path: Path) -> None:
    rng = random.Random(change)
    compared, joined, opened, excluded = 0, 0, 0, 0
    for number in range(6 * EFFORT):
        chars = NFC_CHARS.get(change) or (*alphabet(rng), "é")
        styles = SENTENCEPIECE if change.startswith("sentencepiece") else BYTE_LEVEL
        whole = change == "ignore_merges"
        teacher = toy(rng, tmp_path / f"{number}t", rng.choice(BYTE_LEVEL), chars, whole=rng.random() < 0.5, merges=12)
        student = toy(rng, tmp_path / f"{number}s", rng.choice(styles), chars, whole=whole, merges=rng.randint(3, 12))
        if change.endswith("added"):
            student = changed(student, "added", chars, rng, tmp_path / f"{number}c")
        elif change in NFC_CHARS:
            student = changed(student, "nfc", chars, rng, tmp_path / f"{number}c")
        split, tables = build_splitter(student), (build_merge_table(teacher), build_merge_table(student))
        twins = Twins(teacher, student, tables, split)
        beginnings = [b"", *dict.fromkeys(p[:d] for p in twins.tokens.pieces for d in range(1, len(p)))]
        for lead in dict.fromkeys((b"", student.prefix_bytes)):
            twins.compare("", lead, beginnings)
        for left in dict.fromkeys(pending(student, split, random_text(rng, chars)) for _ in range(8)):
            twins.compare(left, b"", beginnings)
        compared, joined = compared + twins.compared, joined + twins.joined
        opened, excluded = opened + twins.opened, excluded + twins.excluded
    assert compared > 900 * EFFORT and min(joined, opened) > 100 * EFFORT, (compared, joined, opened)
    assert excluded > EFFORT or not change.endswith("added"), excluded


def test_every_function_has_the_one_type_it_was_declared_for(tmp_path: Path) -> None:
    """A call with other types would compile another copy, seconds of silence."""
    rng = random.Random(0)
    for style in ("gpt2", "prepend"):
        teacher, student = (
            toy(rng, tmp_path / f"{style}{i}", s, ("a", " "), whole=False, merges=5)
            for i, s in ((0, "gpt2"), (1, style))
        )
        compile_pair(teacher, student).state("", student.prefix_bytes)
    all_types = declared()
    for function, _ in all_types:
        asked = [types for other, types in all_types if other is function]
        assert [s for s in function.signatures if s not in asked] == [], function.__name__


@needs_shared
@pytest.mark.parametrize("name", usual(["qwen2.5-subset-8000", "llama-3", "deepseek-llm-7b"]))
def test_what_all_ways_agree_on_is_what_the_slow_twin_finds(name: str) -> None:
    """Compiled probes beside `Openness.cuts`, behind hostile pending parts."""
    rng, split, openness = random.Random(name), splitter(name), Openness(segmenter(name))
    pieces = [
        "a",
        "A",
        "ß",
        "日本",
        "e\u0301",
        "😀",
        "12",
        "'",
        "'s",
        "=",
        "_",
        ".",
        "<|",
        "</",
        " ",
        "  ",
        "\n",
        "\t \n",
    ]
    agreed, asked = 0, 0
    for _ in range(12 * EFFORT):
        left = pending(vocabulary(name), split, "".join(rng.choices(pieces, k=rng.randint(0, 6))))
        texts_behind = ["".join(rng.choices(pieces, k=rng.randint(1, 4))) for _ in range(30)]
        rights = [split.canonical(split.classes(text.encode())) for text in texts_behind]
        found = agreed_cuts(split, openness, left, rights)
        assert found == [openness.cuts(left, right) for right in rights]
        agreed, asked = agreed + sum(cuts is not None for cuts in found), asked + len(rights)
    assert asked / 2 < agreed
