"""Faults that published tokenizers showed, each on its own file, or on a near one that is changed to be like it. Which test
stands for which fault: docs/faults.md, "Tokenizers and corpora as they are"."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from engine.alignment.boundaries import Aligner
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter, build_segmenter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext, State
from engine.contexts.tree import ContextTree
from schemas.errors import BadDocument, TokenizerError
from tests.contexts.test_builder import given_token, path_to
from tests.support.tiers import usual
from tests.support.vocabularies import at_byte, folder, needs_shared, save, segmenter, vocabulary

PLAIN = {"special": False, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}


def spec_of(name: str) -> dict[str, Any]:
    return json.loads((folder(name) / "tokenizer.json").read_text(encoding="utf-8"))


def tree_of(parts: Segmenter, text: str) -> ContextTree:
    """The contexts of all bytes of a teacher's text."""
    vocab = parts.vocabulary
    data = vocab.prefix_bytes + text.encode()
    places = list(range(len(vocab.prefix_bytes), len(data) + 1))
    return ContextBuilder(parts).build(data, vocab.encode(text)[0], places, given_token(vocab))


def contexts(parts: Segmenter, text: str) -> tuple[ContextTree, CanonicalNext, list[State | None]]:
    """The same, and what each agrees with."""
    tree, choose = tree_of(parts, text), CanonicalNext(parts)
    return tree, choose, choose.states(tree, parts.vocabulary.prefix_bytes + text.encode())


def illegal_at(parts: Segmenter, text: str, byte: int) -> set[int]:
    """The tokens that may not follow the one context that ends at this byte."""
    tree, choose, states = contexts(parts, text)
    (node,) = at_byte(tree, byte)
    state = states[node]
    assert state is not None
    return set(choose.illegal(state).tolist())


def own(spec: dict[str, Any], to: Path) -> Vocabulary:
    return load_vocabulary(save(spec, to))


# ==== added tokens


@needs_shared
def test_a_string_that_is_a_token_and_an_added_token_stays_the_token_of_its_bytes() -> None:
    """OLMo-1 has two spaces in its vocabulary, as an added token; BPE's own token of two spaces is another one."""
    vocab = vocabulary("olmo1-v1_5")
    added, model = vocab.added_text["  "], vocab.id_of_bytes[b"  "]
    assert added != model and vocab.token_bytes[added] == vocab.token_bytes[model] == b"  "
    assert vocab.tokenizer.id_to_token(model) == "ĠĠ" and vocab.encode("a  b")[0][1] == added
    tree, _, states = contexts(segmenter("olmo1-v1_5"), "a  b \n   c")
    assert all(at_byte(tree, byte) for byte in range(11)) and None not in states[tree.given :]


@needs_shared
@pytest.mark.parametrize("name", usual(["qwen2.5-subset-8000", "qwen3", "qwen2.5"]))
def test_no_context_passes_through_an_added_text(name: str) -> None:
    """`<tool_call>` is taken whole: no text has the tokens of its letters before its last one, or before what follows."""
    vocab, text = vocabulary(name), "a (<tool_call>) b"
    tree = tree_of(segmenter(name), text)
    (whole,) = at_byte(tree, 14)
    assert tree.token[whole] == vocab.added_text["<tool_call>"]
    for node in range(tree.given, len(tree.token)):
        path = b"|".join(vocab.token_bytes[t] or b"" for t in path_to(tree, node))
        assert b">" not in path or b"|<tool_call>" in path


@pytest.fixture(scope="module")
def like_gemma(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Jamba's file, which is of Gemma's kind, with as many added texts as Gemma 3 has: runs of line ends among them."""
    spec = spec_of("jamba-v0.1")
    size = max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]) + 1
    texts = ["\n" * n for n in range(1, 32)] + [f"<unused{i}>" for i in range(6240)] + [f"<h{i}>" for i in range(130)]
    spec["added_tokens"] += [{**PLAIN, "id": size + i, "content": text} for i, text in enumerate(texts)]
    return build_segmenter(own(spec, tmp_path_factory.mktemp("gemma")))


@needs_shared
def test_behind_an_added_line_end_tokens_are_canonical(like_gemma: Segmenter) -> None:
    """Of "a\\nthe" no next token was legal behind the line end."""
    vocab = like_gemma.vocabulary
    illegal, line = illegal_at(like_gemma, "a\nthe", 2), vocab.added_text["\n\n"]
    usable = {t for piece, t in vocab.id_of_bytes.items() if piece.decode("utf-8", "replace") not in vocab.added_text}
    assert not illegal & {vocab.id_of_bytes[piece] for piece in (b"the", b"a", b" the", b"1")} and line in illegal
    assert len(illegal & usable) < 0.1 * len(usable)


@needs_shared
def test_thousands_of_added_texts_cost_seconds(like_gemma: Segmenter) -> None:
    """When each was tried at every byte a teacher's actor with Gemma 3's took 1,317 seconds to start, a pending part 2,140."""
    assert len(like_gemma.splitter.added) > 6400
    text, begin = "I saw 3 <unused1> of <un\n\nthem, <h1>and <b>more</b>.", time.process_time()
    contexts(like_gemma, text)
    aligner = Aligner(RuleBook(TeacherTokens(vocabulary("qwen2.5-subset-8000")), like_gemma), b"")
    for left in aligner._lefts(text.encode(), like_gemma.vocabulary.encode(text)[0]):
        left.agrees((), True)
    assert time.process_time() - begin < 60


@needs_shared
def test_a_file_with_the_flags_of_phi_3(tmp_path: Path) -> None:
    """Llama-2's tokens with a `</s>` that swallows the white space behind it: only texts that hold it are refused."""
    spec = spec_of("llama-2")
    spec["added_tokens"][2] |= {"special": False, "rstrip": True}
    vocab, before = own(spec, tmp_path), vocabulary("llama-2")
    assert vocab.barred == ("</s>",) and vocab.encode("a <s> b")[0] == before.encode("a <s> b")[0]
    with pytest.raises(BadDocument, match="added_token: .* the text holds '</s>'"):
        vocab.encode("a </s>  b")


# ==== ids, bytes, cuts


@needs_shared
def test_a_hole_in_the_ids_is_refused(tmp_path: Path) -> None:
    """cl100k's ids lack one before the end of text. Where nothing fills it the library gives the end of text another id."""
    spec = spec_of("cl100k-new-pattern")
    end = spec["added_tokens"][1]
    assert vocabulary("cl100k-new-pattern").specials[end["id"]] and end["content"] == "<|endoftext|>"
    spec["added_tokens"] = [end]
    for content in ("<|hole_100256|>", end["content"]):
        del spec["model"]["vocab"][content]
    with pytest.raises(TokenizerError, match=r"'<\|endoftext\|>' the id 100257, the library reads it as 100256"):
        own(spec, tmp_path)


@needs_shared
def test_a_tab_that_is_a_token_needs_no_byte_token(tmp_path: Path) -> None:
    """As in Gemma 1 and 2: `\\t` and runs of it are tokens, and there is no <0x09>."""
    spec, missing = spec_of("jamba-v0.1"), spec_of("jamba-v0.1")
    model = spec["model"]
    model["vocab"]["\t"] = model["vocab"].pop("<0x09>")
    vocab = own(spec, tmp_path / "tab")
    ids, ends = vocab.encode("a\t\tb")
    assert [vocab.token_bytes[i] for i in ids] == [b"a", b"\t", b"\t", b"b"] and ends == [1, 2, 3, 4]
    contexts(build_segmenter(vocab), "a\t\tb")
    del missing["model"]["vocab"]["<0x09>"]
    with pytest.raises(TokenizerError, match="neither the byte token <0x09> nor a token for the character") as caught:
        own(missing, tmp_path / "missing")
    assert "switch" not in str(caught.value)


@needs_shared
def test_a_count_with_a_plus_behind_it_is_a_repeat() -> None:
    """The newer pattern of cl100k has `\\p{N}{1,3}+`, which cuts no number in the tokenizers library."""
    name = "cl100k-new-pattern"
    vocab, cuts = vocabulary(name), build_splitter(vocabulary(name))
    for text, count in (("12345678", 1), ("9999999999999999999", 1), ("a 123456b", 4), ("1\u00b23", 1)):
        ends = tuple(end for _, (_, end) in vocab.tokenizer.pre_tokenizer.pre_tokenize_str(text))
        assert cuts.pieces(cuts.classes(text.encode())) == ends and len(ends) == count
    contexts(segmenter(name), "a 12345678")


@needs_shared
def test_special_strings_beside_bytes_without_a_token() -> None:
    """Refact has `<fim_prefix>` and more within reach, and no token for the byte 0xF1, which few texts hold."""
    vocab = vocabulary("refact")
    text = "def f(): <fim_prefix>\n    return '<|endoftext|>'"
    ids = vocab.encode(text)[0]
    assert b"".join(vocab.token_bytes[i] or b"" for i in ids) == text.encode() and not {*ids} & {*vocab.specials}
    assert b"\xf1" not in vocab.id_of_bytes
    tree, _, _ = contexts(segmenter("refact"), text)
    assert all(at_byte(tree, byte) for byte in range(len(text) + 1))
    with pytest.raises(BadDocument, match="at byte 2:"):
        vocab.encode("a \U00040000")
