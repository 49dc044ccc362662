"""Texts and tokens of conversations against what transformers gives to users, on toy templates and published tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engine.bpe.vocabulary import load_vocabulary
from engine.chat.conversation import ChatEncoder
from engine.chat.readings import whole
from engine.chat.template import ChatTemplate
from engine.chat.template_files import chat_templates
from engine.corpus.document import Message
from schemas.runfile import parse_run
from tests.support.chats import CHATML, GEMMA, LLAMA2, LLAMA3, TEMPLATES, with_template
from tests.support.runs import ASSETS
from tests.support.vocabularies import SHARED, needs_shared

TALK = (
    Message("user", "Hi there"),
    Message("assistant", "Anna has 3."),
    Message("user", "x y"),
    Message("assistant", "9"),
)


def encoder_of(folder: Path, text: str | None = None) -> ChatEncoder:
    run = {
        "output": "out",
        "teacher": {"model": str(folder), **({} if text is None else {"chat_template": text})},
        "corpus": {"paths": ["x.jsonl"], "messages": "m"},
        "targets": {"teacher": True},
    }
    template = chat_templates(parse_run(run, base_dir=folder))["teacher"]
    return ChatEncoder.make(template, load_vocabulary(str(folder)))


def rendered(folder: Path, text: str | None, talk: tuple[Message, ...], *, tokenize: bool) -> Any:
    """As a user of transformers gets it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [message.for_template() for message in talk]
    return tokenizer.apply_chat_template(chat, chat_template=text, tokenize=tokenize, return_dict=False)


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("source", ["teacher", "student_sp"])
def test_rendered_text_is_what_transformers_gives(style: str, source: str, tmp_path: Path) -> None:
    folder = with_template(ASSETS / source, tmp_path / "t", style)
    encoder = encoder_of(folder)
    assert encoder.template.render(TALK).text == rendered(folder, None, TALK, tokenize=False)


@needs_shared
@pytest.mark.parametrize(
    ("name", "text", "end"),
    [
        pytest.param("qwen2.5", None, "<|im_end|>", marks=pytest.mark.thorough),
        ("smollm2", CHATML, "<|im_end|>"),
        ("llama-2", LLAMA2, "</s>"),
        pytest.param("llama-3", LLAMA3, "<|eot_id|>", marks=pytest.mark.thorough),
        pytest.param("llama-2", GEMMA, "</s>", marks=pytest.mark.thorough),
    ],
)
def test_tokens_of_published_tokenizers_are_what_transformers_gives(name: str, text: str | None, end: str) -> None:
    """Where nothing can merge over the seams of contents, the sequence is the encoding of the whole rendered string."""
    folder = SHARED / "tokenizers" / name
    encoder = encoder_of(folder, text)
    made = encoder.template.render(TALK)
    reading = whole(TALK, made, [m.role == "assistant" for m in TALK], [0] * len(TALK))
    sequence = encoder.encode([reading], [m.content for m in TALK], end=True)
    if text != GEMMA:  # its marks are text to Llama-2: `.<` is one token over the seam of a content
        assert sequence.ids.tolist() == rendered(folder, text, TALK, tokenize=True)
    shown = encoder.full.tokenizer.decode(sequence.ids.tolist(), skip_special_tokens=False)
    assert shown == encoder.full.tokenizer.decode(
        rendered(folder, text, TALK, tokenize=True), skip_special_tokens=False
    )
    assert encoder.vocabulary.eos_id == encoder.full.tokenizer.token_to_id(end)
    assert [p.text for p in reading.parts if p.scored] == ["Anna has 3.", "9"] and not sequence.anew
    assert sequence.ends[-1] == sum(len(m.content) for m in TALK)
    for part, said in zip(sequence.segments, ("Anna has 3.", "9"), strict=True):
        pieces = [encoder.full.token_bytes[i] or b"" for i in sequence.ids[part.begin : part.stop].tolist()]
        assert b"".join(pieces) == encoder.vocabulary.prefix_bytes + said.encode()
        assert part.closed == (text not in (LLAMA2, GEMMA))


def test_a_bare_vocabulary_reads_a_text_as_it_stands_inside_another() -> None:
    full = load_vocabulary(str(ASSETS / "student_sp"))
    assert full.prefix_bytes == b" " and full.bare.bare is full.bare
    ids, ends = full.bare.encode("Anna has 3.")
    assert b"".join(full.token_bytes[i] or b"" for i in ids) == b"Anna has 3." and ends[-1] == 11
    assert full.bare.content_hash != full.content_hash
    assert load_vocabulary(str(ASSETS / "teacher")).bare.prefix_bytes == b""


def test_a_template_without_variables_still_renders() -> None:
    assert (
        ChatTemplate("{% for m in messages %}{{ bos_token }}{{ m.content }}|{% endfor %}", {}, "x")
        .render(TALK)
        .frames[1]
        == "|"
    )
