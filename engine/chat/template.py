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

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from engine.chat.marks import LEFT_PAD, MARK, RIGHT_PAD, between, ends_kept, kept_spans, unthinking, with_words_masked
from engine.corpus.document import Message
from schemas.errors import BadDocument, RunFileError

ASSISTANT = "assistant"
# Stands for today's date, which no target may depend on.
_TODAY = "\ue0f0today\ue0f1"
_TRIED = (Message("user", "a"), Message(ASSISTANT, "b"))
# What a template may raise: by itself, and by an operation on a value that is not what it expects.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True)
class Rendering:
    """text = frames[0] + contents[0] + frames[1] + ... + frames[n]. of: the messages whose contents these are, rising. spans: of
    each such content, which characters of the message the template kept (start, stop): all of what was looked for, or all but
    white space at the ends."""

    text: str
    frames: list[str]
    spans: list[tuple[int, int]]
    of: list[int]


@dataclass(frozen=True)
class ChatTemplate:
    """A product's chat template. tools: of the conversation at hand, a JSON list; "" for none. given: what the run file gives the
    template (chat_template_kwargs)."""

    text: str  # jinja
    variables: dict[str, Any]  # the strings of the tokenizer's specials, by the names that templates use
    where: str  # the table of the run file, for messages
    tools: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)

    def writes_as(self, other: ChatTemplate) -> bool:
        """Whether the two write the same of every conversation."""
        mine, theirs = ((one.text, one.variables, one.tools, one.given) for one in (self, other))
        return mine == theirs

    def check(self) -> None:
        """Refuse, before any work, a template that is none or that depends on the day. Raises RunFileError."""
        try:
            tried = [self._render(_TRIED), self._render(_TRIED[:1], prompt=True)]
        except _TEMPLATE_ERRORS as error:
            raise RunFileError(
                f"{self.where} chat_template: it cannot write a user's and an assistant's message ({_first(error)}). Want a "
                "chat template in jinja, as transformers reads it; correct it, or name another by chat_template"
            ) from error
        if any(_TODAY in text for text in tried):
            raise RunFileError(
                f"{self.where} chat_template: it writes today's date (strftime_now), so that the targets would depend on the "
                "day of the run. Want one that is the same every day: give it the date that it shall write, for example "
                'chat_template_kwargs = {date_string = "26 Jul 2024"} where it knows date_string, else '
                'chat_template_kwargs = {strftime_now = "26 Jul 2024"}'
            )

    def written(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The conversation as the template writes it. prompt: and then asks an assistant to write. Raises
        BadDocument("template_error")."""
        try:
            text = self._render(messages, prompt=prompt)
        except _TEMPLATE_ERRORS as error:
            raise BadDocument("template_error", f"{self.where}: its chat template says: {_first(error)}") from error
        if _TODAY in text:
            raise BadDocument("template_error", f"{self.where}: its chat template writes today's date: give it one")
        return text

    def render(self, messages: Sequence[Message]) -> Rendering:
        """The conversation and its parts. Raises BadDocument: `template_error`, `template_alters_content`."""
        return self.found(messages, dict.fromkeys(range(len(messages)), 0))

    def found(
        self, messages: Sequence[Message], leads: Mapping[int, int], *, prompt: bool = False, plain: str | None = None
    ) -> Rendering:
        """The conversation, and where in it the contents of some messages lie. leads: message -> characters at the beginning of
        its content that are not looked for. plain: the conversation as written, where that is known. Raises BadDocument as
        `render`."""
        plain = self.written(messages, prompt=prompt) if plain is None else plain
        try:
            return self._by_marks(messages, plain, leads, prompt)
        except BadDocument as error:
            made = None if any(leads.values()) else self._by_words(messages, plain, sorted(leads), prompt)
            if made is None:
                raise error
            return made

    def _by_marks(self, messages: Sequence[Message], plain: str, leads: Mapping[int, int], prompt: bool) -> Rendering:
        """With one mark in place of each content. Raises BadDocument."""
        of = sorted(leads)
        marks = [MARK.format(i) for i in of]
        before = [messages[i].content[: leads[i]] for i in of]
        frames = self._frames(messages, of, before, marks, prompt)
        kept = [(True, True)] * len(of)
        if any(messages[i].content[leads[i] :] != messages[i].content[leads[i] :].strip() for i in of):
            pads = [lead + LEFT_PAD + mark + RIGHT_PAD for lead, mark in zip(before, marks, strict=True)]
            padded = self.written(_replaced(messages, of, pads), prompt=prompt)
            kept = ends_kept(between(padded, marks), frames)
        spans = []
        for i, (left, right) in zip(of, kept, strict=True):
            lead, content = leads[i], messages[i].content[leads[i] :]
            start = 0 if left else len(content) - len(content.lstrip())
            spans.append((lead + start, lead + (len(content) if right else max(start, len(content.rstrip())))))
        made = Rendering(plain, frames, spans, of)
        wrong = _first_difference(messages, made)
        if wrong is not None:
            raise self.alters(wrong, messages)
        return made

    def _by_words(self, messages: Sequence[Message], plain: str, of: list[int], prompt: bool) -> Rendering | None:
        """With a mark in place of each word of each content, between the same tags and white space. None where the parts do not
        make up the real rendering: the template alters contents."""
        masked = [with_words_masked(messages[i].content, i) for i in of]
        try:
            text = self.written(_replaced(messages, of, masked), prompt=prompt)
        except BadDocument:
            return None
        frames, spans, at = [], [], 0
        for content in masked:
            start, stop = next((span for span in kept_spans(content) if text.count(content[slice(*span)]) == 1), (0, 0))
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
            (start, len(messages[i].content) - (len(content) - stop)) if messages[i].content.strip() else (0, 0)
            for i, content, (start, stop) in zip(of, masked, spans, strict=True)
        ]
        made = Rendering(plain, [*frames, text[at:]], spans, of)
        return made if _first_difference(messages, made) is None else None

    def check_history(self, messages: Sequence[Message], i: int, made: Rendering) -> None:
        """What stands before message i, and its content, must be what is there when the conversation ends with it, and
        begin with what the template asks an assistant with (`check_prompt`). made: of all messages. Raises
        BadDocument("template_rewrites_history")."""
        begin = sum(map(len, made.frames[: i + 1])) + sum(stop - start for start, stop in made.spans[:i])
        end = begin + made.spans[i][1] - made.spans[i][0]
        so_far = self.written(messages[: i + 1])
        if so_far[:end] != made.text[:end]:
            raise self.rewrites(i, "later messages change it")
        self.check_prompt(messages, i, made.text[:begin])

    def check_prompt(self, messages: Sequence[Message], i: int, before: str) -> None:
        """What stands `before` an assistant's message must begin with what the template asks it with; whether that opens or
        closes thinking may differ (a model that is asked to think, and an answer without thoughts). Raises
        BadDocument("template_rewrites_history")."""
        if i and messages[i].role == ASSISTANT:
            asked = self.written(messages[:i], prompt=True)
            if not before.startswith(asked) and unthinking(before) != unthinking(asked):
                raise self.rewrites(i, "it is not what add_generation_prompt writes")

    def closing(self, messages: Sequence[Message]) -> str:
        """What the template writes behind the last message when that is a plain content. Raises BadDocument."""
        *before, last = messages
        mark = MARK.format("end")
        text = self.written([*before, Message(last.role, mark)])
        if text.count(mark) != 1:
            raise self.alters(len(before), messages)
        return text[text.index(mark) + len(mark) :]

    def _frames(
        self, messages: Sequence[Message], of: list[int], before: list[str], marks: list[str], prompt: bool
    ) -> list[str]:
        contents = [lead + mark for lead, mark in zip(before, marks, strict=True)]
        marked = self.written(_replaced(messages, of, contents), prompt=prompt)
        for i, mark in zip(of, marks, strict=True):
            if marked.count(mark) != 1:
                times = "drops" if mark not in marked else "repeats"
                raise BadDocument("template_alters_content", f"{self.where}: its chat template {times} message {i + 1}")
        places = [marked.index(mark) for mark in marks]
        if places != sorted(places):
            raise BadDocument("template_alters_content", f"{self.where}: its chat template reorders the messages")
        return between(marked, marks)

    def alters(self, i: int, messages: Sequence[Message], why: str = "") -> BadDocument:
        """The refusal of a template that does not keep message i."""
        return BadDocument(
            "template_alters_content",
            f"{self.where}: its chat template does not write message {i + 1} (role {messages[i].role!a}) as it stands{why}",
        )

    def rewrites(self, i: int, why: str) -> BadDocument:
        """The refusal of a template that writes something else before message i than the model saw."""
        return BadDocument(
            "template_rewrites_history",
            f"{self.where}: what its chat template writes before message {i + 1} is not what the model sees when it writes "
            f"that message: {why}",
        )

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether the template writes a content only when it is a list of parts."""
        mark, found = MARK.format("parts"), []
        for content in (mark, [{"type": "text", "text": mark}]):
            try:
                found.append(mark in self._raw([{"role": "user", "content": content}], False))
            except _TEMPLATE_ERRORS:
                found.append(False)
        return found == [False, True]

    @cached_property
    def _wants_arguments_as_text(self) -> bool:
        """Whether the template writes a tool call only where its arguments are JSON in a text (DeepSeek-V3)."""
        found = []
        for arguments in ({"a": 1}, '{"a": 1}'):
            call = {"id": "c00000000", "type": "function", "function": {"name": "f", "arguments": arguments}}
            chat = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "", "tool_calls": [call]}]
            try:
                found.append(bool(self._raw(chat, False)))
            except _TEMPLATE_ERRORS:
                found.append(False)
        return found == [False, True]

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        chat = [message.for_template() for message in messages]
        if any("tool_calls" in one for one in chat) and self._wants_arguments_as_text:
            chat = [_with_arguments_as_text(one) for one in chat]
        if self._wants_parts:
            chat = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in chat]
        return self._raw(chat, prompt)

    def _raw(self, chat: list[dict[str, Any]], prompt: bool) -> str:
        more = {**self.variables, **self.given}
        text = self.text
        if "strftime_now" in text:  # a macro hides transformers' function of this name
            today = more.pop("strftime_now", _TODAY)
            text = f"{{%- macro strftime_now(form) -%}}{{{{ today_ }}}}{{%- endmacro %}}{text}"
            more["today_"] = today
        asked = prompt or bool(more.pop("add_generation_prompt", False))
        tools = json.loads(self.tools) if self.tools else None
        rendered, _ = render_jinja_template(
            [chat], tools=tools, chat_template=text, add_generation_prompt=asked, **more
        )  # pyright: ignore[reportAssignmentType]
        return rendered[0]


def _with_arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    calls = copy.deepcopy(message.get("tool_calls"))
    for call in calls if isinstance(calls, list) else []:
        inner = call.get("function") if isinstance(call, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("arguments"), dict):
            inner["arguments"] = json.dumps(inner["arguments"], ensure_ascii=False)
    return {**message, "tool_calls": calls} if calls else message


def _replaced(messages: Sequence[Message], of: Sequence[int], contents: Sequence[str]) -> list[Message]:
    out = list(messages)
    for i, content in zip(of, contents, strict=True):
        out[i] = out[i]._replace(content=content)
    return out


def _first_difference(messages: Sequence[Message], made: Rendering) -> int | None:
    """The message at which frames and contents, put together, differ from the rendering; None where nothing does."""
    at = 0
    for k, frame in enumerate(made.frames):
        start, stop = made.spans[k] if k < len(made.spans) else (0, 0)
        said = frame + (messages[made.of[k]].content[start:stop] if k < len(made.spans) else "")
        if not made.text.startswith(said, at):
            return made.of[min(k, len(made.of) - 1)] if made.of else len(messages) - 1
        at += len(said)
    return None if at == len(made.text) else len(messages) - 1


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
