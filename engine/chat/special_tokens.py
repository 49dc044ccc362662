"""Special tokens inside a text, with [corpus] specials = "boundary": a text -> the parts between the teacher's special strings.

Each string in the text that is a special of the teacher is that token, not text; a student has its own special of the same role
there. What lies between is scored as a text with all before it given. A special that ends a text is scored as an
end (the ends of the teacher add up); all others are context. Without a token of that role a student cannot follow, and the
document is quarantined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from engine.bpe.vocabulary import Vocabulary
from engine.chat.segments import SegmentedDocument, SequenceBuilder, TokenSequence
from schemas.errors import BadDocument, RunFileError
from schemas.products import BYTES, BYTES_END, TEACHER


def special_pattern(vocabulary: Vocabulary) -> re.Pattern[str] | None:
    """Finds the strings that the tokenizer would take for specials, the longest first; None when it has none."""
    added = vocabulary.tokenizer.get_added_tokens_decoder()
    names = {added[i].content for i in vocabulary.specials if i in added}.difference(vocabulary.barred)
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


def with_specials(vocabulary: Vocabulary) -> Tokenizer:
    """A copy of the tokenizer that takes special strings for specials."""
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.encode_special_tokens = False
    return tokenizer


def prefix_behind_special(vocabulary: Vocabulary) -> bool:
    """Whether a text right behind a special gets the tokenizer's prefix, found by trying."""
    added = vocabulary.tokenizer.get_added_tokens_decoder()
    name = next((added[i].content for i in vocabulary.specials if i in added), None)
    if name is None or not vocabulary.prefix_bytes:
        return False
    ids = with_specials(vocabulary).encode(name + "a", add_special_tokens=False).ids
    return b"".join(vocabulary.token_bytes[i] or b"" for i in ids) == vocabulary.prefix_bytes + b"a"


@dataclass(frozen=True, eq=False)
class SpecialSplitter:
    """Cuts texts at special tokens, for all products of a run."""

    vocabularies: dict[str, Vocabulary]  # by product, the teacher's among them
    end_ids: frozenset[int]  # specials of the teacher that end a text
    end: bool  # whether a document is closed by an end that is scored
    given: bool  # whether something (BOS) stands before every document
    _pattern: re.Pattern[str] | None = field(repr=False)

    @classmethod
    def make(
        cls, vocabularies: dict[str, Vocabulary], end_ids: tuple[int, ...], *, end: bool, given: bool
    ) -> SpecialSplitter:
        """end_ids: tokens that end a text for the teacher; those that are no specials are text. Raises RunFileError as
        `check_specials`."""
        check_specials(vocabularies)
        teacher = vocabularies[TEACHER]
        ends = frozenset(i for i in end_ids if i in teacher.specials)
        return cls(vocabularies, ends, end, given, special_pattern(teacher))

    def split(self, text: str) -> SegmentedDocument | None:
        """The text in parts, or None when no special is in it. Raises BadDocument."""
        found = list(self._pattern.finditer(text)) if self._pattern else []
        if not found:
            return None
        teacher = self.vocabularies[TEACHER]
        pieces: list[tuple[str, int | None, str]] = []  # (text, special behind it, its string)
        at = 0
        for match in found:
            token = teacher.tokenizer.token_to_id(match.group())
            pieces.append((text[at : match.start()], token, match.group()))
            at = match.end()
        if text[at:] or pieces[-1][1] not in self.end_ids:
            pieces.append((text[at:], None, ""))
        scored = [
            bool(words) or (i > 0 or self.given) and self._ends(token) for i, (words, token, _) in enumerate(pieces)
        ]
        sequences = {product: self._sequence(product, pieces, scored) for product in self.vocabularies}
        sequences[BYTES] = self._as_bytes(pieces, scored)
        texts = [words for (words, _, _), asked in zip(pieces, scored, strict=True) if asked]
        if not texts:
            raise BadDocument("too_short", "nothing but special tokens: nothing to score")
        return SegmentedDocument(texts, sequences)

    def _ends(self, token: int | None) -> bool:
        return self.end and (token is None or token in self.end_ids)

    def _sequence(self, product: str, pieces: list[tuple[str, int | None, str]], scored: list[bool]) -> TokenSequence:
        vocabulary, builder, at = self.vocabularies[product], SequenceBuilder(), 0
        for (words, token, name), asked in zip(pieces, scored, strict=True):
            mine = vocabulary.eos_id if token is None else self._partner(product, token, name)
            if asked:
                ids, ends = vocabulary.encode(words) if words else ([], [])
                closed = self._ends(token) and mine is not None and mine == vocabulary.eos_id
                builder.scored_text(ids, ends, at, closed=closed)
            at += len((words + name).encode())
            if mine is not None and (token is not None or self.end):
                builder.context([mine], at)
        return builder.build()

    def _as_bytes(self, pieces: list[tuple[str, int | None, str]], scored: list[bool]) -> TokenSequence:
        builder, at = SequenceBuilder(), 0
        for (words, token, name), asked in zip(pieces, scored, strict=True):
            raw, special = list(words.encode()), list(name.encode())
            if asked:
                builder.scored_text(raw, list(range(1, len(raw) + 1)), at, closed=self._ends(token))
            at += len(raw)
            if asked and self._ends(token):
                builder.context([BYTES_END], at + len(special))
            else:
                builder.text(special, list(range(1, len(special) + 1)), at)
            at += len(special)
        return builder.build()

    def _partner(self, product: str, token: int, name: str) -> int:
        """The product's special of the same role as the teacher's `token`, whose string is `name`. Raises BadDocument."""
        teacher, student = self.vocabularies[TEACHER], self.vocabularies[product]
        if student.content_hash == teacher.content_hash:
            return token
        role = "eos" if token in self.end_ids else teacher.specials[token]
        own = {"eos": student.eos_id, "bos": student.bos_id, "unk": student.unk_id}.get(role)
        if own is None and role != "other":
            own = next((i for i, theirs in sorted(student.specials.items()) if theirs == role), None)
        if own is None:
            raise BadDocument(
                "special_without_partner",
                f"the text holds {name!a} (role {role}), and {product} has no special of that role",
            )
        return own


def check_specials(vocabularies: dict[str, Vocabulary]) -> None:
    """Raises RunFileError for a tokenizer that puts its prefix before a text but not behind a special."""
    for product, vocabulary in vocabularies.items():
        if vocabulary.prefix_bytes and special_pattern(vocabulary) and not prefix_behind_special(vocabulary):
            raise RunFileError(
                f'[corpus] specials = "boundary": the tokenizer of {product} puts a space before a text, but not behind a '
                'special token; its texts behind specials are not those that it reads alone. Use specials = "text"'
            )
