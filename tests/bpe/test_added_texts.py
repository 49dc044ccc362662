"""Added tokens that are text, behind a normaliser: they stand for what they are looked for, or the text is refused."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from engine.bpe.pretokenizer import build_splitter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from schemas.errors import BadDocument
from tests.bpe.test_vocabulary import bad
from tests.support.vocabularies import (
    EFFORT,
    SHARED,
    folder,
    needs_shared,
    save,
)


def with_tool(name: str, to: Path, *, normalized: bool, content: str = "<tool>") -> Vocabulary:
    """A shared tokenizer and one more added token that is text."""
    spec = json.loads((folder(name) / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    size = max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]) + 1
    spec["added_tokens"].append({"id": size, "content": content, "normalized": normalized, **flags})
    return load_vocabulary(save(spec, to))


@needs_shared
@pytest.mark.parametrize(
    ("name", "content", "normalized"),
    [
        ("llama-2", "<tool>", True),
        ("llama-2", "<tool>", False),
        ("qwen2.5-subset-8000", "<é>", True),
        ("qwen2.5-subset-8000", "<e\u0301>", True),
    ],
)
def test_added_tokens_stand_for_what_they_are_looked_for(
    name: str, content: str, normalized: bool, tmp_path: Path
) -> None:
    """Texts with the token: the bytes are the text's or the text is refused, and the splitter cuts as the library does."""
    vocab = with_tool(name, tmp_path, normalized=normalized, content=content)
    token, cuts, rng, found = vocab.size - 1, build_splitter(vocab), random.Random(name + content), 0
    for _ in range(50 * EFFORT):
        text = "".join(rng.choices([content, " ", "  ", "a", "bc", "\n", "<", ">"], k=rng.randint(1, 6)))
        try:
            ids, ends = vocab.encode(text)
        except BadDocument as error:
            assert error.reason == ("not_reversible" if vocab.nfc else "added_token")
            assert content in text and (vocab.nfc or not normalized)
            continue
        found += token in ids
        data = vocab.prefix_bytes + text.encode()
        assert b"".join(vocab.token_bytes[i] or b"" for i in ids) == data and ends[-1] == len(text.encode())
        units = data.decode("latin-1") if cuts.byte_units else text
        stops = [0, *cuts.pieces(cuts.canonical(cuts.classes(data)))]
        pieces = [units[begin:end] for begin, end in pairwise(stops)]
        assert sum(piece in vocab.added_text for piece in pieces) == ids.count(token)
    assert found or vocab.barred or content == "<e\u0301>"


@needs_shared
def test_an_added_token_behind_a_prefix_has_its_space(tmp_path: Path) -> None:
    """Llama-2 and an added `<tool>`: in the normalised text it is `▁<tool>`, so it stands for " <tool>"."""
    vocab = with_tool("llama-2", tmp_path, normalized=True)
    assert vocab.added_text == {" <tool>": 32000} and vocab.token_bytes[32000] == b" <tool>"
    assert vocab.encode("<tool>") == ([32000], [6])
    ids, ends = vocab.encode("a <tool> b")
    assert (ids[1], ends) == (32000, [1, 8, 10])
    assert 32000 not in vocab.encode("a<tool>b")[0]


@pytest.mark.parametrize("name", ["yi-34b"])
def test_runs_of_marks_that_are_added_and_ordinary(name: str) -> None:
    """Yi's runs of U+2581 are added tokens that the raw text must hold: spaces are the model's own tokens, by merges."""
    if not (SHARED / "tokenizers_hard" / name).is_dir():
        pytest.skip("no shared data")
    vocab = load_vocabulary(str(SHARED / "tokenizers_hard" / name))
    assert not any("\u2581" in text or set(text) == {" "} for text in vocab.added_text)
    ids, ends = vocab.encode("a   b")
    assert ends[-1] == 5 and b"".join(vocab.token_bytes[i] or b"" for i in ids) == b"a   b"
    assert bad(vocab, "a \u2581\u2581 b").reason == "not_reversible"
