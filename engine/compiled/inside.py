"""States of boundaries inside a character: a student that has no token for `漢` ends tokens behind its first or second byte.

In: what is pending before the character, and those of its bytes that lie before the boundary (`partial`). Out: `Settled`, which
becomes a `State` (compiled/pair.py). How the pre-tokenizer cuts depends on the whole character, which `partial` and the
string behind the boundary spell together, and is asked at the place where the character begins. What the student makes of the
bytes behind the boundary depends on these alone (compiled/answers.py has it of every string).

The slow twin is `RuleBook.rule` with `partial`. Letters: U ends of teacher tokens; n of these go on with the character.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.alignment.openness import Openness
from engine.alignment.token_range import Variants
from engine.bpe.utf8 import character_length, is_continuation
from engine.compiled.answers import Answers, answers_with_firsts, settled_with_kin
from engine.compiled.classes import class_trie, cut_classes
from engine.compiled.pair_kernels import JOIN, NONE, answer_strings, settle_characters
from engine.kernels.flat import FlatTokenizer, joined
from engine.kernels.merge_kernels import new_memo


class Settled(NamedTuple):
    """What every end of a teacher token does at a boundary. first: int32 [U], student token, -1 for none; action: int8; open:
    bool; stop: int32 bytes; sure: uint8. variants, variant: int [U]. All as in `State`."""

    first: np.ndarray
    action: np.ndarray
    open: np.ndarray
    stop: np.ndarray
    sure: np.ndarray
    variants: Variants
    variant: np.ndarray


class InsideAnswers:
    """Of one student that reads characters and spells bytes. answers: of the ends of teacher tokens. Not thread-safe."""

    def __init__(self, answers: Answers, student: FlatTokenizer, openness: Openness) -> None:
        self._base, self._student, self._openness, self._segmenter = answers, student, openness, openness.segmenter
        # ends that begin inside a character are one range of the sorted ends
        heads = answers.text[answers.start[:-1]]
        self._lo, hi = int(np.searchsorted(heads, 0x80)), int(np.searchsorted(heads, 0xC0))
        raw, bounds = answers.text.tobytes(), answers.start[self._lo : hi + 1].tolist()
        self._ends = [raw[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
        # how many bytes more of a character each of them begins with
        self._more = np.array([_continuations(end) for end in self._ends], np.int64)
        # bytes known when asked, twice, and one more where a character in doubt is behind these; and the answer
        self._known, self._settled = np.full((2, len(self._ends)), -9, np.int32)

    def settle(self, left: str, partial: bytes) -> Settled:
        """left: as for `CompiledPair.state`; partial: beginning of a character, of one byte at least."""
        base, splitter = self._base, self._segmenter.splitter
        number, answers = self._answers(partial)
        cuts = cut_classes(class_trie(answers, splitter), splitter, self._openness, left)
        count, ahead = len(answers), len(partial)
        first, action, stop = (np.zeros(count, np.int32) for _ in range(3))
        opened, agrees, sure = np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, np.uint8)
        settle_characters(
            answers.text, answers.start, answers.whole, answers.known, answers.node_U, answers.known_node_U,
            answers.composing, answers.settled, cuts.kind, cuts.stop, cuts.variant, cuts.sure, cuts.ways, cuts.goes_on,
            cuts.other_start, cuts.other, answers.firsts, answers.firsts, first, action, opened, stop, sure, agrees,
        )  # fmt: skip
        node = answers.node_U
        # all other ends do not complete the character: string 0, which has no byte more, stands for them
        size, every = len(base), np.arange(len(base))
        first_U = base.firsts[base.start[1:] + every].astype(np.int32)
        if cuts.kind[node[0]] == NONE:
            first_U[:] = -1
        opened_U, sure_U = (np.full(size, each[0]) for each in (opened, sure))
        variant_U = np.full(size, int(cuts.variant[node[0]]))
        stop_U = np.diff(base.start).astype(np.int32)
        for full, part in (
            (first_U, first), (opened_U, opened), (sure_U, sure), (variant_U, cuts.variant[node]), (stop_U, stop - ahead),
        ):  # fmt: skip
            full[number] = part[1:]
        action_U = np.where(first_U < 0, NONE, JOIN).astype(np.int8)
        return Settled(first_U, action_U, opened_U, stop_U, sure_U, cuts.variants, variant_U)

    def _answers(self, partial: bytes) -> tuple[np.ndarray, Answers]:
        """(int64 [n], the ends that complete the character; what is known of `partial` and each of them behind it, [n + 1]: the
        first is `partial` alone)."""
        base, ahead = self._base, len(partial)
        need = character_length(partial[0]) - ahead
        place = np.flatnonzero(self._more >= need)
        strings = [partial, *(partial + self._ends[i] for i in place.tolist())]
        text, start = joined(strings)
        number = self._lo + place
        # first tokens of the bytes behind the boundary, at the places that the longer strings have
        size = base.start[number + 1] - base.start[number] + 1
        firsts = np.full(len(text) + len(strings), -1, np.int32)
        to, of = start[1:-1] + np.arange(1, len(strings)) + ahead, base.start[number] + number
        within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
        firsts[np.repeat(to, size) + within] = base.firsts[np.repeat(of, size) + within]
        answers, said = answers_with_firsts(text, start, strings, firsts, self._segmenter)
        known = answers.known[1:] - ahead
        # a character that the boundary cuts cannot become another one: what stands before the boundary would change
        doubts = [k.doubt if k.sure else "" for k in said[1:]] or [""] * len(place)
        answers.settled[1:] = self._settled_with(place, known, answers.whole[1:] - ahead, doubts)
        return number, answers

    def _settled_with(self, place: np.ndarray, known: np.ndarray, whole: np.ndarray, doubts: list[str]) -> np.ndarray:
        """int32 [n]: first token of the known bytes of these ends where nothing changes it inside a pre-token, else -1. Asked
        anew only where other bytes are known than at the last time: mostly these are the same for every character. doubts: the
        character behind the known bytes that may become another one, or ""."""
        key = 2 * known + np.array([bool(doubt) for doubt in doubts], np.int32)
        new = np.flatnonzero(self._known[place] != key)
        if len(new):
            text, start = joined([self._ends[i] for i in place[new].tolist()])
            firsts, found = np.zeros(len(text) + len(new), np.int32), np.zeros(len(new), np.int32)
            student = self._student
            answer_strings(
                student, text, start, np.maximum(whole[new], 0).astype(np.int32),
                np.maximum(known[new], 0).astype(np.int32), np.int64(0), np.int64(len(new)), firsts, found,
                new_memo(len(student.rank_V)),
            )  # fmt: skip
            ask = [n for n, i in enumerate(new.tolist()) if doubts[i] and found[n] < 0]
            if ask:
                parts = [self._ends[place[new[n]]][: known[new[n]]] for n in ask]
                found[ask] = settled_with_kin(parts, [doubts[new[n]] for n in ask], student)
            self._known[place[new]], self._settled[place[new]] = key[new], found
        return self._settled[place]


def _continuations(end: bytes) -> int:
    """How many bytes it begins with that are the second or a later one of a character, 3 at most."""
    count = 0
    for byte in end[:3]:
        if not is_continuation(byte):
            break
        count += 1
    return count
