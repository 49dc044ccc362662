"""Where a tokenizer cuts a text into pre-tokens, and which of these cuts stay whatever follows.

BPE works inside a pre-token only, so two questions decide everything about boundaries (docs/design.md, definition 5):
`pieces(u)`: where does the tokenizer cut u, if u is the whole text? `certain(u)`: which of those cuts hold for *every*
text that begins with u? The second is answered by running the tokenizer's own patterns with a matcher that notes
whether it ever looked past the end of u: a match that never did is the same in every continuation (lemma 5).

Texts are handled as strings of *unit classes* (bpe/unit_classes.py), and results are remembered per class string: `hello` and
`world` are one computation. SentencePiece tokenizers have no pre-tokenizer; their units are bytes and a cut is certain
between two bytes that no token of the vocabulary holds side by side (lemma 6).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, product
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Regex
from tokenizers.pre_tokenizers import Punctuation, Split

from engine.bpe.blanks import Blanks, find_blanks
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.pattern import Code, Matcher, compile_pattern, predicates_of
from engine.bpe.signs import Signs, find_signs
from engine.bpe.stages import Stage, added_stage, bigram_stage, never_side_by_side, pattern_stage
from engine.bpe.tokenizer_json import PUNCTUATION, pattern_of, removes_the_rest, steps_of
from engine.bpe.unit_classes import UnitClasses
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import TokenizerError

if TYPE_CHECKING:
    from engine.kernels.cut_program import CutMachine

_MOST_BITS = 62  # of a class's answers in compiled code
LONGEST_PENDING = 256
"""Units of a pending part whose long runs are cut short (`Splitter.fold`), where a run file says nothing else. How each of them
may be cut takes milliseconds to find out, once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Splitter(UnitClasses):
    """The pre-tokenizer of one vocabulary over class strings. Remembers answers. Not thread-safe.

    stages: what cuts, one after the other; each sees the pieces of the one before.
    """

    stages: tuple[Stage, ...]
    codes: tuple[Code | None, ...] | None = None  # the stages as instructions (None: added texts); units are characters
    never: np.ndarray | None = None  # bool [256, 256], bytes as units: where they are cut (lemma 6)
    cuts_spaces: bool = False  # bytes as units: before each space, whatever tokens hold
    longest_count: int = 1  # to which some pattern counts units
    longest_pending: int = LONGEST_PENDING  # units of a folded pending part; a longer one is too_long
    _pieces: BoundedCache[str, tuple[int, ...]] = field(default_factory=BoundedCache[str, tuple[int, ...]])
    _certain: BoundedCache[str, tuple[int, ...]] = field(default_factory=BoundedCache[str, tuple[int, ...]])

    def locate(self, left: str, right: str) -> tuple[tuple[int, ...], bool, int, bool]:
        """How `left + right` is cut around the seam: (cuts inside left, whether the seam is a cut, end of the piece that
        begins at or spans the seam, in units after the seam, whether all this holds for every continuation)."""
        n = len(left)
        both = self.join(left, right)
        ends = self.certain(both)
        sure = bool(ends) and ends[-1] > n
        if not sure:
            ends = self.pieces(both)
        stop = next((e for e in ends if e > n), n)
        return tuple(e for e in ends if e < n), n == 0 or n in ends, stop - n, sure

    def is_added(self, left: str, right: str, begin: int, stop: int) -> bool:
        """Whether the piece from unit `begin` of left to unit `stop` of right is an added text."""
        if len(left) + stop - begin > self.added_texts.longest:
            return False
        return self.own(self.join(left, right)[begin : len(left) + stop]) in self.added_texts.texts

    def pieces(self, classes: str) -> tuple[int, ...]:
        """Ends of all pre-tokens, in units, when the text ends here."""
        known = self._pieces.get(classes)
        if known is None:
            known = self._pieces[classes] = tuple(self.run(classes, final=True))
        return known

    def certain(self, classes: str) -> tuple[int, ...]:
        """Ends of the first pre-tokens, as far as they are the same whatever follows. The rest is *pending*."""
        known = self._certain.get(classes)
        if known is None:
            whole = classes if self.byte_units else classes.removesuffix(self.broken)
            known = self._certain[classes] = tuple(self.run(whole, final=False))
        return known

    @cached_property
    def machine(self) -> CutMachine | None:
        """The stages as compiled code; None for bytes as units, and for a pattern that has no instructions."""
        if self.codes is None or len(self.predicates) > _MOST_BITS:
            return None
        from engine.kernels.cut_program import CutMachine  # here: numba takes a moment to load

        return CutMachine(self.codes, self.added, ord(self.broken), self.masks, self.owns)

    def run(self, classes: str, *, final: bool) -> list[int]:
        """The ends of `pieces` (final) or `certain`, not remembered."""
        machine = self.machine
        return self.run_slowly(classes, final=final) if machine is None else machine.ends(classes, final=final)

    def run_slowly(self, classes: str, *, final: bool) -> list[int]:
        """The ends of `pieces` (final) or `certain`, stage by stage, without compiled code: the slow twin."""
        spans = [(0, len(classes), final, False)]  # begin, end, is the end certain, is it one whole added token
        for stage in self.stages:
            out: list[tuple[int, int, bool, bool]] = []
            for begin, end, closed, whole in spans:
                if whole or begin == end:
                    out.append((begin, end, closed, whole))
                else:
                    out.extend(stage(self, classes, begin, end, closed))
            spans = out
        return [end for begin, end, closed, _ in spans if closed and end > begin]

    def forget(self) -> None:
        """Empty the caches that grow with the text. What is already given out stays right."""
        self._pieces.clear()
        self._certain.clear()

    def reduce(self, pending: str) -> str:
        """The part of a pending class string on which later cuts depend: all of it, or its last byte (byte units)."""
        if not self.byte_units or not pending:
            return pending
        end = pending[-self.added_texts.longest :] if self.added else ""
        coming = self.added_texts.coming(end)
        if not coming:
            return pending[-1]
        begin = len(pending) - len(end) + coming[0]
        # a cut that the pre-tokenizer makes before it, between bytes that tokens hold side by side, is part of what is pending
        forced = self.cuts_spaces and begin and pending[begin] == " "
        return pending[begin - 1 if forced else begin :]

    def shorten(self, pending: str) -> str:
        """A pending class string whose runs of one class are cut to so many units that one more makes no difference: what follows
        is cut as behind the whole string, where no cut lies inside the pending part. Characters as units.

        A premise, not a lemma: behind as many equal units as a pattern can count, and a few more, a matcher that repeats single
        units is where it was one unit before. Tested on all tokenizers against the whole string
        (tests/contexts/test_canonical.py). What an added text may still own is not cut (`units_to_come`).
        """
        past = len(pending) - self.units_to_come(pending)
        runs = ("".join(run) for _, run in groupby(pending[:past]))
        return "".join(run[: self._told_apart] for run in runs) + pending[past:]

    def fold(self, pending: str) -> str:
        """A pending class string whose runs of one class are cut to `kept_run` units: the same premise as `shorten`, also for
        cuts inside the pending part. Such a cut goes by what stands near it, so that it keeps its distance to the nearer end of
        the run that it lies in; `unfold` (bpe/folding.py) finds it in the whole string. Characters as units. White space of
        several kinds is a run of one kind where that makes no difference (bpe/blanks.py), and so are signs (bpe/signs.py).

        The end that an added text may still own stays as it is. No added text can begin before it, whatever follows, so that
        characters there are like any others.
        """
        if self.byte_units or len(pending) < 2:
            return pending
        size = len(pending) - self.units_to_come(pending)
        past, coming = self.disown(pending[:size]), pending[size:]
        if len(pending) > self.kept_run or self._added_blanks:
            return self._long_run.sub(self._cut_run, self.even(past)) + coming
        return (past if self.signs is None else self.signs.even(past)) + coming

    def even(self, pending: str) -> str:
        """The same classes with blanks and signs that make no difference as one kind (`Blanks.even`, `Signs.even`)."""
        if self.signs is not None:
            pending = self.signs.even(pending)
        return pending if self.blanks is None else self.blanks.even(pending)

    @cached_property
    def blanks(self) -> Blanks | None:
        """What is known of white space; tried out at the first long run."""
        return find_blanks(self, lambda classes, final: self.run(classes, final=final))

    @cached_property
    def signs(self) -> Signs | None:
        """What is known of signs; tried out at the first pending part."""
        return find_signs(self, lambda classes, final: self.run(classes, final=final))

    def units_to_come(self, pending: str) -> int:
        """How many units at the end of a pending part, or of a folded one, an added text may own that is still coming: from the
        first place where one may begin on. Characters as units."""
        if not self.added or self._named.isdisjoint(pending):
            return 0
        own, size = self.own(pending), len(pending)
        begin = next(iter(self.added_texts.coming(own)), size)
        matches = self.added_texts.matches(own)
        return size if matches and matches[0][0] < begin else size - begin

    @cached_property
    def kept_run(self) -> int:
        """Units that are kept of a run of one class: twice what a pattern can count, and a few more."""
        return 2 * self._told_apart

    @cached_property
    def _told_apart(self) -> int:
        """Equal units side by side that a pattern does not tell from one more."""
        return max(self.longest_count, 3) + 1

    @cached_property
    def _long_run(self) -> re.Pattern[str]:
        return re.compile(rf"(.)\1{{{self.kept_run},}}", re.DOTALL)

    def _cut_run(self, run: re.Match[str]) -> str:
        return run[1] * self.kept_run

    def that_matters(self, rest: str) -> str:
        """The end of a pending part on which later cuts depend. Bytes as units: from the byte before the first place where an
        added text may be coming; what lies before is cut by pairs of bytes that are there already (lemma 6). Characters as
        units: `fold`."""
        if not self.byte_units:
            return self.fold(rest)
        return rest[max(next(iter(self.added_texts.coming(rest)), len(rest)) - 1, 0) :]

    @cached_property
    def _added_blanks(self) -> bool:
        """Whether added texts hold white space. Each ends what is pending, so that mixed white space has many short pending
        parts there in place of a long one."""
        return any(char.isspace() for text in self.added for char in text)


def build_splitter(vocabulary: Vocabulary, longest_pending: int = LONGEST_PENDING) -> Splitter:
    """The splitter of a vocabulary. Raises TokenizerError for a pre-tokenizer or pattern that it does not know."""
    where = f"tokenizer {vocabulary.name}"
    stages: list[Stage] = []
    added = tuple(sorted(vocabulary.added_text, key=len, reverse=True))
    if added:
        stages.append(added_stage())
    if vocabulary.kind == "sentencepiece":
        if vocabulary.ignore_merges:
            raise TokenizerError(
                f"{where}: ignore_merges beside SentencePiece tokens is not known; want ignore_merges = false"
            )
        never, cuts_spaces = never_side_by_side(vocabulary), False
        for pre in steps_of(vocabulary.pre_tokenizer):
            if pre["type"] == "Metaspace" and pre.get("split", True):
                never[:, ord(" ")] = cuts_spaces = True
            elif pre["type"] == "Split" and pre["pattern"] == {"String": " "}:
                continue  # the normaliser has already turned every space into the mark, so this never matches
            elif pre["type"] != "Metaspace":
                raise TokenizerError(
                    f"{where}: pre-tokenizer {pre} beside SentencePiece tokens is not known; want Metaspace or none"
                )
        stages = [*stages, bigram_stage(never)]
        return Splitter(
            byte_units=True,
            stages=tuple(stages),
            added=added,
            never=never,
            cuts_spaces=cuts_spaces,
            longest_pending=longest_pending,
        )
    steps = [pre for pre in steps_of(vocabulary.pre_tokenizer) if pattern_of(pre, where) is not None]
    patterns = [pattern_of(pre, where) or "" for pre in steps]
    predicates = predicates_of(patterns, where)
    matchers = [compile_pattern(p, predicates, where) for p in patterns]
    stages += [pattern_stage(m) for m in matchers]
    # Each predicate is asked of the tokenizers library itself ("removed" leaves nothing of a character that matches), so
    # that both sides share one table of Unicode properties.
    asked = tuple(_asked(source, fold) for source, fold in predicates)
    longest = max((m.longest_count for m in matchers), default=1)
    known = [m.code for m in matchers if m.code is not None]
    codes = (*((None,) if added else ()), *known) if len(known) == len(matchers) else None
    splitter = Splitter(
        byte_units=False,
        stages=tuple(stages),
        predicates=asked,
        needs_before=_needs_before(matchers, len(predicates)),
        added=added,
        codes=codes,
        longest_count=longest,
        longest_pending=longest_pending,
    )
    _refuse_gaps(splitter, steps, matchers, where)
    return splitter


def _asked(source: str, fold: bool) -> Split | Punctuation:
    if source == PUNCTUATION:
        return Punctuation("removed")
    return Split(Regex(f"(?i:{source})" if fold else source), "removed")


def _refuse_gaps(splitter: Splitter, steps: list[dict[str, Any]], matchers: list[Matcher], where: str) -> None:
    """Raises TokenizerError where a step that removes all but its matches leaves a character out. Tried on all strings of up to
    three characters, one of each class: where a match begins at each of them, and behind each match, nothing is left out. As
    far as patterns look, by the premise of bpe/continuations.py, that is all strings."""
    lossy = [matcher for pre, matcher in zip(steps, matchers, strict=True) if removes_the_rest(pre)]
    if not lossy:
        return
    specimens = "".join(
        sorted(
            {chr(code) for code in range(0x250)} | set("ǅʰͅα῀ᾈ日あ€½٣Ⅷ\u0301\u0903\u200b\u2028\u3000\ufeff😀\U000e0041")
        )
    )
    of_class: dict[str, str] = {}
    for char in specimens:
        of_class.setdefault(splitter.classes(char.encode()), char)
    for matcher in lossy:
        for units in (u for size in (1, 2, 3) for u in product(of_class, repeat=size)):
            if matcher.match("".join(units), 0, len(units), splitter.masks)[0] < 1:
                text = "".join(of_class[u] for u in units)
                raise TokenizerError(
                    f"{where}: pre-tokenizer Split removes all that its pattern does not match, and it does not match the "
                    f"beginning of {text!a}: bytes are lost. Want a pattern that matches everything, or the behaviour Isolated."
                )


def _needs_before(matchers: list[Matcher], count: int) -> tuple[tuple[int, int], ...]:
    """For each predicate that never starts a match: the mask of those that may be answered just before it."""
    free = set().union(*(m.starts for m in matchers))
    pairs = set().union(*(m.follows for m in matchers))
    return tuple((q, sum(1 << p for p, r in pairs if r == q)) for q in range(count) if q not in free)
