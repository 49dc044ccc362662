"""Where a tokenizer cuts a text into pre-tokens, and which of these cuts stay whatever follows.

BPE works inside a pre-token only, so two questions decide everything about boundaries (docs/design.md, definition 5):
`pieces(u)`: where does the tokenizer cut u, if u is the whole text? `certain(u)`: which of those cuts hold for *every*
text that begins with u? The second is answered by running the tokenizer's own patterns with a matcher that notes
whether it ever looked past the end of u: a match that never did is the same in every continuation (lemma 5).

Texts are handled as strings of *unit classes*. A pattern sees a character only through the predicates it is made of
(`\\p{L}`, `\\s`, `'`, ...), so characters with the same answers are one class, and results are remembered per class
string: `hello` and `world` are one computation. SentencePiece tokenizers have no pre-tokenizer; their units are bytes
and a cut is certain between two bytes that no token of the vocabulary holds side by side (lemma 6).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, product
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Regex
from tokenizers.pre_tokenizers import Punctuation, Split

from engine.bpe.added_texts import AddedTexts
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.pattern import Code, Matcher, compile_pattern, predicates_of
from engine.bpe.tokenizer_json import PUNCTUATION, pattern_of, removes_the_rest, steps_of
from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import TokenizerError

if TYPE_CHECKING:
    from engine.kernels.cut_program import CutMachine

_BROKEN_OWN = "\ufdd0"  # a code point that is no character; keeps the class below apart from U+FFFD itself
_MOST_BITS = 62  # of a class's answers in compiled code
LONGEST_PENDING = 256
"""Units of a pending part whose long runs are cut short (`Splitter.fold`), where a run file says nothing else. How each of them
may be cut takes milliseconds to find out, once."""
NO_UNIT = "\0"  # the class of no character: answers no predicate, belongs to no added text
_BROKEN = "\ufffd"  # stands for a character whose bytes are not all known yet


@dataclass(frozen=True, eq=False)
class Splitter:
    """The pre-tokenizer of one vocabulary over unit-class strings. Units are characters, or bytes (SentencePiece).

    A class is one code point, `chr(number)`, so that class strings are Python strings. For characters: _masks[number], bit p set
    where predicate p of the patterns holds; _owns[number], the character itself where added texts need it, else "".
    stages: what cuts, one after the other; each sees the pieces of the one before. added: added texts, longest first.
    """

    byte_units: bool
    stages: tuple[_Stage, ...]
    predicates: tuple[Any, ...] = ()
    needs_before: tuple[tuple[int, int], ...] = ()  # (bit q, mask): q is asked only after a unit with a bit of the mask
    added: tuple[str, ...] = ()
    codes: tuple[Code | None, ...] | None = None  # the stages as instructions (None: added texts); units are characters
    never: np.ndarray | None = None  # bool [256, 256], bytes as units: where they are cut (lemma 6)
    cuts_spaces: bool = False  # bytes as units: before each space, whatever tokens hold
    longest_count: int = 1  # to which some pattern counts units
    longest_pending: int = LONGEST_PENDING  # units of a folded pending part; a longer one is too_long
    _masks: list[int] = field(default_factory=lambda: [0])
    _owns: list[str] = field(default_factory=lambda: [""])
    _pieces: BoundedCache[str, tuple[int, ...]] = field(default_factory=BoundedCache[str, tuple[int, ...]])
    _certain: BoundedCache[str, tuple[int, ...]] = field(default_factory=BoundedCache[str, tuple[int, ...]])
    _forgotten: dict[tuple[str, str], str] = field(default_factory=dict)  # (unit before, unit) -> its canonical unit
    _by_answers: dict[tuple[int, str], str] = field(default_factory=dict)  # (mask, own) -> class
    _named: set[str] = field(
        default_factory=set
    )  # classes of one character of added texts, and that of an incomplete one

    def classes(self, data: bytes) -> str:
        """Bytes -> class string, one character a unit. An incomplete character at the end is one unit of class U+FFFD."""
        if self.byte_units:
            return data.decode("latin-1")
        whole = valid_utf8_prefix(data)
        known = data[:whole].decode("utf-8").translate(self._table)
        return known + self._broken if whole < len(data) else known

    @cached_property
    def _broken(self) -> str:
        """The class of an incomplete character: cut like U+FFFD when the text ends there, never taken as certain."""
        mask = self._masks[ord(self._classify(_BROKEN))]
        return self._class_with(mask, _BROKEN_OWN)

    @cached_property
    def _table(self) -> dict[int, str]:
        splitter = self

        class Table(dict[int, str]):
            def __missing__(self, code: int) -> str:
                self[code] = splitter._classify(chr(code))
                return self[code]

        return Table()

    def _classify(self, char: str) -> str:
        mask = sum(1 << i for i, p in enumerate(self.predicates) if not p.pre_tokenize_str(char))
        return self._class_with(mask, char if char in self._added_characters else "")

    def learn(self, chars: set[str]) -> None:
        """Classify these characters at once: `classes` would ask the library about each one by itself. Characters as
        units."""
        new = [c for c in sorted(chars) if ord(c) not in self._table]
        if not new:
            return
        holds = np.ones((len(self.predicates), len(new)), bool)
        for row, predicate in zip(holds, self.predicates, strict=True):
            for _, (begin, stop) in predicate.pre_tokenize_str("\n".join(new)):  # what does not match is left, in runs
                row[(begin + 1) // 2 : (stop + 1) // 2] = False
        for char, bits in zip(new, np.packbits(holds, axis=0, bitorder="little").T, strict=True):
            own = char if char in self._added_characters else ""
            self._table[ord(char)] = self._class_with(int.from_bytes(bits.tobytes(), "little"), own)

    @cached_property
    def _added_characters(self) -> frozenset[str]:
        return frozenset("".join(self.added))

    def _class_with(self, mask: int, own: str) -> str:
        if (mask, own) not in self._by_answers:
            self._masks.append(mask)
            self._owns.append(own)
            self._by_answers[mask, own] = chr(len(self._masks) - 1)
            if own:
                self._named.add(self._by_answers[mask, own])
        return self._by_answers[mask, own]

    def own(self, classes: str) -> str:
        """The units of a class string as added texts have them: bytes, or characters, NUL for those that no added text
        needs."""
        if self.byte_units:
            return classes
        if self._named.isdisjoint(classes):
            return "\0" * len(classes)
        return "".join(self._owns[ord(u)] or "\0" for u in classes)

    def describe(self, unit: str) -> tuple[int, str]:
        """What makes a class: (answers to the predicates as bits, the character itself where added texts need it). The
        number of a class is that of this object only; this is the same in every process."""
        return self._masks[ord(unit)], self._owns[ord(unit)]

    def unit(self, described: tuple[int, str]) -> str:
        """The class that was described so."""
        return self._class_with(*described)

    def canonical(self, classes: str, before: str | None = None) -> str:
        """Forget answers that no pattern can ask: the `s` of `cats` is any letter, the `s` of `it's` is not.

        `before`: the (canonical) unit in front of the first one; None when it is not known, which keeps the first unit.
        """
        if self.byte_units:
            return classes
        out = []
        for unit in classes:
            if before is not None:
                unit = self._forget(before, unit)
            out.append(unit)
            before = unit
        return "".join(out)

    def _forget(self, before: str, unit: str) -> str:
        known = self._forgotten.get((before, unit))
        if known is not None:
            return known
        mask, own = self._masks[ord(unit)], self._owns[ord(unit)]
        if own == _BROKEN_OWN:
            return unit
        before_mask, before_own = self._masks[ord(before)], self._owns[ord(before)]
        for q, needed in self.needs_before:
            if mask >> q & 1 and not before_mask & needed:
                mask &= ~(1 << q)
        if own and own not in self._added_starts and before_own + own not in self._added_pairs:
            own = ""
        known = self._forgotten[before, unit] = self._class_with(mask, own)
        return known

    def disown(self, classes: str) -> str:
        """The classes of characters with the same answers that are in no added text. Characters as units."""
        if not self.added or self._named.isdisjoint(classes):
            return classes
        owned = {ord(u) for u in classes if self._owns[ord(u)] not in ("", _BROKEN_OWN)}
        return classes.translate({code: self._class_with(self._masks[code], "") for code in owned})

    def disowned(self, codes: np.ndarray) -> np.ndarray:
        """The same for classes as numbers."""
        if not self.added or self.byte_units or not len(codes):
            return codes
        table = np.arange(int(codes.max()) + 1)
        for code in (ord(unit) for unit in self._named if ord(unit) < len(table)):
            table[code] = ord(self.disown(chr(code)))
        return table[codes]

    def join(self, left: str, right: str) -> str:
        """left + right, both canonical, as one canonical string: only the first units of right can still change."""
        before, changed = left[-1:], []
        if self.byte_units or not before:
            return left + right
        for unit in right:
            new = self._forget(before, unit)
            if new == unit:
                break
            changed.append(new)
            before = new
        return left + "".join(changed) + right[len(changed) :]

    @cached_property
    def _added_starts(self) -> frozenset[str]:
        return frozenset(a[0] for a in self.added)

    @cached_property
    def _added_pairs(self) -> frozenset[str]:
        return frozenset(a[i : i + 2] for a in self.added for i in range(len(a) - 1))

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
            known = self._pieces[classes] = tuple(self._run(classes, final=True))
        return known

    def certain(self, classes: str) -> tuple[int, ...]:
        """Ends of the first pre-tokens, as far as they are the same whatever follows. The rest is *pending*."""
        known = self._certain.get(classes)
        if known is None:
            whole = classes if self.byte_units else classes.removesuffix(self._broken)
            known = self._certain[classes] = tuple(self._run(whole, final=False))
        return known

    @cached_property
    def machine(self) -> CutMachine | None:
        """The stages as compiled code; None for bytes as units, and for a pattern that has no instructions."""
        if self.codes is None or len(self.predicates) > _MOST_BITS:
            return None
        from engine.kernels.cut_program import CutMachine  # here: numba takes a moment to load

        return CutMachine(self.codes, self.added, ord(self._broken), self._masks, self._owns)

    def _run(self, classes: str, *, final: bool) -> list[int]:
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

        A premise, not a lemma: behind as many equal units as a pattern can count, or an added text has side by side, and a few
        more, a matcher that repeats single units is where it was one unit before. Tested on all tokenizers against the whole
        string (tests/contexts/test_canonical.py).
        """
        most = max(self.longest_count, self._longest_added_run, 3) + 1
        out: list[str] = []
        for unit in pending:
            if len(out) < most or any(unit != seen for seen in out[-most:]):
                out.append(unit)
        return "".join(out)

    def fold(self, pending: str) -> str:
        """A pending class string whose runs of one class are cut to `kept_run` units: the same premise as `shorten`, also for
        cuts inside the pending part. Such a cut goes by what stands near it, so that it keeps its distance to the nearer end of
        the run that it lies in; `unfold` (bpe/folding.py) finds it in the whole string. Characters as units.
        """
        if self.byte_units or len(pending) <= self.kept_run:
            return pending
        return self._long_run.sub(self._cut_run, self._without_past(pending))

    def _without_past(self, pending: str) -> str:
        """A pending class string whose characters are like any others where no added text lies or may be coming: what follows
        cannot make one of them."""
        if not self.added or self._named.isdisjoint(pending):
            return pending
        own = self.own(pending)
        if self.added_texts.matches(own):
            return pending
        begin = next(iter(self.added_texts.coming(own)), len(own))
        return self.disown(pending[:begin]) + pending[begin:]

    @cached_property
    def kept_run(self) -> int:
        """Units that are kept of a run of one class: twice what a pattern can count, or an added text has side by side, and a
        few more."""
        return 2 * (max(self.longest_count, self._longest_added_run, 3) + 1)

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

    def holds_added(self, own: str) -> bool:
        """Whether an added text lies in these units; characters (`own`), or bytes as units."""
        return bool(self.added_texts.matches(own))

    @cached_property
    def added_texts(self) -> AddedTexts:
        """The added texts in units."""
        return (
            AddedTexts(a.encode().decode("latin-1") for a in self.added) if self.byte_units else AddedTexts(self.added)
        )

    @cached_property
    def _longest_added_run(self) -> int:
        """Most equal characters side by side in an added text."""
        return max((len(list(run)) for text in self.added for _, run in groupby(text)), default=0)


# A stage cuts one span; it yields spans (begin, end, closed, whole). Only the last one may be open (closed = False):
# it is known up to `end`, and what follows may lengthen it.
_Stage = Callable[[Splitter, str, int, int, bool], list[tuple[int, int, bool, bool]]]


def _isolate(find: Callable[[Splitter, str, int, int, bool], tuple[int, bool]], whole: bool) -> _Stage:
    """The `Isolated` behaviour: matches and the gaps between them are pieces. `find(.., i, end, closed)` -> (match end or
    i when there is none, whether the answer could change with more text)."""

    def stage(splitter: Splitter, s: str, begin: int, end: int, closed: bool) -> list[tuple[int, int, bool, bool]]:
        out: list[tuple[int, int, bool, bool]] = []
        gap = i = begin
        while i < end:
            stop, may_change = find(splitter, s, i, end, closed)
            if may_change:
                return [*out, (gap, i, False, False)]
            if stop > i:
                if i > gap:
                    out.append((gap, i, True, False))
                out.append((i, stop, True, whole))
                gap = i = stop
            else:
                i += 1
        if end > gap:
            out.append((gap, end, closed, False))
        return out

    return stage


def _pattern_stage(pattern: Matcher) -> _Stage:
    def find(splitter: Splitter, s: str, i: int, end: int, closed: bool) -> tuple[int, bool]:
        stop, touched = pattern.match(s, i, end, splitter._masks)
        return (stop if stop > i else i), touched and not closed

    return _isolate(find, whole=False)


def _added_stage() -> _Stage:
    """Added texts are pieces of their own. Where one begins, and a longer one may come, the cut before it is certain all the
    same."""

    def stage(splitter: Splitter, s: str, begin: int, end: int, closed: bool) -> list[tuple[int, int, bool, bool]]:
        added, units = splitter.added_texts, splitter.own(s)
        out: list[tuple[int, int, bool, bool]] = []
        gap = i = begin
        while i < end:
            if units[i] not in added.firsts:
                i += 1
                continue
            stop, may_grow = added.at(units, i, end)
            if may_grow and not closed:
                return [*out, (gap, i, stop > i, False)]
            if stop > i:
                out += [(gap, i, True, False)] if i > gap else []
                out.append((i, stop, True, True))
                gap = i = stop
            else:
                i += 1
        return [*out, (gap, end, closed, False)] if end > gap else out

    return stage


def _bigram_stage(never: np.ndarray) -> _Stage:
    cuts = frozenset(chr(a) + chr(b) for a, b in np.argwhere(never))

    def stage(splitter: Splitter, s: str, begin: int, end: int, closed: bool) -> list[tuple[int, int, bool, bool]]:
        out, start = [], begin
        for i in range(begin + 1, end):
            if s[i - 1 : i + 1] in cuts:
                out.append((start, i, True, False))
                start = i
        return [*out, (start, end, closed, False)]

    return stage


def never_side_by_side(vocabulary: Vocabulary) -> np.ndarray:
    """bool [256, 256]: (x, y) that no token of the model holds side by side, so that no merge crosses between them.

    A cut never lies inside a character.
    """
    never = np.ones((256, 256), dtype=bool)
    for token_id, piece in enumerate(vocabulary.token_bytes):
        if piece is not None and len(piece) > 1 and token_id not in vocabulary.added_only:
            data = np.frombuffer(piece, np.uint8)
            never[data[:-1], data[1:]] = False
    never[:, 0x80:0xC0] = False  # never inside a character: one without a token is spelt as a whole, byte by byte
    if not vocabulary.byte_fallback:
        never[0x80:0xC0, :] = False  # unknown characters in a row fuse into one token
        unknown = [b for b in range(0x80) if bytes([b]) not in vocabulary.id_of_bytes]
        never[np.ix_(unknown, [*unknown, *range(0xC0, 0x100)])] = False
    return never


def build_splitter(vocabulary: Vocabulary, longest_pending: int = LONGEST_PENDING) -> Splitter:
    """The splitter of a vocabulary. Raises TokenizerError for a pre-tokenizer or pattern that it does not know."""
    where = f"tokenizer {vocabulary.name}"
    stages: list[_Stage] = []
    added = tuple(sorted(vocabulary.added_text, key=len, reverse=True))
    if added:
        stages.append(_added_stage())
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
        stages = [*stages, _bigram_stage(never)]
        return Splitter(
            True,
            tuple(stages),
            added=added,
            never=never,
            cuts_spaces=cuts_spaces,
            longest_pending=longest_pending,
        )
    steps = [pre for pre in steps_of(vocabulary.pre_tokenizer) if pattern_of(pre, where) is not None]
    patterns = [pattern_of(pre, where) or "" for pre in steps]
    predicates = predicates_of(patterns, where)
    matchers = [compile_pattern(p, predicates, where) for p in patterns]
    stages += [_pattern_stage(m) for m in matchers]
    # Each predicate is asked of the tokenizers library itself ("removed" leaves nothing of a character that matches), so
    # that both sides share one table of Unicode properties.
    asked = tuple(_asked(source, fold) for source, fold in predicates)
    longest = max((m.longest_count for m in matchers), default=1)
    known = [m.code for m in matchers if m.code is not None]
    codes = (*((None,) if added else ()), *known) if len(known) == len(matchers) else None
    splitter = Splitter(
        False,
        tuple(stages),
        asked,
        _needs_before(matchers, len(predicates)),
        added,
        codes,
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
            if matcher.match("".join(units), 0, len(units), splitter._masks)[0] < 1:
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
