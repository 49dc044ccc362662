"""The parts of a pattern, each in two forms: as a function that matches it, and as instructions for compiled code.

In: what bpe/pattern.py has read (one unit, a sequence, alternatives, a repeat, a look ahead). Out: `Node`, which takes a place
and what is to match behind the part, and says where all of it ends; `Code` for kernels/cut_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.kernels.instructions import ATOMIC, JUMP, MATCH, SPLIT, Code

Continue = Callable[[int], int]
Node = Callable[["Scan", int, Continue], int]
FAIL = -1
MANY = 1 << 30
_MOST_COPIES = 64  # of a repeated part in instructions


@dataclass(slots=True)
class Scan:
    """One attempt: the text, its end, the class masks, and whether the matcher asked for a unit at `end`."""

    s: str
    end: int
    masks: list[int]
    touched: bool = False


def unit(bit: int) -> Node:
    def node(scan: Scan, i: int, then: Continue) -> int:
        if i >= scan.end:
            scan.touched = True
            return FAIL
        return then(i + 1) if scan.masks[ord(scan.s[i])] >> bit & 1 else FAIL

    return node


def at_line_end(newline: int) -> Node:
    """`$`: the end of the text, or a place before a newline (the library reads patterns in Ruby's dialect)."""

    def node(scan: Scan, i: int, then: Continue) -> int:
        if i >= scan.end:
            scan.touched = True
            return then(i)
        return then(i) if scan.masks[ord(scan.s[i])] >> newline & 1 else FAIL

    return node


def in_order(items: list[Node]) -> Node:
    if len(items) == 1:
        return items[0]

    def node(scan: Scan, i: int, then: Continue) -> int:
        def step(index: int, at: int) -> int:
            return then(at) if index == len(items) else items[index](scan, at, lambda j: step(index + 1, j))

        return step(0, i)

    return node


def either(options: list[Node]) -> Node:
    def node(scan: Scan, i: int, then: Continue) -> int:
        for option in options:
            stop = option(scan, i, then)
            if stop != FAIL:
                return stop
        return FAIL

    return node


def repeat_unit(bit: int, low: int, high: int, possessive: bool) -> Node:
    def node(scan: Scan, i: int, then: Continue) -> int:
        j, masks, s = i, scan.masks, scan.s
        while j - i < high:
            if j >= scan.end:
                scan.touched = True
                break
            if not masks[ord(s[j])] >> bit & 1:
                break
            j += 1
        for stop in range(j, i + low - 1, -1):
            end = then(stop)
            if end != FAIL or possessive:
                return end
        return FAIL

    return node


def repeat(item: Node, low: int, high: int, possessive: bool) -> Node:
    def greedy(scan: Scan, i: int, count: int, then: Continue) -> int:
        if count < high:
            stop = item(scan, i, lambda j: greedy(scan, j, count + 1, then) if j > i or count < low else FAIL)
            if stop != FAIL:
                return stop
        return then(i) if count >= low else FAIL

    def node(scan: Scan, i: int, then: Continue) -> int:
        if not possessive:
            return greedy(scan, i, 0, then)
        stop = greedy(scan, i, 0, lambda j: j)
        return then(stop) if stop != FAIL else FAIL

    return node


def ahead(inner: Node, wanted: bool) -> Node:
    def node(scan: Scan, i: int, then: Continue) -> int:
        found = inner(scan, i, lambda j: j) != FAIL
        return then(i) if found == wanted else FAIL

    return node


# ==== the same as instructions


def code_in_order(parts: list[Code | None]) -> Code | None:
    found: Code = ()
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def code_of_either(options: list[Code | None]) -> Code | None:
    """The first option, and where it fails the others."""
    whole = options[-1]
    for option in reversed(options[:-1]):
        if option is None or whole is None:
            return None
        whole = ((SPLIT, 1, len(option) + 2), *option, (JUMP, len(whole) + 1, 0), *whole)
    return whole


def code_of_repeat(item: Code | None, low: int, high: int, possessive: bool) -> Code | None:
    """Greedy: one more first, and where that fails what follows. `item` takes at least one unit."""
    if item is None or low > _MOST_COPIES or _MOST_COPIES < high < MANY:
        return None
    if high == MANY:
        more: Code = ((SPLIT, 1, len(item) + 2), *item, (JUMP, -len(item) - 1, 0))
    else:
        more = ()
        for _ in range(high - low):
            more = ((SPLIT, 1, len(item) + len(more) + 1), *item, *more)
    code = item * low + more
    return inside(ATOMIC, 0, code) if possessive else code


def inside(what: int, argument: int, code: Code | None) -> Code | None:
    """A part that is matched by itself: AHEAD takes no unit, ATOMIC does not come back for fewer."""
    return None if code is None else ((what, argument, len(code) + 2), *code, (MATCH, 0, 0))
