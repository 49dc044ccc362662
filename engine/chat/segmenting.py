"""A conversation for all products of a run: messages -> for each product one sequence of tokens, with the same scored texts.

What the messages are and which are scored is the same everywhere; how they are written is each template's affair. The products
must agree on the text of every scored message and on where it begins, and they read anew at the same messages, so that a stretch
of one product's sequence goes with that of every other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.chat.conversation import ChatEncoder
from engine.chat.readings import Part, Reading, Seen, fixed, read_once, together, whole, writes_more
from engine.chat.segments import SegmentedDocument, SequenceBuilder, TokenSequence
from engine.chat.shortened import plain_readings, see_shortened
from engine.chat.template import ASSISTANT, Rendering
from engine.corpus.document import Document, Message
from engine.corpus.thinking import thinking_end
from schemas.errors import BadDocument
from schemas.products import BYTES, BYTES_END, TEACHER
from schemas.runfile import RunConfig


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What the run file says about conversations. roles: whose messages are scored. thinking: "score", or "keep": thoughts are
    context ("drop": they are out of the messages already). end: score the end of each turn. plain: there are no chat templates,
    the messages are a text in parts."""

    roles: tuple[str, ...]
    thinking: str
    end: bool
    plain: bool

    @classmethod
    def of(cls, run: RunConfig) -> ChatSettings:
        """From [corpus] roles, thinking, messages and [targets] end."""
        return cls(run.corpus.roles, run.corpus.thinking, run.targets.end, run.corpus.messages is None)


def segment_conversation(
    encoders: Mapping[str, ChatEncoder], document: Document, settings: ChatSettings, room: int | None = None
) -> SegmentedDocument:
    """The conversation in every tokenizer, and as bytes. room: teacher tokens that may stand before a scored part; the oldest are
    left out for that (engine/chat/shortened.py). Raises BadDocument, also where two templates write different things of a
    scored message."""
    messages = document.messages
    scored = [message.role in settings.roles and message.learned for message in messages]
    if not any(scored):
        found = ", ".join(sorted({ascii(message.role) for message in messages}))
        raise BadDocument("no_scored_message", f"the roles are {found}; [corpus] roles = {list(settings.roles)}")
    if document.tools:
        encoders = {p: replace(e, template=replace(e.template, tools=document.tools)) for p, e in encoders.items()}
    keep = settings.thinking == "keep"
    scored_from = [thinking_end(message.content) if keep and message.role == ASSISTANT else 0 for message in messages]
    simple = not any(
        asked and writes_more(message, score_thoughts=not keep) for asked, message in zip(scored, messages, strict=True)
    )
    made = _as_they_stand(encoders, messages, scored) if simple and (room is None or settings.plain) else None
    if made is not None:
        said = [message.content for message in messages]
        readings = {product: [whole(messages, one, scored, scored_from)] for product, one in made.items()}
        if room is not None:
            shortened = plain_readings(encoders[TEACHER], readings[TEACHER][0], room)
            readings = dict.fromkeys(readings, shortened)
    else:
        said, readings = _as_they_were_seen(encoders, messages, scored, scored_from, score_thoughts=not keep, room=room)
    _check_same(readings, messages)
    omitted = room is not None and _begins_late(readings[TEACHER][0], messages)
    sequences = {p: encoders[p].encode(readings[p], said, end=settings.end, omitted=omitted) for p in encoders}
    texts = [part.text for reading in readings[TEACHER] for part in reading.parts if part.scored]
    if not any(segment.positions for sequence in sequences.values() for segment in sequence.segments):
        raise BadDocument("too_short", "all scored messages are empty, and their ends are not scored")
    closed = [segment.closed for segment in sequences[TEACHER].segments]
    sequences[BYTES] = _as_bytes(said, readings[TEACHER], closed)
    text = "".join(said)
    return SegmentedDocument(texts, sequences, None if text == document.text else text, cut=room is not None)


def without_long_prompts(
    encoders: Mapping[str, ChatEncoder], document: Document, settings: ChatSettings, room: int
) -> Document:
    """The conversation with those messages not to be scored that have more than `room` teacher tokens before them. Raises
    BadDocument."""
    teacher = segment_conversation(encoders, document, settings).sequences[TEACHER]
    asked = [i for i, message in enumerate(document.messages) if message.role in settings.roles and message.learned]
    long = {i for i, segment in zip(asked, teacher.segments, strict=True) if len(teacher.given(segment)) > room}
    messages = (
        message._replace(learned=message.learned and i not in long) for i, message in enumerate(document.messages)
    )
    return replace(document, messages=tuple(messages))


def _as_they_stand(
    encoders: Mapping[str, ChatEncoder], messages: Sequence[Message], scored: Sequence[bool]
) -> dict[str, Rendering] | None:
    """Product -> one rendering with all contents in it, where every scored message stands in it as the model saw it, for every
    product; else None."""
    made = {}
    for product, encoder in encoders.items():
        try:
            made[product] = encoder.template.render(messages)
            for i, asked in enumerate(scored):
                if asked:
                    encoder.template.check_history(messages, i, made[product])
        except BadDocument as error:
            if error.reason == "template_error":
                raise
            return None
    return made


def _as_they_were_seen(
    encoders: Mapping[str, ChatEncoder],
    messages: Sequence[Message],
    scored: Sequence[bool],
    scored_from: Sequence[int],
    *,
    score_thoughts: bool,
    room: int | None,
) -> tuple[list[str], dict[str, list[Reading]]]:
    """(the text of each message, product -> its readings)."""
    asked = [i for i, wanted in enumerate(scored) if wanted]
    each = [see_shortened(encoders, messages, i, score_thoughts=score_thoughts, room=room) for i in asked]
    seen = {product: [one[product] for one in each] for product in encoders}
    starts = [max(one[k].start for one in seen.values()) for k in range(len(asked))]
    for product, ones in seen.items():
        for theirs, ours in zip(seen[TEACHER], ones, strict=True):
            if theirs.said != ours.said:
                raise _differ(product, ours.message, f"{theirs.said!a:.80}", f"{ours.said!a:.80}")
    cuts = sorted({k for ones in seen.values() for k in together(ones)})
    said = [message.content for message in messages]
    for one in seen[TEACHER]:
        said[one.message] = one.said
    readings: dict[str, list[Reading]] = {}
    for product, encoder in encoders.items():
        readings[product] = []
        for first, behind in zip([0, *cuts], [*cuts, len(asked)], strict=True):
            group = seen[product][first:behind]
            begin = [max(starts[first + k], scored_from[one.message]) for k, one in enumerate(group)]
            readings[product].append(_readable(encoder, messages, group, begin))
        readings[product][-1] = _with_rest(readings[product][-1], messages, asked[-1])
    return said, readings


def _readable(encoder: ChatEncoder, messages: Sequence[Message], group: list[Seen], begin: list[int]) -> Reading:
    """The reading of a group, unless a special string that somebody wrote would be read as the special token of that name."""
    reading, complete = read_once(encoder.template, messages, group, begin)
    own = [] if complete else [(k, messages[k].content) for k in group[-1].kept]
    own += [(one.message, one.said) for one in group if one.said != messages[one.message].content]
    for i, text in own:
        if name := encoder.special_in(text):
            raise BadDocument(
                "template_alters_content",
                f"message {i + 1}: {name!a} stands in it as {encoder.template.where}: its chat template writes it, a special "
                "token where text was meant, or within the text that is to be scored",
            )
    return reading


def _begins_late(reading: Reading, messages: Sequence[Message]) -> bool:
    """Whether a reading is without the first text of the conversation, or the first behind a system message, or its beginning."""
    first = next((part for part in reading.parts if part.message >= fixed(messages)), None)
    return first is not None and (first.message, first.start > 0) != (fixed(messages), False)


def _with_rest(reading: Reading, messages: Sequence[Message], last: int) -> Reading:
    """The last reading with the contents of the messages behind it, which nobody reads who writes a scored one."""
    rest = [Part(i, 0, messages[i].content, False) for i in range(last + 1, len(messages)) if messages[i].content]
    return Reading([*reading.frames, *([""] * len(rest))], [*reading.parts, *rest])


def _check_same(readings: Mapping[str, list[Reading]], messages: Sequence[Message]) -> None:
    """All products must score the same texts of the same messages. Raises BadDocument."""
    scored = {p: [part for one in found for part in one.parts if part.scored] for p, found in readings.items()}
    for product, parts in scored.items():
        for theirs, ours in zip(scored[TEACHER], parts, strict=True):
            if theirs != ours:
                a, b = ((part.start, part.start + len(part.text)) for part in (theirs, ours))
                raise _differ(product, ours.message, f"its characters {a[0]} to {a[1]}", f"{b[0]} to {b[1]}")


def _differ(product: str, i: int, theirs: str, ours: str) -> BadDocument:
    return BadDocument(
        "template_alters_content",
        f"message {i + 1}: the template of the teacher keeps {theirs}, that of {product} {ours}: they strip white space, or "
        "write thoughts or calls, differently",
    )


def _as_bytes(said: Sequence[str], readings: Sequence[Reading], closed: list[bool]) -> TokenSequence:
    """The bytes of all messages, and an end behind each scored text that the teacher's template ends. Read anew where the others
    are."""
    scored = {part.message: part for reading in readings for part in reading.parts if part.scored}
    firsts = {max(part.message for part in one.parts if part.scored) + 1 for one in readings[:-1]}
    builder, shift = SequenceBuilder(), 0
    for i, text in enumerate(said):
        if i in firsts:
            builder.anew()
        raw = list(text.encode())
        ends = list(range(1, len(raw) + 1))
        if i not in scored:
            builder.text(raw, ends, shift)
        else:
            start = len(text[: scored[i].start].encode())
            stop = start + len(scored[i].text.encode())
            builder.text(raw[:start], ends[:start], shift)
            has_end = closed[len(builder.segments)]
            builder.scored_text(raw[start:stop], ends[: stop - start], shift + start, closed=has_end)
            if has_end:
                builder.context([BYTES_END], shift + stop)
            builder.text(raw[stop:], ends[stop:], shift)
        shift += len(raw)
    return builder.build()
