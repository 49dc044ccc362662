"""Cuts against the tokenizers library itself; certain cuts against every continuation that could be thought of."""

from __future__ import annotations

import random
import unicodedata
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bpe.pretokenizer import Splitter, build_splitter
from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from schemas.errors import BadDocument, TokenizerError
from tests.support.tiers import usual
from tests.support.vocabularies import (
    ALL,
    BYTE_LEVEL,
    EFFORT,
    QWEN_SUBSETS,
    SENTENCEPIECE,
    TRAINED,
    byte_level,
    needs_shared,
    save,
    splitter,
    texts,
    vocabulary,
)

PATTERNS = [name for name in BYTE_LEVEL if name not in ("qwen2.5-subset-0", "qwen2.5-subset-32000", "starcoder2")]
ONCE = ("deepseek-llm-7b", "llama-3")  # patterns of their own in large files
CHARACTERS = [
    *"aAbsStTrReEvVmMlLdD", *"0123", *"    \n\n\r\t", *"''’.,!?-_/<>|#$(){}", "é", "ß", "ſ", "K", "Ж", "猫", "한", "ん", "א",
    "ا", "ก", "\u0301", "\u093c", "\u200d", "\ufe0f", "😀", "👩", "\u3000", "\u00a0", "\u2009", "\u2028", "\x00", "\x85",
    "²", "½", "٣", "Ⅷ", "ǅ", "ʰ", "×", "€", "\U0001d7d8", "\U000e0041", "<tool_call>", "<|fim_pad|>", "ø", "'ll", "'S",
]  # fmt: skip
STRINGS = st.lists(st.sampled_from(CHARACTERS), max_size=9).map("".join)


@cache
def pretokenized(name: str, text: str) -> tuple[int, ...]:
    """The library's own pre-tokenizer (which sees no added tokens): ends of pieces in characters."""
    found = vocabulary(name).tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return tuple(end for _, (_, end) in found)


def piece_ends(vocab: Vocabulary, text: str) -> list[int]:
    """Byte ends of the pre-tokens of the whole real pipeline, added tokens included. Raises BadDocument."""
    encoding = vocab.tokenizer.encode(text, add_special_tokens=False)
    ids, ends = vocab.encode(text)
    assert ids == encoding.ids
    words = encoding.word_ids
    return [end for k, end in enumerate(ends) if k + 1 == len(ends) or words[k + 1] != words[k]]


def our_ends(cuts: Splitter, text: str) -> list[int]:
    """Byte ends of our pieces."""
    ends, out = cuts.pieces(cuts.canonical(cuts.classes(text.encode()))), []
    return out + [len(text[:end].encode()) for end in ends]


def sample(name: str, count: int) -> list[str]:
    """Snippets of real text that start anywhere, some with an added token thrown in."""
    rng, vocab, out = random.Random(name), vocabulary(name), []
    for _ in range(count):
        text = rng.choice(texts())
        at = rng.randrange(len(text))
        snippet = text[at : at + rng.randrange(1, 160)]
        if vocab.added_text and rng.random() < 0.3:
            at = rng.randrange(len(snippet) + 1)
            snippet = snippet[:at] + rng.choice(list(vocab.added_text)) + snippet[at:]
        out.append(unicodedata.normalize("NFC", snippet) if vocab.nfc else snippet)
    return out


# ==== pieces


@needs_shared
@pytest.mark.parametrize("name", [*usual([name for name in BYTE_LEVEL if name not in ONCE]), *ONCE])
def test_pieces_are_those_of_the_whole_real_pipeline(name: str) -> None:
    vocab, cuts = vocabulary(name), splitter(name)
    checked = 0
    for text in sample(name, (120 if name in QWEN_SUBSETS else 160) * EFFORT):
        try:
            expected = piece_ends(vocab, text)
        except BadDocument:
            continue
        checked += 1
        assert our_ends(cuts, text) == expected, repr(text)
    assert checked > 100


@needs_shared
@pytest.mark.parametrize("name", ["gpt-neox-20b", "qwen2.5-subset-8000", "deepseek-llm-7b"])
def test_added_text_is_one_piece(name: str) -> None:
    vocab, cuts = vocabulary(name), splitter(name)
    for added in vocab.added_text:
        for text in (f"ab{added}cd", f"a {added} b", added * 2, f"'{added}'s", f"\n{added}\n", added[:-1] or "x"):
            assert our_ends(cuts, text) == piece_ends(vocab, text), repr(text)


@needs_shared
@pytest.mark.parametrize("name", usual(PATTERNS))
def test_pieces_around_every_kind_of_character(name: str) -> None:
    vocab, cuts = vocabulary(name), splitter(name)
    rng = random.Random(name)
    codes = [*range(1, 0x250), 0x295, 0x212A, 0x17F, 0x2028, *rng.sample(range(0x250, 0x20000), 500 * EFFORT)]
    codes += [rng.randrange(0x20000, 0x110000) for _ in range(40)]
    wrong = []
    for char in (chr(code) for code in codes if not 0xD800 <= code < 0xE000):
        if vocab.nfc and unicodedata.normalize("NFC", char) != char:
            continue
        text = f"a{char}b 1{char}2 {char}{char}.{char} \n{char}A{char}'{char}"
        if any(added in text for added in vocab.added_text):
            continue
        if tuple(cuts.pieces(cuts.classes(text.encode()))) != pretokenized(name, text):
            wrong.append(hex(ord(char)))
    assert not wrong


@needs_shared
@pytest.mark.parametrize("name", usual(PATTERNS))
@settings(max_examples=60 * EFFORT, deadline=None, derandomize=True)
@given(text=STRINGS)
def test_pieces_of_strange_strings(name: str, text: str) -> None:
    if text and not any(added in text for added in vocabulary(name).added_text):
        cuts = splitter(name)
        assert cuts.pieces(cuts.classes(text.encode())) == pretokenized(name, text)


@needs_shared
@pytest.mark.parametrize("name", usual(PATTERNS))
@settings(max_examples=60 * EFFORT, deadline=None, derandomize=True)
@given(text=STRINGS)
def test_forgetting_answers_that_no_pattern_asks_changes_no_cut(name: str, text: str) -> None:
    cuts = splitter(name)
    full = cuts.classes(text.encode())
    short = cuts.canonical(full)
    assert len(short) == len(full) and cuts.canonical(short) == short
    assert cuts.pieces(short) == cuts.pieces(full)
    assert cuts.certain(short) == cuts.certain(full)


@needs_shared
def test_words_that_differ_only_in_letters_are_one_class_string() -> None:
    cuts = splitter("llama-3")
    assert cuts.canonical(cuts.classes(b"hello")) == cuts.canonical(cuts.classes(b"world"))
    assert cuts.canonical(cuts.classes(b"it's")) != cuts.canonical(cuts.classes(b"it'a"))


# ==== certain cuts


def sound(cuts: Splitter, first: str, more: str) -> None:
    """Every certain cut of `first` is a cut of `first + more`, and there is no other before the last certain one."""
    left, both = cuts.classes(first.encode()), cuts.classes((first + more).encode())
    certain, whole = cuts.certain(left), cuts.pieces(both)
    assert whole[: len(certain)] == certain, (first, more, certain, whole)
    short = cuts.canonical(left)
    assert cuts.certain(short) == certain and cuts.pieces(cuts.canonical(both))[: len(certain)] == certain


@needs_shared
@pytest.mark.parametrize("name", usual([*PATTERNS, "llama-2", "mistral-v0.3", "jamba-v0.1", "stories260K"]))
@settings(max_examples=120 * EFFORT, deadline=None, derandomize=True)
@given(first=STRINGS, more=STRINGS)
def test_no_continuation_moves_a_certain_cut(name: str, first: str, more: str) -> None:
    sound(splitter(name), first, more)


@needs_shared
@pytest.mark.parametrize("name", usual([*PATTERNS, *SENTENCEPIECE, "stories260K"]))
def test_no_real_continuation_moves_a_certain_cut(name: str) -> None:
    cuts, rng, found = splitter(name), random.Random(name), 0
    for text in sample(name, 60 * EFFORT):
        for _ in range(4):
            at = rng.randrange(len(text) + 1)
            other = rng.choice(texts())
            begin = rng.randrange(len(other))
            for more in (text[at:], other[begin : begin + 20], "".join(rng.choices(CHARACTERS, k=3))):
                sound(cuts, text[:at], more)
            found += len(cuts.certain(cuts.classes(text[:at].encode())))
    assert found > 500  # certain cuts exist at all


@needs_shared
@pytest.mark.parametrize("name", usual(PATTERNS))
def test_little_stays_pending(name: str) -> None:
    """Usefulness: in plain prose all but the last word is certain."""
    cuts = splitter(name)
    text = b"Once upon a time there was a dog. It ran to the park, and it was happy!"
    for end in range(1, len(text)):
        units = cuts.classes(text[:end])
        assert end - max(cuts.certain(units), default=0) <= 8, text[:end]


@needs_shared
@pytest.mark.parametrize("name", usual([*PATTERNS, "llama-2", "jamba-v0.1"]))
@settings(max_examples=60 * EFFORT, deadline=None, derandomize=True)
@given(left=STRINGS, right=STRINGS, more=STRINGS)
def test_locate(name: str, left: str, right: str, more: str) -> None:
    cuts = splitter(name)
    canonical = cuts.canonical(cuts.classes(left.encode()))
    right_units = cuts.canonical(cuts.classes(right.encode()))
    inside, seam, stop, sure = cuts.locate(canonical, right_units)
    later = left + right + (more if sure else "")  # what is sure must hold for a longer text, too
    ends = cuts.pieces(cuts.classes(later.encode()))
    n = len(canonical)
    assert inside == tuple(e for e in ends if e < n)
    assert seam == (n == 0 or n in ends)
    if right:
        assert stop == next(e for e in ends if e > n) - n
    else:
        assert (stop, sure) == (0, False)


@needs_shared
@pytest.mark.parametrize("name", usual([*SENTENCEPIECE, "stories260K"]))
def test_the_reduced_pending_part_is_enough(name: str) -> None:
    cuts, rng = splitter(name), random.Random(name)
    for text in sample(name, 100 * EFFORT):
        at = rng.randrange(1, len(text) + 1)
        left, right = cuts.classes(text[:at].encode()), cuts.classes((text[at:] + "x").encode())
        pending = left[max(cuts.certain(left), default=0) :]
        short = cuts.reduce(pending)
        assert pending.endswith(short) and bool(short) == bool(pending)
        assert cuts.locate(short, right)[1:] == cuts.locate(pending, right)[1:], (text, at)


# ==== SentencePiece: cuts between bytes that no token holds side by side


@needs_shared
@pytest.mark.parametrize("name", usual([*SENTENCEPIECE, *TRAINED]))
def test_encoding_falls_apart_at_certain_cuts(name: str) -> None:
    vocab, cuts, checked = vocabulary(name), splitter(name), 0
    if name == "mistral-v0.3":
        assert not vocab.added_text
    for text in sample(name, 150 * EFFORT):
        data = vocab.prefix_bytes + text.encode()
        units = cuts.classes(data)
        whole = vocab.bpe(data)
        if any(added in text for added in vocab.added_text):
            whole = vocab.tokenizer.encode(text, add_special_tokens=False).ids
            parts, at = [], 0
            for end in cuts.pieces(units):
                if (
                    valid_utf8_prefix(data[at:end]) == end - at
                    and data[at:end].decode("utf-8", "ignore").encode() == data[at:end]
                ):
                    piece = data[at:end].decode()
                    parts += [vocab.added_text[piece]] if piece in vocab.added_text else vocab.bpe(data[at:end])
                    at = end
            assert parts == whole
            continue
        for cut in cuts.certain(units):
            if cut < len(data) and data[cut] & 0xC0 == 0x80:
                continue  # inside a character, which has no string to encode
            checked += 1
            assert vocab.bpe(data[:cut]) + vocab.bpe(data[cut:]) == whole, (text, cut)
    assert checked > 100


# ==== what is not known is refused by name


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"\s+?", "a lazy repeat at position 3"),
        (r"^\s+|a", "an anchor at position 0"),
        (r"a{1}?", "a lazy repeat at position 4"),
        (r"a{b", "a brace that counts nothing at position 1"),
        (r"a\b", r"the escape \b"),
        (r"\Aa", r"the escape \A"),
        (r"(a)\1", r"the escape \1"),
        (r"\x20|a", r"the escape \x"),
        (r"a\Kb", r"the escape \K"),
        (r"(?<=a)b", "the group (?<="),
        (r"(?<!a)b", "the group (?<!"),
        (r"(?>a+)b", "the group (?>a"),
        (r"(?m:a)", "the group (?m:"),
    ],
)
def test_patterns_outside_the_dialect_are_refused(tmp_path: Path, pattern: str, named: str) -> None:
    vocab = load_vocabulary(save(byte_level([(b"a", b"b")], pattern=pattern), tmp_path))
    with pytest.raises(TokenizerError) as caught:
        build_splitter(vocab)
    assert named in str(caught.value) and repr(pattern) in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    [
        r"a+|b", r"(?:ab)+|c?b", r"(?i:AB|c)|.", r"a{2}|b{1,2}", r"a{2,}|b", r"a*+b|a", r"a(?=b)|b(?!a)|c", r"[^a\s]+|a\s?",
        r"[a-b&&[^b]]|c+", r"\d|\p{L}\p{N}?", r"(?:a|ab)(?:c|bcd)|d", r"a$|b+", r"(?:a?b?)+c|a|b", r"(a|b)+",
        r"a{1,3}+b?|b", r"a{1,2}+a|b+", r"a{2,3}+|b", r"a{2}+b|a|b", r"(?:a|ab){1,2}+c|d", r"a{,2}+b|c",
    ],
)  # fmt: skip
def test_patterns_inside_the_dialect_cut_as_the_library_does(tmp_path: Path, pattern: str) -> None:
    vocab = load_vocabulary(save(byte_level([(b"a", b"b")], vocab=[b"c"], pattern=pattern), tmp_path))
    cuts, rng = build_splitter(vocab), random.Random(0)
    for _ in range(150):
        text = "".join(rng.choices("aabbccd A1\n", k=rng.randrange(1, 9)))
        more = "".join(rng.choices("aabbccd A1\n", k=rng.randrange(5)))
        expected = tuple(end for _, (_, end) in vocab.tokenizer.pre_tokenizer.pre_tokenize_str(text))
        assert cuts.pieces(cuts.classes(text.encode())) == expected, text
        sound(cuts, text, more)


def test_other_pre_tokenizers_are_refused(tmp_path: Path) -> None:
    spec = byte_level([(b"a", b"b")])
    split = {"type": "Split", "pattern": {"String": "a"}, "behavior": "MergedWithNext", "invert": False}
    byte = spec["pre_tokenizer"]["pretokenizers"][-1]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte]}
    with pytest.raises(
        TokenizerError, match=r"pre-tokenizer Split .*MergedWithNext.* beside ByteLevel is not known; want"
    ):
        build_splitter(load_vocabulary(save(spec, tmp_path)))
    spec["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}  # no ByteLevel: read as SentencePiece
    with pytest.raises(TokenizerError, match="beside SentencePiece tokens is not known; want Metaspace or none"):
        build_splitter(load_vocabulary(save(spec, tmp_path)))


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_all_real_tokenizers_have_a_splitter(name: str) -> None:
    assert splitter(name).byte_units == (vocabulary(name).kind == "sentencepiece")
