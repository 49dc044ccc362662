"""The regular expressions of pre-tokenizers, matched so that one more thing is known: did the match look past the text's end?

A small backtracking matcher over class strings (bpe/pretokenizer.py). Soundness is plain: it is deterministic and reads one
unit at a time, so a match found without ever asking for a unit at `end` is found again in every longer text (lemma 5).
Dialect: alternatives, groups `(?:)` and `(?i:)`, look-ahead `(?=)` `(?!)`, greedy `? * + {m} {m,n}`, possessive `?+ *+ ++`,
sets, escapes. `{m,n}+` is a repeat of a repeat, as in Ruby, whose dialect the library reads. That is what published BPE
tokenizers use; anything else is refused by name. Equality with the tokenizers library is tested on every code point and on
real text (tests/bpe/test_pretokenizer.py), and tried when a tokenizer is loaded (bpe/compare.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from engine.bpe.pattern_parts import (
    MANY,
    Node,
    Scan,
    ahead,
    at_line_end,
    code_in_order,
    code_of_either,
    code_of_repeat,
    either,
    in_order,
    inside,
    repeat,
    repeat_unit,
    unit,
)
from engine.kernels.instructions import AHEAD, LINE_END, MATCH, UNIT, Code
from schemas.errors import TokenizerError

Predicate = tuple[str, bool]  # source of a one-character expression, whether it ignores case
_ONE_CHARACTER = "dDwWsShHnrtfvae"  # letters that an escape turns into a predicate on one character
_INTERVAL = re.compile(r"\{(\d*)(,?)(\d*)\}")


@dataclass(frozen=True)
class Matcher:
    """A compiled pattern. `match(s, i, end, masks)` -> (end of the match at i or -1, whether it looked past `end`).

    starts: bits of predicates that a match may ask of its first unit
    follows: (p, q): q may be asked of a unit only where the unit before it answered p (or q is in `starts`)
    longest_count: the largest number that a repeat counts to, 1 where none counts
    code: the same pattern as instructions for kernels/cut_kernels.py; None where it has a repeat that these do not know
    """

    node: Node
    starts: frozenset[int]
    follows: frozenset[tuple[int, int]]
    longest_count: int
    code: Code | None

    def match(self, s: str, i: int, end: int, masks: list[int]) -> tuple[int, bool]:
        """s: class string; masks[class] has bit p set when predicate p holds. Python's first-alternative semantics."""
        scan = Scan(s, end, masks)
        return self.node(scan, i, lambda j: j), scan.touched


def predicates_of(patterns: list[str], where: str) -> tuple[Predicate, ...]:
    """All distinct one-character predicates in these patterns, in order of appearance. Raises as `compile_pattern`."""
    found: dict[Predicate, None] = {}
    for pattern in patterns:
        _Parser(pattern, lambda p: found.setdefault(p) or 0, where).parse()
    return tuple(found)


def compile_pattern(pattern: str, predicates: tuple[Predicate, ...], where: str) -> Matcher:
    """Compile against a fixed list of predicates. Raises TokenizerError for constructs outside the dialect."""
    index = {p: i for i, p in enumerate(predicates)}
    return _Parser(pattern, index.__getitem__, where).parse()


@dataclass(frozen=True, slots=True)
class _Part:
    """A parsed piece of the pattern: its closure, and which predicates it may ask first and answer last (Glushkov)."""

    node: Node
    nullable: bool
    first: frozenset[int]
    last: frozenset[int]
    code: Code | None
    bit: int | None = None  # set for a single unit


class _Parser:
    """Recursive descent over the pattern; builds closures. `number` gives the bit of a predicate."""

    def __init__(self, pattern: str, number: Callable[[Predicate], int], where: str) -> None:
        self.p, self.i, self.number, self.where = pattern, 0, number, where
        self.follows: set[tuple[int, int]] = set()
        self.longest_count = 1

    def parse(self) -> Matcher:
        part = self._alternatives(False)
        if self.i < len(self.p):
            self._refuse("an unmatched ')'")
        code = None if part.code is None else (*part.code, (MATCH, 0, 0))
        return Matcher(part.node, part.first, frozenset(self.follows), self.longest_count, code)

    def _refuse(self, what: str) -> NoReturn:
        raise TokenizerError(
            f"{self.where}: the pre-tokenizer's pattern has {what} at position {self.i} of {self.p!r}, which is not known; "
            "want alternatives, groups, look-ahead, greedy or possessive repeats, sets and escapes"
        )

    def _alternatives(self, fold: bool) -> _Part:
        options = [self._sequence(fold)]
        while self.i < len(self.p) and self.p[self.i] == "|":
            self.i += 1
            options.append(self._sequence(fold))
        if len(options) == 1:
            return options[0]
        first, last = (
            frozenset[int]().union(*(o.first for o in options)),
            frozenset[int]().union(*(o.last for o in options)),
        )
        code = code_of_either([o.code for o in options])
        return _Part(either([o.node for o in options]), any(o.nullable for o in options), first, last, code)

    def _sequence(self, fold: bool) -> _Part:
        items: list[_Part] = []
        nullable, first, last = True, frozenset[int](), frozenset[int]()
        while self.i < len(self.p) and self.p[self.i] not in "|)":
            item = self._repeated(fold)
            self.follows |= {(p, q) for p in last for q in item.first}
            first = first | item.first if nullable else first
            last = last | item.last if item.nullable else item.last
            nullable = nullable and item.nullable
            items.append(item)
        if len(items) == 1:
            return items[0]
        return _Part(in_order([x.node for x in items]), nullable, first, last, code_in_order([x.code for x in items]))

    def _repeated(self, fold: bool) -> _Part:
        item = self._item(fold)
        counted = self.p.startswith("{", self.i)
        low, high = self._quantifier()
        more = self.p[self.i : self.i + 1]
        if more == "?" and (counted or (low, high) != (1, 1)):
            self._refuse("a lazy repeat")
        if counted and more == "+":  # no possessive repeat in the library's dialect, but a repeat of the repeat
            self.i += 1
            if low > 1:
                return self._many(self._many(item, low, high), 1, MANY)
            high = MANY  # one to three, one to three ...: as many as there are
        possessive = not counted and more == "+" and (low, high) != (1, 1)
        if possessive:
            self.i += 1
        return self._many(item, low, high, possessive=possessive)

    def _many(self, item: _Part, low: int, high: int, *, possessive: bool = False) -> _Part:
        self.longest_count = max(self.longest_count, low, high if high < MANY else 1)
        if (low, high) == (1, 1):
            return item
        if high > 1:
            self.follows |= {(p, q) for p in item.last for q in item.first}
        many = repeat_unit(item.bit, low, high, possessive) if item.bit is not None else None
        node = many or repeat(item.node, low, high, possessive)
        code = None if item.nullable else code_of_repeat(item.code, low, high, possessive)
        return _Part(node, item.nullable or low == 0, item.first, item.last, code)

    def _quantifier(self) -> tuple[int, int]:
        char = self.p[self.i] if self.i < len(self.p) else ""
        if char in ("?", "*", "+") and char:
            self.i += 1
            return {"?": (0, 1), "*": (0, MANY), "+": (1, MANY)}[char]
        if char == "{":
            found = _INTERVAL.match(self.p, self.i)
            if found is None or found.group() in ("{}", "{,}"):
                self._refuse("a brace that counts nothing")
            low, comma, high = found.groups()
            self.i = found.end()
            return int(low or 0), (int(high) if high else MANY) if comma else int(low)
        return 1, 1

    def _item(self, fold: bool) -> _Part:
        char = self.p[self.i]
        if char == "(":
            return self._group(fold)
        if char == "$":
            self.i += 1
            newline = self.number(("\\n", False))
            return _Part(at_line_end(newline), True, frozenset({newline}), frozenset(), ((LINE_END, newline, 0),))
        if char == "^":
            self._refuse("an anchor")
        if char == "[":
            source = self._set()
        elif char == "\\":
            length = 2
            if self.p[self.i + 1] in "pP":
                length = self.p.index("}", self.i) + 1 - self.i
            elif self.p[self.i + 1].isalnum() and self.p[self.i + 1] not in _ONE_CHARACTER:
                self._refuse(f"the escape {self.p[self.i : self.i + 2]}")
            source = self.p[self.i : self.i + length]
            self.i += length
        else:
            source = char if char == "." else escape(char)
            self.i += 1
        bit = self.number((source, fold))
        return _Part(unit(bit), False, frozenset({bit}), frozenset({bit}), ((UNIT, bit, 0),), bit)

    def _group(self, fold: bool) -> _Part:
        openings = {"(?:": "plain", "(?i:": "fold", "(?=": "ahead", "(?!": "not ahead"}
        opening = next((o for o in openings if self.p.startswith(o, self.i)), "(")
        if opening == "(" and self.p.startswith("(?", self.i):
            self._refuse(f"the group {self.p[self.i : self.i + 4]}")
        kind = openings.get(opening, "plain")
        self.i += len(opening)
        inner = self._alternatives(fold or kind == "fold")
        if self.i >= len(self.p):
            self._refuse("an unclosed group")
        self.i += 1
        if kind in ("ahead", "not ahead"):  # asks the next units, takes none
            code = inside(AHEAD, int(kind == "ahead"), inner.code)
            return _Part(ahead(inner.node, kind == "ahead"), True, inner.first, frozenset(), code)
        return inner

    def _set(self) -> str:
        begin, depth = self.i, 0
        while True:
            if self.i >= len(self.p):
                self._refuse("an unclosed set")
            char = self.p[self.i]
            if char == "\\":
                self.i += 1
            elif char == "[":
                depth += 1
            elif char == "]":
                depth -= 1
            self.i += 1
            if depth == 0:
                return self.p[begin : self.i]


def escape(char: str) -> str:
    """One character as a pattern that matches just it."""
    return "\\" + char if char in r"\.^$*+?{}[]()|-" else char
