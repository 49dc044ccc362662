"""Tokenizer files that are refused, each with what is wrong and what would do; and some that only look as if."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine.bpe.merges import build_merge_table
from engine.bpe.vocabulary import load_vocabulary
from schemas.errors import BadDocument, TokenizerError
from tests.bpe.test_vocabulary import TOY
from tests.support.vocabularies import SHARED, needs_shared, save, texts


def refused(spec: Any, to: Path, **config: Any) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_vocabulary(save(spec, to, config or None), where="[[student]] x")
    assert str(to) in str(caught.value) and "[[student]] x" in str(caught.value)
    return str(caught.value)


def model(**changes: Any) -> dict[str, Any]:
    return {**TOY, "model": {**TOY["model"], **changes}}


def test_models_other_than_exact_bpe_are_refused(tmp_path: Path) -> None:
    word_piece = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "a": 1},
    }  # fmt: skip
    assert "the model is 'WordPiece', want 'BPE'" in refused({**TOY, "model": word_piece}, tmp_path)
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
    assert "the model is 'Unigram', want 'BPE'" in refused({**TOY, "model": unigram}, tmp_path)
    assert "continuing_subword_prefix = '##'" in refused(model(continuing_subword_prefix="##"), tmp_path)
    assert "end_of_word_suffix = '</w>'" in refused(model(end_of_word_suffix="</w>"), tmp_path)
    assert "dropout = 0.1" in refused(model(dropout=0.1), tmp_path)


def test_old_files_do_not_say_what_their_model_is(tmp_path: Path) -> None:
    """T5's, XLNet's and BERT's files of the library's first versions have no `type`."""
    unigram = {"unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    words = {
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"a": 0},
    }
    for model_of, kind in (
        (unigram, "Unigram"),
        (words, "WordPiece"),
        ({"vocab": {"a": 0}, "unk_token": "a"}, "WordLevel"),
    ):
        message = refused({**TOY, "model": model_of}, tmp_path)
        assert f"the model is '{kind}', want 'BPE'" in message and "set [targets] bytes = true" in message


def test_metaspace_of_old_files(tmp_path: Path) -> None:
    """`add_prefix_space` is its old word for prepend_scheme = "always"; what it puts there is known."""
    spec = sentencepiece("a\u2581", merges=[("\u2581", "a")])
    spec["normalizer"] = None
    for known, prefix in (({"add_prefix_space": True}, b" "), ({"prepend_scheme": "never"}, b"")):
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", **known}
        vocab = load_vocabulary(save(spec, tmp_path))
        assert vocab.prefix_bytes == prefix and vocab.encode("a a")[1] == ([1, 3] if prefix else [1, 3])
    message = refused({**spec, "pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, tmp_path)
    assert "Metaspace writes a space as '_'" in message


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Lowercase"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        {"type": "NFKC"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "Prepend", "prepend": "x"},
    ],
    ids=lambda n: n["type"],
)
def test_normalisers_that_change_bytes_are_refused(tmp_path: Path, normalizer: dict[str, Any]) -> None:
    message = refused({**TOY, "normalizer": normalizer}, tmp_path)
    kind = normalizer["type"] if normalizer["type"] != "Sequence" else "Lowercase"
    assert kind in message and "changes bytes that cannot be given back; want none, NFC" in message
    assert "Lost " in message and "set [targets] bytes = true" in message  # what is lost, what to do


@needs_shared
def test_a_text_as_the_normaliser_leaves_it_has_the_tokens_of_a_copy_without_it(tmp_path: Path) -> None:
    """The way out that the refusal of NFKC (Claude's published tokenizer) names."""
    spec = json.loads((SHARED / "tokenizers/gpt2/tokenizer.json").read_bytes())
    with_step = {**spec, "normalizer": {"type": "NFKC"}}
    assert '"normalizer": null' in refused(with_step, tmp_path / "nfkc")
    library, copy = Tokenizer.from_str(json.dumps(with_step)), load_vocabulary(save(spec, tmp_path / "copy"))
    for text in ("x\u00b2 \ufb01ne \u2026 \uff21\uff22", "e\u0301 \u2460 \u3000 \ud55c", *texts()[:40]):
        assert copy.encode(unicodedata.normalize("NFKC", text))[0] == library.encode(text, add_special_tokens=False).ids


def test_pre_tokenizers_that_drop_bytes_are_refused(tmp_path: Path) -> None:
    removed = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    for pre, named in (
        ({"type": "Whitespace"}, "not known to keep every byte"),
        ({"type": "BertPreTokenizer"}, "not known to keep every byte"),
        (removed, "removes what it matches, so that bytes are lost"),
    ):
        message = refused({**TOY, "pre_tokenizer": pre}, tmp_path)
        assert pre["type"] in message and named in message
    prefixed = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    assert "add_prefix_space = True" in refused({**TOY, "pre_tokenizer": prefixed}, tmp_path)


def test_tokens_that_cannot_be_decoded_are_refused(tmp_path: Path) -> None:
    vocab = {**TOY["model"]["vocab"], "日本": 40}
    message = refused(model(vocab=vocab), tmp_path)
    assert "token 40 '日本' holds '日', which is not in the byte-level alphabet" in message
    added = {"id": 6, "content": "<x>", "special": False, "normalized": False, "rstrip": False, "single_word": False}
    fine = load_vocabulary(save({**TOY, "added_tokens": [{**added, "lstrip": False}]}, tmp_path))
    assert fine.token_bytes[6] == b"<x>" and fine.size == 7


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_with_flags_are_refused_with_the_texts_that_hold_them(flag: str, tmp_path: Path) -> None:
    """Phi-3 has `</s>` with rstrip among them, and `lstrip` swallows the space before: such a token is never met."""
    added = {"id": 6, "content": "bc", "special": False, "normalized": False}
    flags = {"lstrip": False, "rstrip": False, "single_word": False, flag: True}
    vocab = load_vocabulary(save({**TOY, "added_tokens": [{**added, **flags}]}, tmp_path))
    assert vocab.barred == ("bc",) and vocab.specials[6] == "other" and vocab.token_bytes[6] is None
    assert vocab.encode("ab")[0] == load_vocabulary(save(TOY, tmp_path / "plain")).encode("ab")[0]
    with pytest.raises(BadDocument, match="added_token: .* the text holds 'bc'"):
        vocab.encode("abc")


def test_ids_beyond_the_rows_of_the_model(tmp_path: Path) -> None:
    """Gemma 3 has an added token with the id behind its last row: only texts that hold it are refused."""
    plain = {"special": False, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    added = [{**plain, "id": 6, "content": "bc"}, {**plain, "id": 7, "content": "<i>", "special": True}]
    vocab = load_vocabulary(save({**TOY, "added_tokens": added}, tmp_path))
    rows = max(TOY["model"]["vocab"].values()) + 1
    less = vocab.within(rows)
    assert vocab.within(8) is vocab and less.size == rows == len(less.token_bytes) and less.barred == ("<i>", "bc")
    assert not less.added_text and not less.specials and less.content_hash != vocab.content_hash
    assert less.encode("ab")[0] == vocab.encode("ab")[0]
    with pytest.raises(BadDocument, match="added_token"):
        less.encode("abc")
    with pytest.raises(
        TokenizerError, match=f"lies beyond the {rows - 1} output rows of the model; only added tokens may"
    ):
        vocab.within(rows - 1)


def sentencepiece(characters: str, *, without: str = "", merges: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """A SentencePiece-like tokenizer.json with byte fallback. without: characters whose byte token is left out."""
    names = ["<unk>", *(f"<0x{b:02X}>" for b in range(256) if chr(b) not in without), *characters]
    names += [a + b for a, b in merges]
    fixed = {"dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    model = {**fixed, "type": "BPE", "vocab": {n: i for i, n in enumerate(names)}, "merges": [list(m) for m in merges]}
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    return {**TOY, "normalizer": marks, "pre_tokenizer": None, "decoder": None, "model": model}


def test_a_byte_whose_character_has_a_token_needs_no_byte_token(tmp_path: Path) -> None:
    """Gemma 1 and 2 have a tab and runs of tabs, and no <0x09>; no other character holds that byte."""
    vocab = load_vocabulary(save(sentencepiece("\ta\u2581", without="\t ", merges=[("\t", "\t")]), tmp_path))
    assert 9 not in vocab.byte_tokens and len(vocab.byte_tokens) == 254
    text = "a\t\t\té a"
    ids, ends = vocab.encode(text)
    assert b"".join(vocab.token_bytes[i] or b"" for i in ids) == text.encode() and ends == [1, 3, 4, 5, 6, 7, 8]
    last, _ = build_merge_table(vocab).prefix_tree(text.encode())
    assert last[-1] == vocab.id_of_bytes[b"a"] and last[3] == vocab.id_of_bytes[b"\t\t"]
    message = refused(sentencepiece("a\u2581", without="\t"), tmp_path / "lost")
    assert "has neither the byte token <0x09> nor a token for the character with that byte" in message
    assert "fetch tokenizer.json there again" in message and "switch" not in message


def test_merges_must_name_tokens(tmp_path: Path) -> None:
    message = refused(model(merges=[["a", "b"], ["ab", "z"]]), tmp_path)
    assert "merge 1 ('ab' 'z') names tokens that the vocabulary lacks" in message


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": {"type"', encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer.json is not valid JSON .*fetch it again"):
        load_vocabulary(str(tmp_path / "broken"))
    (tmp_path / "broken" / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(TokenizerError, match="is not valid JSON"):
        load_vocabulary(str(tmp_path / "broken"))
    for spec in (
        {},
        [],
        {"model": TOY["model"]},
        {**TOY, "added_tokens": [{"id": 3}]},
        {**TOY, "pre_tokenizer": {"type": "No"}},
    ):
        message = refused(spec, tmp_path / "odd")
        assert "tokenizer.json" in message or "pre-tokenizer No" in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json and transformers cannot make a fast tokenizer"):
        load_vocabulary(str(tmp_path / "empty"))
    with pytest.raises(
        TokenizerError, match="missing: there is no such folder. Want a folder with tokenizer.json"
    ) as caught:
        load_vocabulary(str(tmp_path / "missing"), where="[teacher]")
    assert str(caught.value).startswith("[teacher]: ") and "Hub did not" not in str(caught.value)
    with pytest.raises(
        TokenizerError, match="no folder 'nobody-at-all/no-such-tokenizer', and as a model the Hugging Face"
    ):
        load_vocabulary("nobody-at-all/no-such-tokenizer", where="[teacher]")


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    save(TOY, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json is not valid JSON"):
        load_vocabulary(str(tmp_path))


def test_a_file_may_be_named_instead_of_its_folder(tmp_path: Path) -> None:
    path = save(TOY, tmp_path)
    assert load_vocabulary(path + "/tokenizer.json").content_hash == load_vocabulary(path).content_hash
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) == TOY
