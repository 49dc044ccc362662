"""A leaf that is called decided does not change, whatever follows: the tokenizers library reads the texts, nothing else.

TARGETSMITH_EFFORT=n multiplies the number of random cases by n.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.alignment.boundaries import Aligner
from engine.alignment.openness import Openness
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.alignment.token_range import FollowedRange, TokenRange
from engine.bpe.pending import cut_text
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter, build_segmenter
from engine.bpe.utf8 import characters_from, valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from schemas.errors import BadDocument
from tests.support.oracle import encode_closed
from tests.support.pairs import NFC_ALPHABETS, STUDENT, Pair, path_of
from tests.support.tiers import usual
from tests.support.toys import (
    BYTE_LEVEL,
    SENTENCEPIECE,
    TableTeacher,
    alphabet,
    completions,
    random_text,
    strings,
    toy,
)
from tests.support.vocabularies import EFFORT, merge_table, needs_shared, save, segmenter, texts, vocabulary

STUDENTS = (
    "gpt2", "llama-2", "llama-3", "mistral-v0.3", "smollm2", "o200k_base", "deepseek-llm-7b", "gpt-neox-20b",
)  # fmt: skip


NFC_CHARS = {"nfc": ("e", "b", " ", "é", "\u0301"), "nfc marks": NFC_ALPHABETS[1]}


def openness_of(student: Vocabulary) -> Openness:
    return Openness(build_segmenter(student))


@pytest.mark.parametrize("seed", range(2 * EFFORT))
def test_inside_one_pre_token_decided_is_exactly_what_never_changes(seed: int, tmp_path: Path):
    """Without a pre-tokenizer, every string is inside one pre-token, and a token has at most four characters: what four
    more characters do not change is decided, and nothing else (lemma 15 loses nothing there)."""
    rng, counts = random.Random(seed), [0, 0]
    for number in range(30):
        chars = ("a", "b", "s") if number % 2 else ("a", "b")
        student = toy(rng, tmp_path / str(number), "none", chars, whole=False, merges=rng.randint(2, 14))
        openness, tails = openness_of(student), strings(chars, 4)
        for s in strings(chars, 4)[1:]:
            firsts = {student.tokenizer.encode(s + w, add_special_tokens=False).ids[0] for w in tails}
            assert openness.decided(s.encode()) == (len(firsts) == 1), (student.name, s, firsts)
            counts[len(firsts) == 1] += 1
    assert min(counts) > 150


@pytest.mark.parametrize("style", ["never", "bare"])
def test_characters_without_a_token_are_known_as_well(style: str, tmp_path: Path):
    """SentencePiece: `decided` of whole characters, some of which are spelt in bytes."""
    rng, found = random.Random(style), 0
    for number in range(10 * EFFORT):
        chars = ("a", " ", "é")
        student = toy(rng, tmp_path / str(number), style, chars, whole=False, merges=rng.randint(2, 10))
        openness = openness_of(student)
        for s in strings(chars, 3)[1:]:
            pieces = openness.segmenter.splitter.pieces(s.encode().decode("latin-1"))
            if len(pieces) > 1 or not openness.decided(s.encode()):
                continue
            for w in strings(chars, 3):
                ids = student.tokenizer.encode(s + w, add_special_tokens=False).ids
                assert ids[0] == student.bpe(s.encode())[0], (student.name, s, w)
            found += 1
    assert found > 50


def changed(student: Vocabulary, change: str, chars: tuple[str, ...], rng: random.Random, to: Path) -> Vocabulary:
    """The same tokenizer with an added text of two or three characters, or with NFC."""
    spec = json.loads(student.tokenizer.to_str())
    if change.startswith("nfc"):
        spec["normalizer"] = {"type": "NFC"}
    else:
        ids = spec["model"]["vocab"]
        for hole in sorted(set(range(len(ids))) - set(ids.values())):  # the library numbers added tokens by their count
            ids[f"<hole{hole}>"] = hole
        text = "".join(rng.choices(chars, k=rng.choice((2, 3))))
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        spec["added_tokens"].append({"id": ids.get(text, max(ids.values()) + 1), "content": text, **flags})
    return load_vocabulary(save(spec, to, {"bos_token": "<s>", "eos_token": "</s>"}))


def pairs_of(rng: random.Random, folder: Path, change: str, count: int) -> Iterator[tuple[Pair, str]]:
    """Random pairs and texts; the student has what `change` names."""
    for number in range(count):
        chars = NFC_CHARS.get(change) or alphabet(rng)
        styles = SENTENCEPIECE if change == "sentencepiece" else BYTE_LEVEL
        teacher = toy(rng, folder / f"{number}t", rng.choice(BYTE_LEVEL), chars, whole=False, merges=rng.randint(3, 10))
        whole = change == "ignore_merges"
        student = toy(rng, folder / f"{number}s", rng.choice(styles), chars, whole=whole, merges=rng.randint(3, 10))
        if change == "added" or change in NFC_CHARS:
            student = changed(student, change, chars, rng, folder / f"{number}c")

        pair = Pair(teacher, student, chars)
        for _ in range(4):
            yield pair, random_text(rng, chars)


@pytest.mark.parametrize("change", ["plain", "ignore_merges", "added", "nfc", "nfc marks", "sentencepiece"])
def test_no_continuation_changes_a_decided_leaf(
    change: str, tmp_path: Path, record_property: Callable[[str, object], None]
):
    """All leaves of random documents against all continuations of up to three characters, read as whole texts."""
    rng, decided, open_, varying = random.Random(change), 0, 0, 0
    for pair, text in pairs_of(rng, tmp_path, change, 5 * EFFORT):
        table = TableTeacher(pair.teacher, pair.chars, 0, masked=False)
        assert pair.teacher.bos_id is not None
        try:
            doc = pair.prepare(text, (pair.teacher.bos_id,))
        except BadDocument as error:
            assert error.reason == "not_reversible", error
            continue
        ids = pair.student.encode(text)[0]
        tails = [t.encode() for t in strings(pair.chars, 3 if len(pair.chars) < 4 else 2)]
        boundaries = doc.views[STUDENT].boundaries
        assert boundaries is not None
        for k, boundary in enumerate(boundaries):
            claims: dict[bytes, tuple[int, bool]] = {}
            for node, rule in boundary.leaves:
                here = table.bytes_of(path_of(doc.tree, node, pair.teacher))
                tokens, first, is_open, _ = pair.aligner.book.resolved(rule, boundary.last)
                for token, answer, undecided in zip(tokens.tolist(), first.tolist(), is_open.tolist(), strict=True):
                    if token in table.usable:
                        claims[here + (pair.teacher.token_bytes[token] or b"")] = answer, undecided
            for head, (answer, undecided) in claims.items():
                found = set()
                for full in (whole + tail for whole in completions(head, table.two_bytes) for tail in tails):
                    got = encode_closed(pair.student, full)
                    found.add(got[k] if got[:k] == ids[:k] and len(got) > k else -1)
                if not found:
                    continue  # bytes that begin no character of the alphabet
                assert undecided or found == {answer}, (pair.student.name, text, k, head, answer, found)
                decided += not undecided
                open_ += undecided
                varying += undecided and len(found) > 1
    print(f"{change}: {decided} leaves decided, {open_} open, of which {varying} change")
    record_property("decided, open, open and changing", (decided, open_, varying))
    assert decided > 30 * EFFORT and open_ > 150 * EFFORT and varying > 0.3 * open_


@pytest.mark.parametrize("style", ["none", "gpt2", "llama3", "bare"])
@pytest.mark.parametrize("whole", [False, True])
def test_followed_text_settles_like_the_range_built_from_scratch(style: str, whole: bool, tmp_path: Path):
    """The short way through lemma 2 gives what `decided` gives for each string."""
    rng, short = random.Random(f"{style} {whole}"), 0
    for number in range(12):
        chars = alphabet(rng)
        student = toy(rng, tmp_path / str(number), style, chars, whole=whole, merges=rng.randint(3, 12))
        openness, pieces = openness_of(student), [t.encode() for t in strings(chars, 3)[1:]]
        every = np.arange(len(pieces))
        base = TokenRange(openness.segmenter, every, pieces)
        for y in strings(chars, 2)[1:]:
            fast = FollowedRange(base, y.encode())
            slow = TokenRange(openness.segmenter, every, [y.encode() + p for p in pieces])
            np.testing.assert_array_equal(fast.known, slow.known)
            want = openness.settled(slow, every)
            np.testing.assert_array_equal(openness.settled(fast, every), want, err_msg=f"{student.name} {y!r}")
            short += int((want >= 0).sum())
    assert short > 300


def few_tokens(name: str, count: int, rng: random.Random, *, ascii: bool = True) -> TeacherTokens:
    """`count` tokens of a vocabulary that a text can begin with. ascii: ASCII ones among them."""
    whole = vocabulary(name)
    usable = [
        i for i, b in enumerate(whole.token_bytes) if b and not 0x80 <= b[0] < 0xC0 and (ascii or not b.isascii())
    ]
    chosen = set(rng.sample(usable, count))
    return TeacherTokens(
        replace(whole, token_bytes=[b if i in chosen else None for i, b in enumerate(whole.token_bytes)])
    )


def continuations(r: bytes, rng: random.Random) -> list[bytes]:
    """r and real text, and single characters that patterns look at; an incomplete character is completed at random."""
    whole = valid_utf8_prefix(r)
    heads = [r]
    if whole < len(r):
        heads = [r[:whole] + c.encode() for c in rng.sample(characters_from(r[whole:]), 1)]
    tails = ["", " ", "s", "'s", "'re", "\n", " \n", "1", "12", ".", "\u0301", "é", "  x", "ing", "er"]
    for _ in range(12):
        text = rng.choice(texts())
        at = rng.randrange(len(text))
        tails.append(text[at : at + 16])
    return [head + tail.encode() for head in heads for tail in tails]


@needs_shared
@pytest.mark.parametrize("name", usual(STUDENTS))
def test_real_text_never_changes_a_decided_leaf(name: str):
    rng, decided, total = random.Random(name), 0, 0
    student = vocabulary(name)
    for teacher in ("smollm2", "llama-2", "gpt2"):
        book = RuleBook(few_tokens(teacher, 60 * EFFORT, rng), segmenter(name))
        aligner = Aligner(book, b"")
        for before in ("", "the", "a ", "x\n  ", "it'", "3", "né"):
            ids = student.encode(before)[0] if before else []
            tokens, first, is_open = leaves(aligner, student, before, ids)
            for token, answer, undecided in zip(tokens.tolist(), first.tolist(), is_open.tolist(), strict=True):
                total += 1
                if undecided:
                    continue
                r = book.teacher.pieces[int(np.flatnonzero(book.teacher.ids == token)[0])]
                if not before and r[:1] == b" " == student.prefix_bytes:
                    continue  # what the tokenizer makes of a text that begins with a space: docs/design.md, known gap 2
                decided += 1
                whole = [before + c.decode() for c in continuations(r, rng) if valid_utf8_prefix(c) == len(c)]
                for text, got in zip(
                    whole, student.tokenizer.encode_batch(whole, add_special_tokens=False), strict=True
                ):
                    same = got.ids[: len(ids)] == ids and len(got.ids) > len(ids)
                    begins = got.ids[len(ids)] if same else -1
                    assert begins == answer, (name, teacher, r, text)
    assert decided > 0.1 * total and total > 1000


MARKS = ("\u0301", "\u0323", "\u0308\u0301", "\u0328", "\u0338", "\u093c", "\u094d", "\u11a8", "\u3099", "\u05b8")
BEFORE_MARKS = ("", "né", "là, ngườ", "tiếng", " и", "Ελληνικ", "하", "한", "हिन", "か", "a\n", "='")


@needs_shared
@pytest.mark.parametrize("name", usual(["qwen2.5-subset-8000", "qwen2.5", "qwen3", "gpt-neox-20b", "olmo1-v1_5"]))
def test_no_mark_changes_a_decided_leaf_of_a_student_with_nfc(name: str):
    """Real vocabularies, tokens of all scripts, texts that go on with marks: what the tokenizers library makes of them, with its
    normaliser (lemma 22). Most leaves of composed characters are decided where those of the student without normaliser are."""
    rng, student, claims, composed = random.Random(name), vocabulary(name), 0, [0, 0]
    assert student.nfc
    plain = replace(student, nfc=False)
    for teacher in ("gpt2", "smollm2"):
        tokens_of = few_tokens(teacher, 75 * EFFORT, rng, ascii=False)
        book = RuleBook(tokens_of, segmenter(name))
        without = RuleBook(tokens_of, Segmenter(plain, merge_table(name), build_splitter(plain)))
        aligner = Aligner(book, b"")
        for before in (unicodedata.normalize("NFC", text) for text in BEFORE_MARKS):
            ids = student.encode(before)[0] if before else []
            tokens, first, is_open = leaves(aligner, student, before, ids)
            free = leaves(Aligner(without, b""), plain, before, ids)[2]
            for token, answer, undecided, never in zip(
                tokens.tolist(), first.tolist(), is_open.tolist(), free.tolist(), strict=True
            ):
                assert never <= undecided, "NFC decides nothing that is open without it"
                composed[0] += not never
                composed[1] += not undecided
                if undecided:
                    continue
                r = tokens_of.pieces[int(np.flatnonzero(tokens_of.ids == token)[0])]
                whole = valid_utf8_prefix(r)
                head = (r if whole == len(r) else r[:whole] + rng.choice(characters_from(r[whole:])).encode()).decode()
                ends = ["", *MARKS, *("".join(rng.choices(MARKS, k=2)) + "a" for _ in range(4)), "e\u0301", "ing", " x"]
                made = student.tokenizer.encode_batch([before + head + end for end in ends], add_special_tokens=False)
                for end, got in zip(ends, made, strict=True):
                    same = got.ids[: len(ids)] == ids and len(got.ids) > len(ids)
                    assert (got.ids[len(ids)] if same else -1) == answer, (name, before, r, ascii(end))
                claims += 1
    print(f"{name}: {composed[0]} leaves decided without normaliser, {composed[1]} with it")
    assert claims > 250 and composed[1] > 0.5 * composed[0]


def leaves(aligner: Aligner, student: Vocabulary, before: str, ids: list[int]) -> tuple[np.ndarray, ...]:
    """(tokens, first, open) of all tokens of the book behind a text."""
    if not before:
        rule = aligner.book.rule(b"", student.prefix_bytes, b"", "")
        return aligner.book.resolved(rule, -1)[:3]
    data = student.prefix_bytes + before.encode()
    cut = cut_text(aligner.book.splitter, data)
    start, unit, begin = cut.pendings([len(data)])[0]
    classes = aligner.book.splitter.reduce(cut.units[start:unit])
    rule = aligner.book.rule(b"", b"", b"", classes, aligner.book.whole_words_after(data[begin:], b"", len(classes)))
    tokens = own_tokens(student, ids, begin)
    allowed = tuple(tokens == pieces(student, aligner, data[begin:], *variant) for variant in rule.variants)
    return aligner.book.resolved(aligner.book.restricted(rule, allowed), ids[-1])[:3]


def own_tokens(student: Vocabulary, ids: list[int], begin: int) -> list[int]:
    """The tokens behind byte `begin`."""
    end = 0
    for n, token in enumerate(ids):
        if end == begin:
            return ids[n:]
        end += len(student.token_bytes[token] or b"")
    return []


def pieces(student: Vocabulary, aligner: Aligner, pending: bytes, cuts: tuple[int, ...], seam: bool) -> list[int]:
    """The tokens of the pending part, cut like this; the last piece ends only at a seam."""
    text = pending if aligner.book.splitter.byte_units else pending.decode()
    bounds = [0, *cuts, len(text)] if not aligner.book.splitter.byte_units else [0, len(text)]
    parts = [text[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    spelt = [p if isinstance(p, bytes) else p.encode() for p in parts]
    out: list[int] = []
    for number, piece in enumerate(spelt):
        added = student.added_text.get(piece.decode("utf-8", "replace"))
        whole = seam or number < len(spelt) - 1
        out += [added] if added is not None and whole else student.bpe(piece, whole=whole)
    return out
