"""The chat templates that the library trl ships: which conversations they write as they stand, and which they alter."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.chat.marks import unthinking
from engine.chat.readings import Seen, see
from engine.chat.template import ChatTemplate
from engine.corpus.document import Message
from schemas.errors import BadDocument
from tests.support.corpora import corpus, read
from tests.support.vocabularies import SHARED

FOLDER = Path((find_spec("trl") or pytest.fail("trl is missing: pip install -e '.[dev]'")).origin or "").parent
FILES = sorted((FOLDER / "chat_templates").glob("*.jinja"))
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
ONE = [Message("user", "How many?"), Message("assistant", "Three apples.")]
THOUGHT = "<think>\nOne and two.\n</think>\n\nThree apples."
TALKS = {
    "one": ONE,
    "two": [*ONE, Message("user", "Sure?"), Message("assistant", "Yes, 3.")],
    "think": [ONE[0], Message("assistant", THOUGHT)],
    "think twice": [ONE[0], Message("assistant", THOUGHT), Message("user", "Sure?"), Message("assistant", THOUGHT)],
}


def template(file: Path) -> ChatTemplate:
    return ChatTemplate(file.read_text(encoding="utf-8"), VARIABLES, "[teacher]", given={"strftime_now": "26 Jul 2024"})


def seen(chat: ChatTemplate, talk: list[Message]) -> list[Seen]:
    """What the model saw at each of its turns, as the pipeline takes it where one rendering cannot be that."""
    return [see(chat, talk, i, score_thoughts=True) for i, message in enumerate(talk) if message.role == "assistant"]


def said(file: Path, talk: list[Message]) -> list[str]:
    """The contents that are found in the rendering; every frame and content is held against it letter by letter."""
    chat = template(file)
    made = chat.render(talk)
    for i, message in enumerate(talk):
        if message.role == "assistant":
            chat.check_history(talk, i, made)
    contents = [message.content[start:stop] for message, (start, stop) in zip(talk, made.spans, strict=True)]
    assert made.text == chat.written(talk)  # what transformers gives
    assert "".join(f + c for f, c in zip(made.frames, [*contents, ""], strict=True)) == made.text
    return contents


def test_there_are_templates() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("kind", TALKS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_answer_is_seen_behind_what_asks_for_it(file: Path, kind: str) -> None:
    chat, talk = template(file), TALKS[kind]
    for one in seen(chat, talk):
        assert one.text[one.begin : one.end] == one.said[one.start :] and one.said == talk[one.message].content
        asked = chat.written(talk[: one.message], prompt=True)
        assert unthinking(one.text[: one.begin]) == unthinking(asked) or one.text[: one.begin].startswith(asked)


QWEN3 = FOLDER / "chat_templates" / "qwen3.jinja"


@pytest.mark.parametrize(
    "content",
    [
        THOUGHT,
        "<think>\na\n</think>\n\na",  # short words, which stand in the template's own text, too
        "<think>\nassistant\n</think>\n\n<|im_start|>user\nassistant",
        "<think>\n1 < 2 and 3 > 2\n</think>\n\nassistant\nassistant",
    ],
)
def test_thinking_in_the_content_is_found_where_it_stands(content: str) -> None:
    talk = [Message("user", "a assistant user"), Message("assistant", content)]
    assert said(QWEN3, talk) == [message.content for message in talk]


@pytest.mark.parametrize("content", ["<think>a</think>b", "<think>\na\n</think>b", "a </think> b </think> c"])
def test_thinking_that_is_written_otherwise_is_altered(content: str) -> None:
    with pytest.raises(BadDocument, match="template_alters_content"):
        said(QWEN3, [Message("user", "u"), Message("assistant", content)])


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="no shared data: set TARGETSMITH_SHARED")
def test_a_corpus_of_single_turns_with_thinking() -> None:
    config = corpus(paths=["cases/think_single.jsonl"], messages="messages")
    documents = read(config, SHARED)
    assert documents
    for document in documents:
        assert said(QWEN3, list(document.messages)) == [message.content for message in document.messages]
