"""Boundaries as arrays against `Aligner` on texts of all kinds, for all tokenizers and random ones; pending parts at every unit
against the splitter."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from engine.alignment.boundaries import Aligner
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.alignment.student_view import NO_STATE, StudentView
from engine.bpe.pending import cut_text
from engine.bpe.segmenter import Segmenter, build_segmenter
from engine.bpe.utf8 import is_continuation, valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary
from engine.compiled.automaton import PendingAutomaton
from engine.compiled.pair import CompiledPair, compile_pair
from engine.compiled.state import State
from engine.compiled.walk import StudentWalk
from engine.compiled.words import with_words
from engine.contexts.builder import ContextBuilder
from engine.contexts.tree import ContextTree
from schemas.errors import BadDocument
from tests.alignment.test_openness import NFC_CHARS, changed
from tests.compiled.test_pair import few_tokens
from tests.support.tiers import usual
from tests.support.toys import BYTE_LEVEL, SENTENCEPIECE, alphabet, random_text, toy
from tests.support.vocabularies import (
    ALL,
    EFFORT,
    builder,
    merge_table,
    needs_shared,
    segmenter,
    splitter,
    texts,
    vocabulary,
)
from tests.support.vocabularies import BYTE_LEVEL as REAL_BYTE_LEVEL

HOSTILE = (
    " ", "  ", "   ", "\n", "\r\n", "\t", "'", "’s", "'s", "n't", '"', "1", "23", "4567", "．", "日本", "語", "é", "e\u0301", "ß",
    "😀", "👨‍👩‍👧", "<", "<|", "</", "tool_call>", "<tool_call>", "a", "The", "quick", "\u00a0", "।", "नमस्ते", "_", "--",
    "----------",     "x = {", "      ", "\n\n", "ø", "٣", "Ⅷ", "A", "aB", "ꙮ",
)  # fmt: skip


def hostile(rng: random.Random, pieces: int) -> str:
    return "".join(rng.choice(HOSTILE) * rng.choice((1, 1, 1, 2, 5)) for _ in range(pieces))


def same(one: State, other: State) -> None:
    for name in ("cell_U", "join_C", "odd_column", "odd_open", "odd_join", "stop_U", "sure_U"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.simple == other.simple


def twins_of(name: str, teacher: str, rng: random.Random) -> Twins:
    few = few_tokens(vocabulary(teacher), 150, rng)
    tables = merge_table(teacher), merge_table(name)
    pair = compile_pair(few, vocabulary(name), merges=tables, splitter=splitter(name))
    return Twins(few, builder(teacher), pair, segmenter(name))


@dataclass
class Twins:
    """The walk of a pair beside its aligner. teacher: with few of its tokens for the ranges, all of them for contexts."""

    teacher: Vocabulary
    contexts: ContextBuilder
    pair: CompiledPair
    student: Segmenter
    counted: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("boundaries", "slow", "inside", "leaves", "nodes", "words"), 0)
    )

    def __post_init__(self) -> None:
        self.tokens = TeacherTokens(self.teacher)
        self.aligner = Aligner(RuleBook(self.tokens, self.student), self.teacher.prefix_bytes)
        self.walk = StudentWalk(self.pair, self.aligner)

    def compare(self, text: str, *, bos: bool) -> None:
        raw, prefix = text.encode(), self.teacher.prefix_bytes
        ids, ends = self.student.vocabulary.encode(text)
        places = sorted({len(prefix), *(e + len(prefix) for e in ends)})
        first = self.teacher.bos_ids if bos and self.teacher.bos_ids else ()
        tree = self.contexts.build(prefix + raw, self.contexts.vocabulary.encode(text)[0], places, tuple(first))
        view = self.walk.view(tree, raw, list(ids), list(ends))
        self._boundaries(view, tree, raw, list(ids), list(ends))
        self._nodes(view, tree, raw)

    def _boundaries(self, view: StudentView, tree: ContextTree, raw: bytes, ids: list[int], ends: list[int]) -> None:
        data = self.teacher.prefix_bytes + raw
        wanted = self.aligner.boundaries(tree, raw, ids, ends)
        np.testing.assert_array_equal(view.place_K, [b.place for b in wanted])
        np.testing.assert_array_equal(view.last_K, [b.last for b in wanted])
        assert sorted(view.slow) == np.flatnonzero(view.slow_K).tolist()
        for k, b in enumerate(wanted):
            here = f"{self.student.vocabulary.name} {data[max(0, b.place - 20) : b.place]!r} | {data[b.place :][:20]!r}"
            mine = slice(view.leaf_start[k], view.leaf_start[k + 1])
            leaves = {
                (int(n), data[tree.end[n] : b.place]): (int(lo), int(hi), int(d))
                for n, lo, hi, d in zip(
                    view.leaf_node[mine], view.leaf_lo[mine], view.leaf_hi[mine], view.leaf_depth[mine], strict=True
                )
            }
            rules = {(n, data[tree.end[n] : b.place]): rule for n, rule in b.leaves}
            assert leaves.keys() == rules.keys() and len(rules) == len(b.leaves) == mine.stop - mine.start, here
            assert view.at_node[view.at_start[k] : view.at_start[k + 1]].tolist() == b.at, here
            f = slice(view.fringe_start[k], view.fringe_start[k + 1])
            assert list(zip(view.fringe_node[f], view.fringe_token[f], strict=True)) == b.fringe, here
            if b.at:
                assert view.end_counts_K[k] == b.end_counts, here
            self.counted["boundaries"] += 1
            self.counted["slow"] += int(view.slow_K[k])
            self.counted["inside"] += is_continuation((data + b"\0")[b.place]) and not view.slow_K[k]
            assert (view.state_K[k] == NO_STATE) == view.slow_K[k]
            for (n, z), (lo, hi, depth) in leaves.items():
                assert (lo, hi) == self.tokens.range_of(z) and depth == len(z), here
                if view.slow_K[k]:
                    continue
                state = view.states[view.state_K[k]]
                ends_of = self.pair.suffixes.token_start_R[lo:hi] + depth
                first, action, opened = self.pair.decode(state, state.cell_U[self.pair.suffixes.suffix_of[ends_of]])
                rule = rules[n, z]
                np.testing.assert_array_equal(first, rule.first, err_msg=here)
                np.testing.assert_array_equal(action, rule.action, err_msg=here)
                np.testing.assert_array_equal(opened, rule.open, err_msg=here)
                self.counted["leaves"] += 1
        for k, b in view.slow.items():
            assert {(n, rule.first.tobytes()) for n, rule in b.leaves} == {
                (n, rule.first.tobytes()) for n, rule in wanted[k].leaves
            }
            assert (b.place, b.last, b.at, b.fringe, b.end_counts) == (
                wanted[k].place, wanted[k].last, wanted[k].at, wanted[k].fringe, wanted[k].end_counts,
            )  # fmt: skip

    def _nodes(self, view: StudentView, tree: ContextTree, raw: bytes) -> None:
        """What is pending where contexts end, asked of the splitter without shortened runs."""
        split, own = self.student.splitter, self.student.vocabulary.prefix_bytes
        cut, shift = cut_text(split, own + raw), len(own) - len(self.teacher.prefix_bytes)
        ends = sorted({int(e) + shift for e in tree.end if e + shift >= 0})
        pendings = dict(zip(ends, cut.pendings(ends), strict=True))
        for node, end in enumerate(tree.end.tolist()):
            if end + shift < 0:
                assert view.node_state_N[node] == NO_STATE
                continue
            start, unit, begin = pendings[end + shift]
            assert view.node_begin_N[node] == begin - shift
            if view.node_state_N[node] != NO_STATE:
                behind = np.frombuffer(cut.data[end + shift : end + shift + 1], np.uint8)
                assert cut.byte_of[unit] == end + shift and not is_continuation(behind).any()
                pending = cut.data[begin : end + shift]
                words = self.aligner.book.whole_words_after(pending, b"", len(pending.decode()))
                state = self.pair.state(split.reduce(cut.units[start:unit]))
                same(view.states[view.node_state_N[node]], with_words(self.pair, state, words, {}) if words else state)
                self.counted["words"] += bool(words)
                self.counted["nodes"] += 1


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_real_tokenizers(name: str) -> None:
    rng = random.Random(name)
    twins = twins_of(name, rng.choice([t for t in ("smollm2", "llama-2") if t != name]), rng)
    chosen = [text[:200] for text in rng.sample(texts(), 2 * EFFORT)] + [hostile(rng, 10) for _ in range(2 * EFFORT)]
    for i, text in enumerate(chosen):
        try:
            twins.compare(text, bos=i % 2 == 0)
        except BadDocument as error:
            assert error.reason in ("too_short", "not_reversible", "unknown_token", "added_token")
    assert min(twins.counted["leaves"], twins.counted["nodes"]) > 20, twins.counted


@pytest.mark.parametrize(
    "change", ["plain", "ignore_merges", "added", "nfc", "nfc marks", "sentencepiece", "sentencepiece added"]
)
def test_random_tokenizers(change: str, tmp_path: Path) -> None:
    rng, slow, inside, leaves = random.Random(change), 0, 0, 0
    for number in range(4 * EFFORT):
        chars = NFC_CHARS.get(change) or (*alphabet(rng), "é")
        styles = SENTENCEPIECE if change.startswith("sentencepiece") else BYTE_LEVEL
        teacher_style = rng.choice((*BYTE_LEVEL, *SENTENCEPIECE))
        teacher = toy(rng, tmp_path / f"{number}t", teacher_style, chars, whole=rng.random() < 0.5, merges=12)
        whole = change == "ignore_merges"
        student = toy(rng, tmp_path / f"{number}s", rng.choice(styles), chars, whole=whole, merges=rng.randint(3, 12))
        if change.endswith("added"):
            student = changed(student, "added", chars, rng, tmp_path / f"{number}c")
        elif change in NFC_CHARS:
            student = changed(student, "nfc", chars, rng, tmp_path / f"{number}c")
        own = build_segmenter(student)
        pair = compile_pair(teacher, student, splitter=own.splitter)
        twins = Twins(teacher, ContextBuilder(build_segmenter(teacher)), pair, own)
        for i in range(12):
            try:
                twins.compare(random_text(rng, chars, 14), bos=i % 3 > 0)
            except BadDocument as error:
                assert error.reason in ("too_short", "not_reversible", "unknown_token", "added_token")
        slow, leaves = slow + twins.counted["slow"], leaves + twins.counted["leaves"]
        inside += twins.counted["inside"]
    assert leaves > 250 and (slow if change.startswith(("ignore", "sentence")) else inside) > 10


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_pending_parts_at_every_unit(name: str) -> None:
    rng, split = random.Random(name), splitter(name)
    automaton = PendingAutomaton(split)
    for text in [*(t[:400] for t in rng.sample(texts(), 5 * EFFORT)), *(hostile(rng, 20) for _ in range(5 * EFFORT))]:
        data = text.encode()
        cut = cut_text(split, data)
        state, begin, _ = automaton.walk(data)
        wanted = cut.pendings(cut.byte_of.tolist())
        assert begin.tolist() == [start for start, _, _ in wanted]
        for (start, unit, _), number in zip(wanted, state.tolist(), strict=True):
            kept, whole = (split.reduce(split.fold(u)) for u in (automaton.strings[number], cut.units[start:unit]))
            assert kept == whole if split.byte_units else split.disown(kept) == split.disown(whole)
        parts, units = automaton.strings, len(automaton.strings)
        automaton.walk(data)
        assert automaton.strings is parts and len(parts) == units  # what is known is not made again


@needs_shared
@pytest.mark.parametrize("name", usual(REAL_BYTE_LEVEL))
def test_a_long_run_is_cut_like_a_short_one(name: str) -> None:
    rng, split, student = random.Random(name), splitter(name), vocabulary(name)
    pair = twins_of(name, "llama-2", rng).pair
    shortened, runs = 0, ["x" + "a" * 30, " " * 40, "\n" + "-" * 25]
    for _ in range(3 * EFFORT):
        runs.append(
            rng.choice((" ", "a", "\n", "\t "))
            + rng.choice("A1.日é'\t-") * rng.randint(4, 60)
            + rng.choice(("", "b", " "))
        )
    for text in runs:
        data = student.prefix_bytes + text.encode()
        cut = cut_text(split, data)
        start, unit, _ = cut.pendings([len(data)])[0]
        left = cut.units[start:unit]
        short = split.shorten(left)
        shortened += len(short) < len(left)
        same(pair.state(short), pair.state(left))
    assert shortened >= 2


@needs_shared
@pytest.mark.parametrize("name", usual(REAL_BYTE_LEVEL))
def test_cuts_inside_are_known_without_a_state(name: str) -> None:
    """For ends of texts as a beam asks for them: whether their states have variants with a cut inside."""
    rng, split = random.Random(name), splitter(name)
    twins, automaton, found = twins_of(name, "smollm2", rng), PendingAutomaton(split), list[bool]()
    pair = twins.pair
    pieces = [p.decode() for p in vocabulary("smollm2").token_bytes if p and valid_utf8_prefix(p) == len(p)]
    for text in [
        *rng.sample(pieces, 4 * EFFORT),
        " \n",
        "\n \n",
        "a  ",
        "  \t",
        " \n  ",
        *(hostile(rng, 6) for _ in range(3)),
    ]:
        left = split.reduce(automaton.strings[int(automaton.walk(text.encode())[0][-1])])
        found.append(pair.cuts_inside(left))
        assert found[-1] == any(inside for inside, _ in pair.state(left).variants), text
    assert len({*found}) == 2 or "deepseek" in name
    walk, slow = (StudentWalk(pair, twins.aligner) for _ in range(2))
    ends = (" \n", "a", "  \n", "x = ", "\n ", "'", "12", "--")
    asked = [walk.may_cut_inside(text.encode()) for text in ends]
    made = len(walk.pending_states.states)
    for text, told in zip(ends, asked, strict=True):
        state = int(slow.pending_states.at(text.encode(), np.array([0]), np.array([len(text)])).state_I[1])
        assert told == (state != NO_STATE and slow.pending_states.units_of[state] > 0), text
    assert made < len(slow.pending_states.states)


def test_a_pending_part_that_is_too_long(tmp_path: Path) -> None:
    rng, chars = random.Random(1), ("a", " ")
    teacher = toy(rng, tmp_path / "t", "digits", chars, whole=False, merges=[("a", "a")])
    student = toy(rng, tmp_path / "s", "gpt2", chars, whole=False, merges=[("a", "a")])
    own = build_segmenter(student)
    aligner = Aligner(RuleBook(TeacherTokens(teacher), own), b"")
    walk = StudentWalk(compile_pair(teacher, student, splitter=own.splitter), aligner)
    own.splitter.__dict__["longest_pending"] = 7  # of eight that are kept of a run
    raw = b"a a " + b"a" * 5000
    ids, ends = student.encode(raw.decode())
    tree = ContextBuilder(build_segmenter(teacher)).build(b"a a", teacher.encode("a a")[0], [0], (1,))
    found = []
    for view in (walk.view, aligner.boundaries):
        with pytest.raises(BadDocument) as error:
            view(tree, raw, list(ids), list(ends))
        found.append((error.value.reason, str(error.value)))
    assert found[0] == found[1] and found[0][0] == "too_long"
