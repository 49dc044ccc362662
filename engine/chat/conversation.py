"""A conversation as tokens: messages -> for every product one sequence, with the scored messages' contents as its segments.

Template text is encoded with the tokenizer's specials known, contents without: a string such as `<|im_end|>` that somebody
wrote is plain text for every tokenizer. The two are encoded apart, so that tokens end where contents begin and end; that is how a
model meets them when it writes (the prompt's tokens are there, then come new ones).

A tokenizer that puts a space before a text (SentencePiece) does so at the beginning and behind specials only. Behind other
template text a content is read without it (`Vocabulary.bare`); a space that the template itself writes before a content is
taken as that space, as it is when the whole is encoded at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer

from engine.bpe.vocabulary import Vocabulary
from engine.chat.segments import SegmentedDocument, SequenceBuilder, TokenSequence
from engine.chat.special_tokens import prefix_behind_special, special_pattern, with_specials
from engine.chat.template import ASSISTANT, ChatTemplate, Rendering
from engine.chat.template_files import chat_templates
from engine.corpus.document import Message
from schemas.errors import BadDocument, RunFileError
from schemas.products import BYTES, BYTES_END, TEACHER
from schemas.runfile import RunConfig

_PROBE = (Message("user", "a"), Message(ASSISTANT, "b"), Message("user", "c"), Message(ASSISTANT, "d"))


@dataclass(frozen=True, eq=False)
class ChatEncoder:
    """How one product's tokenizer reads conversations.

    full: the tokenizer as it comes. vocabulary: how it reads scored contents; its `eos_id` is the end of a turn.
    """

    template: ChatTemplate
    full: Vocabulary
    vocabulary: Vocabulary
    _marked: dict[bool, Tokenizer] = field(repr=False)  # knows special strings; True: puts no prefix before a text
    _special: re.Pattern[str] | None = field(repr=False)  # finds special strings
    _after_special: bool  # whether a text right behind a special gets the prefix

    @classmethod
    def make(cls, template: ChatTemplate, vocabulary: Vocabulary) -> ChatEncoder:
        """Finds out, on a small conversation, how the template leads into an assistant's content and what ends it: the
        special that it writes right behind the content, else the tokenizer's end token."""
        marked = {bare: with_specials(vocabulary.bare if bare else vocabulary) for bare in (False, True)}
        behind = prefix_behind_special(vocabulary)
        encoder = cls(template, vocabulary, vocabulary, marked, special_pattern(vocabulary), behind)
        rendered = template.render(_PROBE)
        joined = encoder._join(rendered.frames[1], "b", first=False)[1]
        ends = encoder.frame_ids(rendered.frames[2], first=False)[:1]
        end = ends[0] if ends and ends[0] in vocabulary.specials else vocabulary.eos_id
        return replace(encoder, vocabulary=replace(joined, eos_id=end))

    def encode(
        self, messages: Sequence[Message], scored: Sequence[bool], *, end: bool
    ) -> tuple[TokenSequence, list[tuple[int, int]]]:
        """(the whole conversation in this tokenizer, of each scored message the (start, stop) characters that its segment holds).

        scored: for each message, whether its content is. end: score the end of each turn. Raises BadDocument.
        """
        made = self.template.render(messages)
        for i, asked in enumerate(scored):
            if asked:
                self.template.check_history(messages, i, made)
        builder, shift, said = SequenceBuilder(), 0, 0  # bytes of the messages before; where the content before ended
        contents = [m.content[start:stop] for m, (start, stop) in zip(messages, made.spans, strict=True)]
        for i, message in enumerate(messages):
            lead = len(message.content[: made.spans[i][0]].encode())
            frame, vocabulary = self._join(made.frames[i], contents[i], first=not i)
            builder.context(self.frame_ids(frame, first=not i), said)
            builder.reach(shift + lead)  # white space that the template stripped belongs to its own text
            ids, ends = vocabulary.encode(contents[i]) if contents[i] else ([], [])
            if not scored[i]:
                builder.text(ids, ends, shift + lead)
            else:
                if contents[i] and vocabulary.prefix_bytes != self.vocabulary.prefix_bytes:
                    raise BadDocument(
                        "not_reversible",
                        f"{self.template.where}: its chat template leads into message {i + 1} in another way than into "
                        "an assistant's, so that the tokenizer's space before it is there once and not the other time",
                    )
                builder.scored_text(ids, ends, shift + lead, closed=end and self._is_closed(made, i))
            said = shift + lead + len(contents[i].encode())
            shift += len(message.content.encode())
        builder.context(self.frame_ids(made.frames[-1], first=False), said)
        return builder.build(), [span for span, asked in zip(made.spans, scored, strict=True) if asked]

    def _is_closed(self, made: Rendering, i: int) -> bool:
        return self.frame_ids(made.frames[i + 1], first=False)[:1] == [self.vocabulary.eos_id]

    def frame_ids(self, frame: str, *, first: bool) -> list[int]:
        """Tokens of template text. first: it opens the conversation; else a content stands before it."""
        if first or not self.full.prefix_bytes:
            return self._marked[False].encode(frame, add_special_tokens=False).ids
        found = self._special.search(frame) if self._special else None
        cut = found.start() if found else len(frame)
        behind = self._marked[not self._after_special]
        head = self._marked[True].encode(frame[:cut], add_special_tokens=False).ids
        return head + behind.encode(frame[cut:], add_special_tokens=False).ids

    def _join(self, frame: str, content: str, *, first: bool) -> tuple[str, Vocabulary]:
        """(template text, how the content behind it is read)."""
        if not self.full.prefix_bytes or not content:
            return frame, self.full.bare
        if not frame and first:
            return frame, self.full
        found = list(self._special.finditer(frame)) if self._special else []
        if found and found[-1].end() == len(frame):
            return frame, self.full if self._after_special else self.full.bare
        if frame.endswith(" "):
            return frame[:-1], self.full
        return frame, self.full.bare


def chat_encoders(run: RunConfig, vocabularies: dict[str, Vocabulary]) -> dict[str, ChatEncoder]:
    """Product -> its encoder, of all `vocabularies`; empty for a corpus of texts.

    Raises RunFileError for a template that is missing or unusable, TokenizerError where a tokenizer's files cannot be had.
    """
    out = {}
    for product, template in chat_templates(run).items():
        try:
            out[product] = ChatEncoder.make(template, vocabularies[product])
        except BadDocument as error:
            raise RunFileError(
                f"{template.where} chat_template: it does not write a plain conversation of a user and an assistant as it stands "
                f"({error}). Want one that keeps contents; correct it, or name another by chat_template"
            ) from error
    return out


def segment_conversation(
    encoders: dict[str, ChatEncoder], messages: Sequence[Message], roles: Sequence[str], *, end: bool
) -> SegmentedDocument:
    """The conversation in every tokenizer, and as bytes. roles: whose messages are scored. end: score the end of each turn.

    Raises BadDocument, also where two templates keep different parts of a scored content.
    """
    scored = [message.role in roles for message in messages]
    if not any(scored):
        found = ", ".join(sorted({ascii(message.role) for message in messages}))
        raise BadDocument("no_scored_message", f"the roles are {found}; [corpus] roles = {list(roles)}")
    sequences, kept = {}, {}
    for product, encoder in encoders.items():
        sequences[product], kept[product] = encoder.encode(messages, scored, end=end)
    asked = [i for i, wanted in enumerate(scored) if wanted]
    for product, spans in kept.items():
        for i, theirs, ours in zip(asked, kept[TEACHER], spans, strict=True):
            if theirs != ours:
                raise BadDocument(
                    "template_alters_content",
                    f"message {i + 1}: the template of the teacher keeps its characters {theirs[0]} to {theirs[1]}, that of "
                    f"{product} {ours[0]} to {ours[1]}: they strip white space differently",
                )
    texts = [messages[i].content[start:stop] for i, (start, stop) in zip(asked, kept[TEACHER], strict=True)]
    if not any(segment.positions for sequence in sequences.values() for segment in sequence.segments):
        raise BadDocument("too_short", "all scored messages are empty, and their ends are not scored")
    closed = [segment.closed for segment in sequences[TEACHER].segments]
    sequences[BYTES] = _as_bytes(messages, dict(zip(asked, kept[TEACHER], strict=True)), closed)
    return SegmentedDocument(texts, sequences)


def _as_bytes(messages: Sequence[Message], kept: dict[int, tuple[int, int]], closed: list[bool]) -> TokenSequence:
    """The bytes of all contents, and an end behind each scored one that the teacher's template ends."""
    builder, shift = SequenceBuilder(), 0
    for i, message in enumerate(messages):
        raw = list(message.content.encode())
        ends = list(range(1, len(raw) + 1))
        if i not in kept:
            builder.text(raw, ends, shift)
        else:
            start, stop = (len(message.content[:place].encode()) for place in kept[i])
            builder.text(raw[:start], ends[:start], shift)
            has_end = closed[len(builder.segments)]
            builder.scored_text(raw[start:stop], ends[: stop - start], shift + start, closed=has_end)
            if has_end:
                builder.context([BYTES_END], shift + stop)
            builder.text(raw[stop:], ends[stop:], shift)
        shift += len(raw)
    return builder.build()
