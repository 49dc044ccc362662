"""When each teacher token is a fixed sequence of student tokens in every text (the student *refines* the teacher), and which.

Two vocabularies go in; out comes the reason why it is not so, or an `Expansion`. Two cases need no closing of open leaves,
because every teacher token t is a fixed sequence D(t) of student tokens and the student's encoding of any text is the
expansion of the teacher's (docs/design.md, definition 11, lemma 12):

* *subset*: the student's merge list is the beginning of the teacher's, under the same pre-tokenizer;
* *bytes*: the student reads single bytes; no pre-tokenizer matters. (The byte product needs no student at all.)

`subset_gap` proves the first from the two tokenizers or says what stands against it. Nothing is guessed from samples.
Letters: V teacher ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.bpe.merges import MergeTable, build_merge_table
from engine.bpe.tokenizer_json import steps_of
from engine.bpe.vocabulary import Vocabulary
from schemas.products import BYTES_END


@dataclass(frozen=True, eq=False)
class Expansion:
    """D(t) for every teacher token: unit[start[t]:start[t+1]], empty for specials, for ids without a token, and for added texts
    of the teacher alone (`apart`).

    start: int64 [V+1]. unit: int32 [sum of lengths], student ids. size: student ids in all. end_id: the student's end
    of text, None when it has none.
    """

    start: np.ndarray
    unit: np.ndarray
    size: int
    end_id: int | None

    @property
    def lengths(self) -> np.ndarray:
        """int64 [V] number of student tokens of each teacher token."""
        return np.diff(self.start)


def byte_expansion(teacher: Vocabulary) -> Expansion:
    """Every token as its bytes. The units count in the teacher's own byte string (prefix and text)."""
    pieces = [b or b"" for b in teacher.token_bytes]
    start = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    return Expansion(start, np.frombuffer(b"".join(pieces), np.uint8).astype(np.int32), BYTES_END + 1, BYTES_END)


def subset_expansion(teacher: Vocabulary, student: Vocabulary) -> Expansion:
    """Every token in student tokens. Only for pairs without a `subset_gap`.

    A token that the teacher's merges cannot make stands only as a whole pre-token, and so does its expansion. Added texts of the
    teacher alone have none: they are no text here, like specials.
    """
    merges, by_bytes, left_out = build_merge_table(teacher), reads_bytes(student), apart(teacher, student)
    fallback, added = frozenset(teacher.fallback_ids), {i: text for text, i in teacher.added_text.items()}
    pieces: list[list[int]] = []
    for token, piece in enumerate(teacher.token_bytes):
        if piece is None or token in left_out:
            pieces.append([])
        elif token in added and added[token] in student.added_text:  # such a text is never spelt by merges
            pieces.append([student.added_text[added[token]]])
        elif by_bytes:
            pieces.append([student.id_of_bytes[piece[i : i + 1]] for i in range(len(piece))])
        elif token in fallback and piece[0] in student.byte_tokens:
            pieces.append([student.byte_tokens[piece[0]]])
        else:
            pieces.append(student.bpe(piece, whole=not merges.reachable(token)))
    start = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    unit = np.fromiter((u for p in pieces for u in p), np.int32, count=int(start[-1]))
    return Expansion(start, unit, student.size, student.eos_id)


def subset_gap(teacher: Vocabulary, student: Vocabulary) -> str | None:
    """None when lemma 12 holds for this pair, else the first condition that fails, in words for the user."""
    by_bytes = reads_bytes(student)
    if not by_bytes and (gap := _list_gap(teacher, student)) is not None:
        return gap
    if student.prefix_bytes != teacher.prefix_bytes:
        return f"it puts {student.prefix_bytes!r} before a text, the teacher {teacher.prefix_bytes!r}"
    if odd := sorted(set(student.added_text) - set(teacher.added_text)):
        return f"its added token {odd[0]!r} is text that the teacher spells"
    for text in sorted(student.added_text):
        if _normalized(student, text) != _normalized(teacher, text):
            return f"the added token {text!r} is matched before the normaliser in only one of the two"
    return None if by_bytes else _token_gap(teacher, build_merge_table(teacher), student, build_merge_table(student))


def near_subset_gap(teacher: Vocabulary, student: Vocabulary) -> str | None:
    """The same where the two look like one tokenizer, or a beginning of one: the student's merges are the teacher's. None too
    where they are others."""
    ours = _merges_as_strings(student)
    return subset_gap(teacher, student) if ours and ours == _merges_as_strings(teacher)[: len(ours)] else None


def apart(teacher: Vocabulary, student: Vocabulary) -> dict[int, str]:
    """Teacher token -> its text, of the added texts that a subset student spells (Qwen3's `</think>` for a student of Qwen2.5).
    How it does depends on what stands beside them, so that no expansion is right; texts without them are exact (docs/design.md,
    after lemma 12). A student of single bytes spells them all in one way."""
    if reads_bytes(student) and not student.added_text:
        return {}
    return {i: text for text, i in teacher.added_text.items() if text not in student.added_text}


def _list_gap(teacher: Vocabulary, student: Vocabulary) -> str | None:
    """The conditions on merge lists and pre-tokenizers."""
    if student.kind != teacher.kind:
        return f"the student is {student.kind} and the teacher {teacher.kind}"
    theirs, ours = _merges_as_strings(teacher), _merges_as_strings(student)
    if len(set(theirs)) != len(theirs):  # the last one counts, and the student's list may end between the two
        return "the teacher's merge list names a merge twice"
    if ours != theirs[: len(ours)]:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
        return f"its merge list differs from the teacher's at merge {at} of {len(ours)}"
    if _cuts(student.pre_tokenizer) != _cuts(teacher.pre_tokenizer):
        return f"its pre-tokenizer is another than the teacher's ({_difference(student.pre_tokenizer, teacher.pre_tokenizer)})"
    if _state(student.tokenizer.normalizer) != _state(teacher.tokenizer.normalizer):
        return "its normaliser is another than the teacher's"
    for name in ("byte_fallback", "ignore_merges"):
        if getattr(student, name) != getattr(teacher, name):
            return f"{name} is {getattr(student, name)!r}, the teacher's is {getattr(teacher, name)!r}"
    return None


def reads_bytes(student: Vocabulary) -> bool:
    """Whether all ordinary tokens are single bytes, all 256 of them: then no merge and no pre-tokenizer joins any."""
    ordinary = [p for i, p in enumerate(student.token_bytes) if p is not None and i not in student.added_only]
    return student.kind == "bytelevel" and len(ordinary) == 256 and {len(p) for p in ordinary} == {1}


def _token_gap(teacher: Vocabulary, t_merges: MergeTable, student: Vocabulary, s_merges: MergeTable) -> str | None:
    """The conditions on single tokens: the same symbols, and whole words of `ignore_merges` that are so on both sides."""
    symbols = [_symbols(v) for v in (teacher, student)]
    if student.kind == "bytelevel" and symbols[0] != symbols[1]:
        return f"its single bytes are not the teacher's ({len(symbols[1])} and {len(symbols[0])})"
    for vocabulary in (teacher, student):
        if (twice := _spelt_twice(vocabulary)) is not None:
            return f"{twice!r} are the bytes of two tokens of {vocabulary.name}"
    if extra := sorted(symbols[1] - symbols[0]):
        return f"it has tokens for characters that the teacher lacks, such as {extra[0]!r}"
    if not student.ignore_merges:
        return None
    theirs = teacher.id_of_bytes
    for piece, token in student.id_of_bytes.items():
        if piece not in theirs:
            return f"with ignore_merges its token {piece!r} is a word that the teacher lacks"
        if t_merges.reachable(theirs[piece]) and not s_merges.reachable(token):
            return f"with ignore_merges its token {piece!r} is a whole word only, the teacher's is not"
    return None


def _symbols(vocabulary: Vocabulary) -> set[bytes]:
    """Bytes of the tokens from which merges start: single bytes, or single characters."""
    fallback = frozenset(vocabulary.fallback_ids)
    out = set()
    for piece, token in vocabulary.id_of_bytes.items():
        single = len(piece) == 1 if vocabulary.kind == "bytelevel" else _is_character(piece)
        if single and token not in fallback:
            out.add(piece)
    return out


def _is_character(piece: bytes) -> bool:
    try:
        return len(piece.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False


def _spelt_twice(vocabulary: Vocabulary) -> bytes | None:
    """Bytes that two ordinary tokens share, such as a space and the mark that stands for it."""
    aside, seen = {*vocabulary.fallback_ids, *vocabulary.added_text.values()}, set()
    for token, piece in enumerate(vocabulary.token_bytes):
        if piece is not None and token not in aside:
            if piece in seen:
                return piece
            seen.add(piece)
    return None


def _merges_as_strings(vocabulary: Vocabulary) -> list[tuple[str | None, str | None]]:
    name = vocabulary.tokenizer.id_to_token
    return [(name(a), name(b)) for a, b, _ in vocabulary.merges]


def _normalized(vocabulary: Vocabulary, text: str) -> bool:
    added = vocabulary.tokenizer.get_added_tokens_decoder()[vocabulary.added_text[text]]
    return bool(added.normalized) and vocabulary.tokenizer.normalizer is not None


def _state(component: Any) -> bytes:
    """The settings of a part of a tokenizer, as its library serialises them."""
    return b"" if component is None else bytes(component.__getstate__())


def _cuts(pre_tokenizer: dict[str, Any] | None) -> str:
    """A pre-tokenizer as text, without `trim_offsets`, which changes reported offsets and no cut."""
    return json.dumps(_plain(pre_tokenizer), sort_keys=True)


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items() if key != "trim_offsets"}
    return [_plain(each) for each in node] if isinstance(node, list) else node


def _difference(one: dict[str, Any] | None, two: dict[str, Any] | None) -> str:
    """What differs between two pre-tokenizers, for people: their steps, or if these have the same names, the first other one."""
    steps = [steps_of(each) for each in (one, two)]
    names = [" and ".join(step["type"] for step in each) or "none" for each in steps]
    if names[0] != names[1]:
        return f"{names[0]} beside {names[1]}"
    shown = next(([json.dumps(a), json.dumps(b)] for a, b in zip(*steps, strict=True) if _plain(a) != _plain(b)), names)
    at = next((i for i, (a, b) in enumerate(zip(*shown, strict=False)) if a != b), 0)
    return " beside ".join(f"...{text[max(at - 30, 0) : at + 30]}..." for text in shown)
