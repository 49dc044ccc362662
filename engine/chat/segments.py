"""A document that is scored in parts: one tokenizer's tokens of it from end to end, and which stretches of them are scored.

A conversation, or a text with special tokens in it, is one sequence of tokens. Some segments of it are scored: each is the text
of a part, scored like a document of its own with all tokens before it given. The rest (chat template, other roles) is context:
it has rows on disk, so that the sequence can be fed to a model as it is, but no distribution.

Letters: T tokens of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from schemas.errors import IdentityError


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens begin .. stop of a sequence are the text of one part; closed: the token at `stop` is its end, and is scored."""

    begin: int
    stop: int
    closed: bool

    @property
    def positions(self) -> int:
        """Positions of the sequence that are scored for this part."""
        return self.stop - self.begin + self.closed


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """All tokens of a document in one tokenizer, or its bytes.

    ids: int64 [T]. ends: int64 [T], byte of the document's text where each token ends; a template's own tokens have no bytes of
    it and repeat the end before them. segments: one for each scored part of the document, in order. anew: tokens at which a model
    begins to read anew, with nothing of what stands before them; 0 where the document's own beginning is left out. Else none.
    """

    ids: np.ndarray
    ends: np.ndarray
    segments: list[Segment]
    anew: list[int] = field(default_factory=list)

    def given(self, segment: Segment) -> np.ndarray:
        """The tokens that a model has read before a segment."""
        return self.ids[max([0, *(at for at in self.anew if at <= segment.begin)]) : segment.begin]


@dataclass(frozen=True, slots=True)
class SegmentedDocument:
    """A document in parts. texts: of the scored parts, in order. sequences: product -> its tokens of the whole document; of the
    teacher and of bytes in any case, whether they are stored or not. text: of the document, where a template has made it; else
    None. cut: whether something is left out before a scored part, so that it fits the teacher."""

    texts: list[str]
    sequences: dict[str, TokenSequence]
    text: str | None = None
    cut: bool = False


@dataclass(slots=True)
class SequenceBuilder:
    """Puts a sequence together from left to right."""

    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)

    def anew(self) -> None:
        """From the next token on a model reads anew."""
        self.begins.append(len(self.ids))

    def context(self, ids: list[int], end: int) -> None:
        """Add tokens that are no text of the document; `end`: bytes of the document's text before them."""
        self.ids += ids
        self.ends += [end] * len(ids)

    def reach(self, end: int) -> None:
        """Let the last token end at this byte of the text, unless it belongs to a scored part."""
        last = self.segments[-1] if self.segments else Segment(0, 0, False)
        if len(self.ids) > last.stop + last.closed:
            self.ends[-1] = end

    def finish(self, end: int) -> int:
        """Let what stands behind the last text reach the end of the document's: white space that a template strips off the last
        message belongs to its end. Where nothing stands there, the byte that is reached, else `end`."""
        rises = [i for i, (a, b) in enumerate(zip([0, *self.ends], self.ends, strict=False)) if b > a]
        first = rises[-1] + 1 if rises else 0
        self.ends[first:] = [end] * (len(self.ids) - first)
        return self.ends[-1] if self.ids else 0

    def text(self, ids: list[int], ends: list[int], shift: int) -> None:
        """Add tokens of a text that is not scored. ends: bytes of that text; it begins at byte `shift` of the document's."""
        self.ids += ids
        self.ends += [shift + end for end in ends]

    def scored_text(self, ids: list[int], ends: list[int], shift: int, *, closed: bool) -> None:
        """The same for a scored part. closed: the next token that is added is its end."""
        begin = len(self.ids)
        self.text(ids, ends, shift)
        self.segments.append(Segment(begin, len(self.ids), closed))

    def build(self) -> TokenSequence:
        """The sequence. Raises IdentityError when the end of a part has no token."""
        for segment in self.segments:
            if segment.stop + segment.closed > len(self.ids):
                raise IdentityError(
                    f"a document in parts: the end of {segment} lies outside the {len(self.ids)} tokens of its sequence"
                )
        begins = [at for at in self.begins if at < len(self.ids)]
        return TokenSequence(np.array(self.ids, np.int64), np.array(self.ends, np.int64), self.segments, begins)


def rows_of(sequence: TokenSequence, starts: list[int]) -> np.ndarray:
    """int64 [T]: for each token of the sequence its row, when the rows of part i begin at starts[i]; -1 for context."""
    at = np.full(len(sequence.ids), -1, np.int64)
    for segment, start in zip(sequence.segments, starts, strict=True):
        at[segment.begin : segment.begin + segment.positions] = start + np.arange(segment.positions)
    return at
