"""What tokenizers differ on is found when they are loaded: the library's reading is held against the rules here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.bpe.compare import refuse_where_different
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.vocabulary import load_vocabulary
from schemas.errors import TokenizerError
from tests.support.tiers import usual
from tests.support.vocabularies import ALL, byte_level, needs_shared, save, splitter, vocabulary

BYTE = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def every_byte(steps: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    spec = byte_level([(b"a", b"b"), (b"!", b"!")], vocab=[bytes([b]) for b in range(256)], **changes)
    return {**spec, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def split(pattern: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def checked(spec: dict[str, Any], folder: Path) -> None:
    made = load_vocabulary(save(spec, folder))
    refuse_where_different(made, build_splitter(made), "toy")


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_real_tokenizers_are_read_as_the_library_reads_them(name: str) -> None:
    refuse_where_different(vocabulary(name), splitter(name), name)


def test_a_difference_is_a_refusal(tmp_path: Path) -> None:
    made = load_vocabulary(save(every_byte([split(r"\p{N}{1,3}|\p{L}+|\s+"), BYTE]), tmp_path / "a"))
    other = load_vocabulary(save(every_byte([split(r"\p{N}{1,3}|\s+"), BYTE]), tmp_path / "b"))
    spec = every_byte([split(r"[^ab]+|ab|a|b"), BYTE])
    spec["model"]["merges"].append(["Ġ", "a"])
    spec["model"]["vocab"]["Ġa"] = len(spec["model"]["vocab"])
    joined = load_vocabulary(save(spec, tmp_path / "c"))
    refuse_where_different(made, build_splitter(made), "toy")
    refuse_where_different(joined, build_splitter(joined), "toy")
    with pytest.raises(TokenizerError, match="toy: the tokenizers library encodes .* in another way than the rules"):
        refuse_where_different(joined, build_splitter(load_vocabulary(save(every_byte([BYTE]), tmp_path / "d"))), "toy")
    refuse_where_different(
        other, build_splitter(made), "toy"
    )  # other cuts between which nothing merges are no difference


def test_ids_that_the_library_does_not_follow_are_refused(tmp_path: Path) -> None:
    """A special that the vocabulary lacks, behind a hole: the library numbers it anew, and the file's id is a real token."""
    plain = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    spec = every_byte([BYTE])
    spec["added_tokens"] = [{**plain, "id": len(spec["model"]["vocab"]) + 1, "content": "<|endoftext|>"}]
    with pytest.raises(
        TokenizerError, match=r"the added token '<\|endoftext\|>' the id 259, the library reads it as 258"
    ):
        load_vocabulary(save(spec, tmp_path))
    spec["added_tokens"][0]["id"] -= 1
    assert load_vocabulary(save(spec, tmp_path)).specials == {258: "other"}


def test_steps_behind_byte_level_are_refused(tmp_path: Path) -> None:
    """Falcon's order: behind ByteLevel `²` is a number in the middle of a character."""
    digits = {"type": "Digits", "individual_digits": True}
    with pytest.raises(TokenizerError, match="step Digits stands behind ByteLevel.* it cuts inside characters"):
        load_vocabulary(save(every_byte([BYTE, digits]), tmp_path))
    checked(every_byte([digits, BYTE]), tmp_path)


@pytest.mark.parametrize("behavior", ["Contiguous", "Isolated"])
def test_punctuation_removes_nothing(behavior: str, tmp_path: Path) -> None:
    step = {"type": "Punctuation", "behavior": behavior}
    spec = every_byte([step, BYTE])
    checked(spec, tmp_path)
    made = load_vocabulary(save(spec, tmp_path))
    cuts = build_splitter(made)
    for text in ("a!!b", "「a」… b", "_a_-", "x+y=z|", "$5 ¡¿"):
        ends = tuple(end for _, (_, end) in made.tokenizer.pre_tokenizer.pre_tokenize_str(text))
        assert cuts.pieces(cuts.canonical(cuts.classes(text.encode()))) == ends, text
    with pytest.raises(TokenizerError, match="Punctuation removes what it matches"):
        load_vocabulary(save(every_byte([{**step, "behavior": "Removed"}, BYTE]), tmp_path))


def test_split_that_removes_the_rest_is_lossless_where_its_pattern_matches_everything(tmp_path: Path) -> None:
    """OLMo-2's file and GPT-4's: behaviour Removed with invert keeps the matches."""
    checked(every_byte([split(GPT4, "Removed", invert=True), BYTE]), tmp_path)
    plain = build_splitter(load_vocabulary(save(every_byte([split(GPT4), BYTE]), tmp_path / "plain")))
    cuts = build_splitter(load_vocabulary(str(tmp_path)))
    text = "It's 12345 o'clock!!\n\n  日本 a".encode()
    assert cuts.pieces(cuts.classes(text)) == plain.pieces(plain.classes(text))
    with pytest.raises(TokenizerError, match="Split removes all that its pattern does not match, .* bytes are lost"):
        build_splitter(
            load_vocabulary(save(every_byte([split(r"\p{L}+|\s+", "Removed", invert=True), BYTE]), tmp_path))
        )
    with pytest.raises(TokenizerError, match=r"Split removes what it matches.* want the behaviour Isolated"):
        load_vocabulary(save(every_byte([split(r"\s+", "Removed"), BYTE]), tmp_path))
