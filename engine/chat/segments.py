"""A document that is scored in parts: the tokens of one side from end to end, and which stretches of them are scored.

A conversation, or a text with special tokens in it, is a line of tokens. Some stretches of it are *parts*: a text that is
scored as a document of its own, with all tokens before it given. The rest (chat template, other roles) is context: it has
rows on disk, so that the line can be fed to a model as it is, but no distribution.

Letters: T tokens of the line, n of a part.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from schemas.errors import IdentityError


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens begin .. stop of a line are the part's text; closed: the token at `stop` is its end, and is scored."""

    begin: int
    stop: int
    closed: bool

    @property
    def rows(self) -> int:
        """Positions of the line that are scored for this part."""
        return self.stop - self.begin + self.closed


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """ids, ends: int64 [T], tokens and their ends in the document's text; a template's own tokens have no bytes of it.
    parts: one per scored part of the document, in order."""

    ids: np.ndarray
    ends: np.ndarray
    parts: list[Segment]


@dataclass(frozen=True, slots=True)
class SegmentedDocument:
    """A document in parts, as all products see it. texts: what is scored, one per part. lines: per product, and of the teacher
    in any case."""

    texts: list[str]
    lines: dict[str, TokenSequence]


@dataclass(slots=True)
class SequenceBuilder:
    """Puts a line together from left to right; `ids` and `ends` so far may be read."""

    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    parts: list[Segment] = field(default_factory=list)

    def context(self, ids: list[int], end: int) -> None:
        """Tokens that are no text of the document; `end`: bytes of the document's text before them."""
        self.ids += ids
        self.ends += [end] * len(ids)

    def reach(self, end: int) -> None:
        """Let the last token end at this byte, unless it belongs to a part."""
        part = self.parts[-1] if self.parts else Segment(0, 0, False)
        if len(self.ids) > part.stop + part.closed:
            self.ends[-1] = end

    def text(self, ids: list[int], ends: list[int], shift: int) -> None:
        """Tokens of a text that begins at byte `shift` of the document's text and is not scored."""
        self.ids += ids
        self.ends += [shift + end for end in ends]

    def part(self, ids: list[int], ends: list[int], shift: int, *, closed: bool) -> None:
        """The same, scored. closed: the next token that is added is its end."""
        begin = len(self.ids)
        self.text(ids, ends, shift)
        self.parts.append(Segment(begin, len(self.ids), closed))

    def made(self) -> TokenSequence:
        """The line; IdentityError when an end has no token."""
        for part in self.parts:
            if part.stop + part.closed > len(self.ids):
                raise IdentityError(
                    f"lines: the end of part {part} lies outside the {len(self.ids)} tokens of its line"
                )
        return TokenSequence(np.array(self.ids, np.int64), np.array(self.ends, np.int64), self.parts)


def rows_of(line: TokenSequence, starts: list[int]) -> np.ndarray:
    """int64 [T]: for each token of the line its row, when the rows of part i begin at starts[i]; -1 for context."""
    at = np.full(len(line.ids), -1, np.int64)
    for part, start in zip(line.parts, starts, strict=True):
        at[part.begin : part.begin + part.rows] = start + np.arange(part.rows)
    return at
