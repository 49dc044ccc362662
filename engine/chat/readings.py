"""What a model reads when it writes each scored message: a conversation -> readings, each one rendering with the texts in it.

A template may write a message otherwise once others follow: Qwen3's drops the thinking of earlier turns, and writes an empty
thinking block before the last answer alone. Then one rendering cannot be what the model saw at each of its turns. A scored
message is therefore looked at as it stands when the conversation ends with it. Neighbours that lie in one rendering in this way
are read together; where a later one is rendered behind another history, the model reads anew from the beginning.

Where the template loses the thinking of even that last message, what it asks an assistant with is read, and behind that the
content as the model wrote it. Where a template writes more of a message than its content (tool calls, thoughts in a field of
their own), all that stands between what asks the assistant and the end of the turn is the message's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from engine.chat.marks import unthinking
from engine.chat.template import ASSISTANT, ChatTemplate, Rendering
from engine.corpus.document import CALLS, REASONING, Message
from engine.corpus.thinking import thinking_end
from schemas.errors import BadDocument

_NO_THOUGHTS = re.compile(r"\s*(?:<think(?:ing)?>\s*</think(?:ing)?>|\[THINK\]\s*\[/THINK\])\s*")


@dataclass(frozen=True, slots=True)
class Part:
    """A text of a message in a reading. start: characters of the message's text before it."""

    message: int
    start: int
    text: str
    scored: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """frames[0] + parts[0].text + frames[1] + ... + frames[n]: what a model reads from the beginning."""

    frames: list[str]
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Seen:
    """A scored message as the model saw it when it wrote it.

    text: all that is read up to the end of the turn. begin, end: the message's own characters of it, which are those of `said`
    from `start` on. said: the text of the message: its content, or what the template writes of it. as_asked: `text` is what asks
    the assistant and the content, not a rendering of the message. kept: the messages that are read, this one the last.
    """

    message: int
    text: str
    begin: int
    end: int
    said: str
    start: int
    as_asked: bool
    kept: tuple[int, ...]


def writes_more(message: Message, *, score_thoughts: bool) -> bool:
    """Whether the text of a message is more than its content: calls, and thoughts where they are to be scored."""
    return message.has(CALLS) or (score_thoughts and message.has(REASONING))


def see(template: ChatTemplate, messages: Sequence[Message], i: int, *, score_thoughts: bool, omitted: int = 0) -> Seen:
    """Message i as the model saw it. omitted: so many messages are left out of the history, the oldest, but not a system message
    at the beginning. Raises BadDocument."""
    kept = (*range(fixed(messages)), *range(fixed(messages) + omitted, i + 1))
    upto, message = [messages[k] for k in kept], messages[i]
    if message.role == ASSISTANT and writes_more(message, score_thoughts=score_thoughts):
        seen = _all_that_is_written(template, upto, i, kept)
        if seen.said.strip() != message.content.strip():
            return seen  # else the template writes nothing but the content
    last = len(upto) - 1
    try:
        made = template.found(upto, {last: 0})
        (start, stop) = made.spans[0]
        begin = len(made.frames[0])
        template.check_prompt(upto, last, made.text[:begin])
    except BadDocument:
        if message.role != ASSISTANT or not last or not thinking_end(message.content):
            raise
        return _behind_what_asks(template, upto, i, kept)
    _check_history_is_there(template, upto[:-1], made.text[:begin])
    return Seen(i, made.text, begin, begin + stop - start, message.content, start, False, kept)


def together(seen: Sequence[Seen]) -> list[int]:
    """Places in `seen` (rising messages) at which the model must read anew: the history there is not what it read before."""
    return [
        k for k in range(1, len(seen)) if not seen[k].text.startswith(seen[k - 1].text[: seen[k - 1].end])
    ]  # fmt: skip


def read_once(
    template: ChatTemplate, messages: Sequence[Message], seen: Sequence[Seen], scored_from: Sequence[int]
) -> tuple[Reading, bool]:
    """(scored messages that are read together as one reading, whether all contents before them were found in it). scored_from:
    characters of each one's text that are context."""
    last = seen[-1]
    places = [(s.begin, s.end, s.message, s.start, s.said) for s in seen]
    mine = {s.message for s in seen}
    found, complete = _history(template, messages, last, mine)
    frames, parts, at = [], [], 0
    for begin, end, message, start, said in sorted([*places, *found]):
        frames.append(last.text[at:begin])
        cut = max(start, scored_from[[s.message for s in seen].index(message)]) if message in mine else start
        text = said[start : start + end - begin]
        if cut > start:  # thoughts that are context, and what another side's template has in its frame
            parts.append(Part(message, start, text[: cut - start], False))
            frames.append("")
        parts.append(Part(message, cut, text[cut - start :], message in mine))
        at = end
    return Reading([*frames, last.text[at:]], parts), complete


def whole(messages: Sequence[Message], made: Rendering, scored: Sequence[bool], scored_from: Sequence[int]) -> Reading:
    """A rendering in which every content stands, as one reading. scored_from: characters of each content that are context."""
    frames, parts = [], []
    for k, i in enumerate(made.of):
        (start, stop), content = made.spans[k], messages[i].content
        frames.append(made.frames[k])
        cut = min(max(start, scored_from[i]), stop)
        if scored[i] and cut > start:
            parts.append(Part(i, start, content[start:cut], False))
            frames.append("")
            start = cut
        parts.append(Part(i, start, content[start:stop], scored[i]))
    return Reading([*frames, made.frames[-1]], parts)


def fixed(messages: Sequence[Message]) -> int:
    """How many messages at the beginning are never left out: a system message."""
    return int(messages[0].role == "system")


def _all_that_is_written(template: ChatTemplate, upto: list[Message], i: int, kept: tuple[int, ...]) -> Seen:
    asked = template.written(upto[:-1], prompt=True) if len(upto) > 1 else ""
    text, closing = template.written(upto), template.closing(upto)
    begin = len(commonprefix([asked, text]))
    if begin < len(unthinking(asked)):
        raise template.rewrites(i, "it is not what add_generation_prompt writes")
    end = len(text) - len(closing)
    without = _NO_THOUGHTS.match(text, len(unthinking(text[:begin])), end)
    if without:  # the empty block is given, as it is before a content
        begin = max(begin, without.end())
    message = upto[-1]
    if not text.endswith(closing) or end < begin or not _stands_in(message, text[begin:end]):
        raise template.alters(len(upto) - 1, upto, " together with its calls or thoughts")
    _check_history_is_there(template, upto[:-1], text[:begin])
    return Seen(i, text, begin, end, text[begin:end], 0, False, kept)


def _behind_what_asks(template: ChatTemplate, upto: list[Message], i: int, kept: tuple[int, ...]) -> Seen:
    """The content behind what asks the assistant, for a template that loses the thinking in it and nothing else."""
    content = upto[-1].content
    if not _stands_in(upto[-1], template.written(upto)):
        raise template.alters(len(upto) - 1, upto)
    asked, closing = template.written(upto[:-1], prompt=True), template.closing(upto)
    start = max((n for n in range(min(len(asked), len(content)) + 1) if asked.endswith(content[:n])), default=0)
    start = start if content[:start].strip() else 0  # white space alone is the template's, and the content's once more
    _check_history_is_there(template, upto[:-1], asked)
    end = len(asked) + len(content) - start
    return Seen(i, asked + content[start:] + closing, len(asked), end, content, start, True, kept)


def _check_history_is_there(template: ChatTemplate, history: Sequence[Message], text: str) -> None:
    """Every content of the history must stand in what is read, maybe without its thinking, and what it calls. Raises
    BadDocument."""
    for k, message in enumerate(history):
        if not _stands_in(message, text):
            raise template.alters(k, history, " where a later message is written")


def _stands_in(message: Message, text: str) -> bool:
    content = message.content[thinking_end(message.content) if message.role == ASSISTANT else 0 :].strip()
    if not all(name in text for name in message.called):
        return False
    return content in text or json.dumps(content)[1:-1] in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def _history(
    template: ChatTemplate, messages: Sequence[Message], last: Seen, mine: set[int]
) -> tuple[list[tuple[int, int, int, int, str]], bool]:
    """(of each content that is read and not scored there: begin, end, message, start, its text; whether all were found)."""
    read = [messages[k] for k in (last.kept[:-1] if last.as_asked else last.kept)]
    leads = {
        at: thinking_end(message.content) if message.role == ASSISTANT else 0
        for at, (k, message) in enumerate(zip(last.kept, read, strict=False))
        if k not in mine
    }
    try:
        plain = None if last.as_asked else last.text
        made = template.found(read, leads, prompt=last.as_asked, plain=plain)
    except BadDocument:
        return [], not leads
    out, at = [], 0
    for k, place in enumerate(made.of):
        at += len(made.frames[k])
        (start, stop), message = made.spans[k], last.kept[place]
        out.append((at, at + stop - start, message, start, messages[message].content))
        at += stop - start
    return out, True
