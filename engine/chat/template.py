"""A chat template: a conversation -> the text that a model reads, and where in it each message's content lies.

Rendering is transformers' own (what `apply_chat_template` gives), nothing of it is written anew. Where contents lie is found
with marks: the conversation is rendered once more with a mark in place of each content, and what stands between the marks is
the template's own text. That text and the real contents, put together, must be the real rendering letter by letter; a
template that changes, drops, repeats or reorders contents fails there and the document is quarantined. White space that a
template strips off the ends of a content is found with marks between white space, and allowed for.

A template may look into contents: Qwen3's writes an empty `<think>` block before an answer that has none, so that a mark is led
into otherwise than the content. Where the parts do not fit, each word is marked by itself and tags such as `</think>` are left as
they are. What is found so must again be the real rendering letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from engine.corpus.document import Message
from schemas.errors import BadDocument, RunFileError

ASSISTANT = "assistant"
# Private use characters around a number: in no template, and no white space. The pads differ in length, so that what is left
# of them is told apart by length alone.
_MARK = "\ue0f0{}\ue0f1"
_LEFT_PAD, _RIGHT_PAD = " \t", "\t\n "
# What templates look for in contents, left as it is when words are marked; what stands between is words and white space.
_TAG = re.compile(r"(<[^<>\n]{1,60}>|\[/?[A-Z_]+\]|\s+)")
# What opens and closes thinking, at the end of a text.
_THINKING = re.compile(r"(?:\s|</?think(?:ing)?>|\[/?THINK\])*\Z")
# What a template may raise: by itself, and by an operation on a value that is not what it expects.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True)
class Rendering:
    """text = frames[0] + contents[0] + frames[1] + ... + frames[n]. spans: of each content, which characters of the message
    the template kept (start, stop); all of them, or all but white space at the ends."""

    text: str
    frames: list[str]
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """A product's chat template."""

    text: str  # jinja
    variables: dict[str, Any]  # the strings of the tokenizer's specials, by the names that templates use
    where: str  # the table of the run file, for messages

    def check(self) -> None:
        """Refuse, before any work, a template that is none or that depends on the day. Raises RunFileError."""
        if "strftime_now" in self.text:
            raise RunFileError(
                f"{self.where} chat_template: it writes today's date (strftime_now), so that the targets would depend on the "
                "day of the run. Want a template that is the same every day: copy it to a file, put a fixed date in its "
                'place, and name the file: chat_template = "template.jinja"'
            )
        try:
            self._render([Message("user", "a"), Message(ASSISTANT, "b")])
        except _TEMPLATE_ERRORS as error:
            raise RunFileError(
                f"{self.where} chat_template: it cannot write a user's and an assistant's message ({_first(error)}). Want a "
                "chat template in jinja, as transformers reads it; correct it, or name another by chat_template"
            ) from error

    def render(self, messages: Sequence[Message]) -> Rendering:
        """The conversation and its parts. Raises BadDocument: `template_error`, `template_alters_content`."""
        plain = self._written(messages)
        try:
            return self._by_marks(messages, plain)
        except BadDocument as error:
            found = self._by_words(messages, plain)
            if found is None:
                raise error
            return found

    def _by_marks(self, messages: Sequence[Message], plain: str) -> Rendering:
        """With one mark in place of each content. Raises BadDocument."""
        marks = [_MARK.format(i) for i in range(len(messages))]
        frames = self._frames(messages, marks)
        padded = self._written(_replaced(messages, [_LEFT_PAD + mark + _RIGHT_PAD for mark in marks]))
        spans = []
        for (_, content), (left, right) in zip(messages, _kept(_between(padded, marks), frames), strict=True):
            start = 0 if left else len(content) - len(content.lstrip())
            spans.append((start, len(content) if right else max(start, len(content.rstrip()))))
        wrong = _first_difference(messages, Rendering(plain, frames, spans))
        if wrong is not None:
            raise self._alters(wrong, messages)
        return Rendering(plain, frames, spans)

    def _by_words(self, messages: Sequence[Message], plain: str) -> Rendering | None:
        """With a mark in place of each word of each content, between the same tags and white space. None where the parts do not
        make up the real rendering: the template alters contents."""
        masked = [_masked(message.content, i) for i, message in enumerate(messages)]
        try:
            text = self._written(_replaced(messages, masked))
        except BadDocument:
            return None
        frames, spans, at = [], [], 0
        for content in masked:
            start, stop = next(
                (span for span in _kept_spans(content) if text.count(content[slice(*span)]) == 1), (0, 0)
            )
            place = text.find(content[start:stop], at)
            if stop == start or place < 0:
                return None
            left, right = text[max(at, place - 1) : place], text[place + stop - start :][:1]
            if (start and left == content[start - 1]) or (stop < len(content) and right == content[stop]):
                return None  # white space beside it may be the template's own, or what is left of the content's
            frames.append(text[at:place])
            at = place + stop - start
            spans.append((start, stop))
        # Words and their marks differ in length; the white space at the ends, which alone may be left out, does not.
        spans = [
            (start, len(message.content) - (len(content) - stop)) if message.content.strip() else (0, 0)
            for message, content, (start, stop) in zip(messages, masked, spans, strict=True)
        ]
        made = Rendering(plain, [*frames, text[at:]], spans)
        return made if _first_difference(messages, made) is None else None

    def check_history(self, messages: Sequence[Message], i: int, made: Rendering) -> None:
        """What stands before message i, and its content, must be what is there when the conversation ends with it, and
        begin with what the template asks an assistant with; whether that opens or closes thinking may differ (a model that is
        asked to think, and an answer without thoughts). Raises BadDocument("template_rewrites_history")."""
        begin = sum(map(len, made.frames[: i + 1])) + sum(stop - start for start, stop in made.spans[:i])
        end = begin + made.spans[i][1] - made.spans[i][0]
        so_far = self._written(messages[: i + 1])
        if so_far[:end] != made.text[:end]:
            raise self._rewrites(i, "later messages change it")
        if i and messages[i].role == ASSISTANT:
            asked = self._written(messages[:i], prompt=True)
            if not made.text[:begin].startswith(asked) and _unthinking(made.text[:begin]) != _unthinking(asked):
                raise self._rewrites(i, "it is not what add_generation_prompt writes")

    def _frames(self, messages: Sequence[Message], marks: list[str]) -> list[str]:
        marked = self._written(_replaced(messages, marks))
        for i, mark in enumerate(marks):
            if marked.count(mark) != 1:
                times = "drops" if mark not in marked else "repeats"
                raise BadDocument("template_alters_content", f"{self.where}: its chat template {times} message {i + 1}")
        places = [marked.index(mark) for mark in marks]
        if places != sorted(places):
            raise BadDocument("template_alters_content", f"{self.where}: its chat template reorders the messages")
        return _between(marked, marks)

    def _alters(self, i: int, messages: Sequence[Message]) -> BadDocument:
        return BadDocument(
            "template_alters_content",
            f"{self.where}: its chat template does not write message {i + 1} (role {messages[i].role!a}) as it stands",
        )

    def _rewrites(self, i: int, why: str) -> BadDocument:
        return BadDocument(
            "template_rewrites_history",
            f"{self.where}: what its chat template writes before message {i + 1} is not what the model sees when it writes "
            f"that message: {why}",
        )

    def _written(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        try:
            return self._render(messages, prompt=prompt)
        except _TEMPLATE_ERRORS as error:
            raise BadDocument("template_error", f"{self.where}: its chat template says: {_first(error)}") from error

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        chat = [message._asdict() for message in messages]
        rendered, _ = render_jinja_template(
            [chat], chat_template=self.text, add_generation_prompt=prompt, **self.variables
        )  # pyright: ignore[reportAssignmentType]
        return rendered[0]


def _replaced(messages: Sequence[Message], contents: list[str]) -> list[Message]:
    return [Message(message.role, content) for message, content in zip(messages, contents, strict=True)]


def _masked(content: str, i: int) -> str:
    """The content of message i with a mark in place of each word; tags and white space as they are. White space alone, and
    nothing: a mark."""
    if not content.strip():
        return _MARK.format(i)
    parts = _TAG.split(content)
    return "".join(part if k % 2 or not part else _MARK.format(f"{i}.{k}") for k, part in enumerate(parts))


def _kept_spans(content: str) -> list[tuple[int, int]]:
    """What a template may keep of a content: all, or all but white space at one end or both."""
    start, stop = len(content) - len(content.lstrip()), len(content.rstrip())
    return [(0, len(content)), (start, len(content)), (0, stop), (start, stop)]


def _first_difference(messages: Sequence[Message], made: Rendering) -> int | None:
    """The message at which frames and contents, put together, differ from the rendering; None where nothing does."""
    at = 0
    for i, frame in enumerate(made.frames):
        start, stop = made.spans[i] if i < len(made.spans) else (0, 0)
        said = frame + (messages[i].content[start:stop] if i < len(made.spans) else "")
        if not made.text.startswith(said, at):
            return min(i, len(messages) - 1)
        at += len(said)
    return None if at == len(made.text) else len(messages) - 1


def _unthinking(text: str) -> str:
    return _THINKING.sub("", text)


def _between(text: str, marks: list[str]) -> list[str]:
    """What stands before, between and behind the marks; [] when they are not all there in this order."""
    out, at = [], 0
    for mark in marks:
        place = text.find(mark, at)
        if place < 0:
            return []
        out.append(text[at:place])
        at = place + len(mark)
    return [*out, text[at:]]


def _kept(padded: list[str], frames: list[str]) -> list[tuple[bool, bool]]:
    """Of each content: whether white space at its left and right end is kept. Where that cannot be seen: kept; whether it was
    is then seen when all is put together."""
    left, right = [True] * (len(frames) - 1), [True] * (len(frames) - 1)
    for i, frame in enumerate(frames if len(padded) == len(frames) else []):
        for before in (True, False):  # what is behind content i - 1 and before content i
            for after in (True, False):
                whole = (_RIGHT_PAD if before and i else "") + frame
                whole += _LEFT_PAD if after and i < len(left) else ""
                if whole == padded[i]:
                    if i:
                        right[i - 1] = before
                    if i < len(left):
                        left[i] = after
    return list(zip(left, right, strict=True))


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
