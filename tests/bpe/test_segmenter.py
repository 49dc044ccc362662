"""Cut bytes against the tokenizer itself: whatever a text's own cuts say, its pieces encode to the text's own tokens."""

from __future__ import annotations

import json
import random
from itertools import accumulate
from pathlib import Path

import pytest

from engine.bpe.pending import cut_text
from engine.bpe.segmenter import Segmenter, build_segmenter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from tests.support.tiers import usual
from tests.support.toys import BYTE_LEVEL, SENTENCEPIECE, alphabet, random_text, toy
from tests.support.vocabularies import EFFORT, byte_level, needs_shared, save, segmenter, texts


def own_bounds(vocab: Vocabulary, ids: list[int]) -> list[int]:
    """[n+1] bytes at which tokens of the tokenizer's own byte string begin, and its end."""
    return list(accumulate((len(vocab.token_bytes[i] or b"") for i in ids), initial=0))


def check_text(parts: Segmenter, text: str) -> int:
    """Cut as its pieces say, the text encodes to its tokens: as a whole, and up to every place where a token ends. How many."""
    vocab, splitter = parts.vocabulary, parts.splitter
    data, (ids, _) = vocab.prefix_bytes + text.encode(), vocab.encode(text)
    bounds = own_bounds(vocab, ids)
    cut = cut_text(splitter, data)
    ends = splitter.pieces(cut.units)
    assert parts.encode_cut(data, b"", ends[:-1], True) == ids, text
    assert parts.agrees(data, b"", ends[:-1], True, ids)
    checked = 0
    for k, (place, unit) in enumerate(zip(bounds, cut.unit_at[bounds].tolist(), strict=True)):
        if int(cut.byte_of[unit]) == place and unit not in (
            0,
            *ends,
        ):  # a boundary inside a piece, between two characters
            cuts = [e for e in ends if e < unit]
            assert parts.encode_cut(data[:place], b"", cuts, False) == ids[:k], (text, place)
            assert not parts.agrees(data[:place], b"", cuts, False, [*ids[:k], 0])
            checked += 1
    return checked


@pytest.mark.parametrize("style", [*BYTE_LEVEL, *SENTENCEPIECE])
def test_toys(style: str, tmp_path: Path) -> None:
    rng, checked = random.Random(style), 0
    for number in range(3 * EFFORT):
        chars = alphabet(rng)
        vocab = toy(
            rng, tmp_path / str(number), style, chars, whole=style in BYTE_LEVEL and rng.random() < 0.3, merges=8
        )
        parts = build_segmenter(vocab)
        checked += sum(
            check_text(parts, random_text(rng, chars, 10)) for _ in range(15) if not style == "prepend" or True
        )
    assert checked > 20


@needs_shared
@pytest.mark.parametrize("name", usual(["gpt2", "qwen2.5-subset-8000", "llama-3", "qwen2.5"]))
def test_real_tokenizers(name: str) -> None:
    checked = sum(check_text(segmenter(name), text[:400]) for text in texts()[:: max(1, 40 // EFFORT)])
    assert checked > 150


def test_a_whole_piece_may_be_more_than_its_merges_make(tmp_path: Path) -> None:
    """A word of ignore_merges, and an added text, stand for whole pieces only; an added text that goes on is a longer one."""
    spec = byte_level([(b"a", b"b")], vocab=[b"abc", b"x"], ignore_merges=True, pattern=r"\w+| ")
    size = len(spec["model"]["vocab"])
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    spec["added_tokens"] = [{"id": size + i, "content": text, **added} for i, text in enumerate(("xa", "xab"))]
    parts = build_segmenter(load_vocabulary(save(spec, tmp_path)))
    ids = parts.vocabulary.id_of_bytes
    ab, c, whole, x = (ids[b] for b in (b"ab", b"c", b"abc", b"x"))
    assert (parts.encode_whole(b"abc"), parts.encode_part(b"abc")) == ((whole,), (ab, c))
    assert parts.encode_cut(b"abcabc", b"", (3,), False) == [whole, ab, c]
    assert parts.encode_cut(b"abcabc", b"", (3,), True) == [whole, whole]
    assert parts.encode_cut(b"xab", b"", (), True) == [size + 1] and parts.encode_cut(b"xab", b"", (), False) is None
    assert parts.encode_cut(b"xa", b"", (1,), True) == [x, ids[b"a"]]
    assert parts.agrees(b"", b"", (), True, ()) and not parts.agrees(b"xa", b"", (), False, (x, ids[b"a"]))


def with_added(vocab: Vocabulary, to: Path, *added: str) -> Vocabulary:
    """The same tokenizer with more texts that are taken whole."""
    spec = json.loads(vocab.tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    spec["added_tokens"] += [{"id": vocab.size + i, "content": text, **flags} for i, text in enumerate(added)]
    return load_vocabulary(save(spec, to))


def test_a_cut_before_a_character_that_is_not_whole(tmp_path: Path) -> None:
    """`ab` is an added text, `abé` a longer one. Behind the first byte of another character that begins like é the shorter one
    is a piece of its own: units are bytes, and the cut lies before the incomplete character."""
    chars = ("a", "b", "é")
    plain = toy(random.Random(3), tmp_path / "plain", "never", chars, whole=False, merges=[("b", "a")])
    vocab = with_added(plain, tmp_path / "added", "ab", "abé")
    parts = build_segmenter(vocab)
    ids, _ = vocab.encode("abè")
    lead, tail = (vocab.byte_tokens[b] for b in "è".encode())
    assert ids == [vocab.added_text["ab"], lead, tail]
    pending, partial = b"ab\xc3", b"\xc3"
    assert parts.agrees(pending, partial, (), True, ids[:2], units=2)
    assert not parts.agrees(pending, partial, (), False, ids[:2], units=2)
