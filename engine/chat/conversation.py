"""A conversation as tokens: what one product's model reads of it -> one sequence, with the scored texts as its segments.

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
from engine.chat.readings import Reading
from engine.chat.segments import SequenceBuilder, TokenSequence
from engine.chat.special_tokens import prefix_behind_special, special_pattern, with_specials
from engine.chat.template import ASSISTANT, ChatTemplate
from engine.chat.template_files import chat_templates
from engine.corpus.document import Message
from schemas.errors import BadDocument, RunFileError
from schemas.runfile import RunConfig

# The template of texts without one; _END is no text, it stands for the tokenizer's end token.
_END = "\ue0f0eos\ue0f1"
_PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}{% if not add_generation_prompt %}END{% endif %}"
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
        self, readings: Sequence[Reading], said: Sequence[str], *, end: bool, omitted: bool = False
    ) -> TokenSequence:
        """The readings one behind the other in this tokenizer. said: the text of each message. end: score the end of each turn.
        omitted: the first reading is not the conversation from its beginning. Raises BadDocument."""
        builder, shifts = SequenceBuilder(), _shifts(said)
        if omitted:
            builder.anew()
        floor = 0  # bytes of the document's text that an earlier reading has reached
        for number, reading in enumerate(readings):
            if number:
                builder.anew()
            self._read(builder, reading, said, shifts, floor, end=end)
            floor = max([floor, *(shifts[part.message + 1] for part in reading.parts if part.scored)])
        reached = builder.finish(shifts[-1])
        if reached < shifts[-1]:  # nothing stands behind the last text; what a template has stripped off it is context
            rest = "".join(said).encode()[reached:].decode()
            builder.text(*self.full.bare.encode(rest), reached)
        return builder.build()

    def _read(
        self,
        builder: SequenceBuilder,
        reading: Reading,
        said: Sequence[str],
        shifts: Sequence[int],
        floor: int,
        *,
        end: bool,
    ) -> None:
        reached = floor
        for k, part in enumerate(reading.parts):
            begin = shifts[part.message] + len(said[part.message][: part.start].encode())
            frame, vocabulary = self._join(reading.frames[k], part.text, first=not k)
            builder.context(self.frame_ids(frame, first=not k), reached)
            builder.reach(max(floor, begin))  # white space that the template stripped belongs to its own text
            ids, ends = vocabulary.encode(part.text) if part.text else ([], [])
            if not part.scored:
                builder.text(ids, [max(floor, begin + stop) for stop in ends], 0)
            else:
                if part.text and vocabulary.prefix_bytes != self.vocabulary.prefix_bytes:
                    raise BadDocument(
                        "not_reversible",
                        f"{self.template.where}: its chat template leads into message {part.message + 1} in another way than "
                        "into an assistant's, so that the tokenizer's space before it is there once and not the other time",
                    )
                behind = self.frame_ids(reading.frames[k + 1], first=False)[:1]
                builder.scored_text(ids, ends, begin, closed=end and behind == [self.vocabulary.eos_id])
            reached = max(floor, begin + len(part.text.encode()))
        builder.context(self.frame_ids(reading.frames[-1], first=not reading.parts), reached)

    def special_in(self, text: str) -> str | None:
        """The first special string of the tokenizer in a text."""
        found = self._special.search(text) if self._special else None
        return found and found.group()

    def frame_ids(self, frame: str, *, first: bool) -> list[int]:
        """Tokens of template text. first: it opens the conversation; else a content stands before it."""
        if frame == _END and self.full.eos_id is not None:
            return [self.full.eos_id]
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

    @classmethod
    def plain(cls, vocabulary: Vocabulary, where: str, *, end: bool) -> ChatEncoder:
        """For texts whose parts stand one behind the other with nothing between: a prompt and its completion. end: the end token
        stands behind the last one."""
        ends = end and vocabulary.eos_id is not None
        encoder = cls.make(ChatTemplate(_PLAIN.replace("END", _END if ends else ""), {}, where), vocabulary)
        return replace(encoder, vocabulary=replace(encoder.vocabulary, eos_id=vocabulary.eos_id))


def chat_encoders(run: RunConfig, vocabularies: dict[str, Vocabulary]) -> dict[str, ChatEncoder]:
    """Product -> its encoder, of all `vocabularies`; empty for a corpus of texts that are scored whole.

    Raises RunFileError for a template that is missing or unusable, TokenizerError where a tokenizer's files cannot be had.
    """
    if run.corpus.in_parts and run.corpus.messages is None:
        where = {source.product: source.where for source in run.tokenizers}
        end = run.targets.end
        return {product: ChatEncoder.plain(one, where[product], end=end) for product, one in vocabularies.items()}
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


def _shifts(said: Sequence[str]) -> list[int]:
    """Bytes of the messages' texts before each message, and in all."""
    out = [0]
    for text in said:
        out.append(out[-1] + len(text.encode()))
    return out
