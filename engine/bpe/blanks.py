"""Which white space of a long stretch makes no difference to how the text is cut: mixed blanks count as a run of one kind.

In: a splitter whose units are characters. Out: `Blanks`: inside a stretch of white space at the beginning of a pending part a
space, a tab and a wide space are alike, but for the last one, and of line breaks only the last one counts (`\\s*[\\r\\n]+` takes
all that is before it). So thousands of them are a few class strings (`Splitter.fold`). Blanks are those that no added text owns
(`UnitClasses.disown`): of white space that may still become one nothing is said.

Tried, not proved: each rule is kept where the splitter cuts the same, now and for certain, with all that a pattern looks at
around (the premise of bpe/continuations.py), and on all tokenizers by tests/bpe/test_folding.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from engine.bpe.unit_classes import UnitClasses

_PLAIN = "\t"
_BLANKS = "\t \n\r\x0b\u00a0\u3000\u2028"
_OTHERS = "as0.'=\u65e5\u00e9\u0301"


@dataclass(frozen=True)
class Blanks:
    """every: classes of white space, owned by no added text. plain: the one that others count as inside a stretch. sticky: those
    that count themselves, as long as no other sticky one comes behind them."""

    every: frozenset[str]
    plain: str
    sticky: frozenset[str]

    def even(self, pending: str) -> str:
        """A pending class string whose white space at the beginning is plain where it makes no difference. Of the same length."""
        size = next((i for i, unit in enumerate(pending) if unit not in self.every), len(pending))
        if size < 2:
            return pending
        kept = -1 if pending[size - 1] in self.sticky else self._last_sticky(pending, size - 1)
        if kept < 0:
            return self.plain * (size - 1) + pending[size - 1 :]
        return self.plain * kept + pending[kept] + self.plain * (size - 2 - kept) + pending[size - 1 :]

    def _last_sticky(self, pending: str, stop: int) -> int:
        return max((pending.rfind(unit, 0, stop) for unit in self.sticky), default=-1)


Run = Callable[[str, bool], Sequence[int]]
"""Class string, whether the text ends there -> the ends of its pieces, or of those that are certain."""


def find_blanks(classes: UnitClasses, run: Run) -> Blanks | None:
    """The rules of one splitter. run: how it cuts. None where there are none: bytes as units, patterns that tell blanks apart in
    another way."""
    if classes.byte_units:
        return None
    trial = _Trial(classes, run)
    found = trial.rules(trial.blanks)
    if not isinstance(found, Blanks) and found:  # line breaks that are cut off by themselves are no blanks
        found = trial.rules(found)
    return found if isinstance(found, Blanks) else None


class _Trial:
    """Tries rules on texts of a few characters, one of each class."""

    def __init__(self, classes: UnitClasses, run: Run) -> None:
        self.classes, self.run = classes, run
        self.blanks, others = self._of_each_class(_BLANKS), self._of_each_class(_OTHERS)
        pairs = ("".join(pair) for pair in product(self.blanks, [*self.blanks, *others]))
        self.ends = ["", *self.blanks, *others, *pairs]  # what a pattern may look at behind

    def rules(self, blanks: list[str]) -> Blanks | list[str]:
        """The rules of these characters; else those among them that are never sticky."""
        fronts = ["", *blanks, *("".join(pair) for pair in product(blanks, repeat=2))]
        sticky = [(f, c) for f in fronts for c in blanks if not all(self._is_plain(f, c, behind) for behind in blanks)]
        classes = frozenset(self._classes(f + c)[-1] for f, c in sticky)
        breaks = [c for c in blanks if any(self._classes(b + c)[-1] in classes for b in ("", *blanks))]
        gaps = ("", _PLAIN, 2 * _PLAIN)
        if all(self._is_plain(f, c, gap + b) for f, c in sticky for gap in gaps for b in breaks):
            every = frozenset(unit for f in ("", *blanks) for c in blanks for unit in self._classes(f + c))
            return Blanks(every, self._classes(2 * _PLAIN)[1], classes)
        return [c for c in blanks if c not in breaks] if _PLAIN not in breaks else []

    def _is_plain(self, front: str, char: str, behind: str) -> bool:
        """Whether `char` between the two is cut as a plain one, whatever comes."""
        plain = self._classes(2 * _PLAIN)[1]
        for end in self.ends:
            classes = self._classes(front + char + behind + end)
            other = classes[: len(front)] + plain + classes[len(front) + 1 :]
            if any(self.run(classes, final) != self.run(other, final) for final in (True, False)):
                return False
        return True

    def _classes(self, text: str) -> str:
        return self.classes.disown(self.classes.canonical(self.classes.classes(text.encode())))

    def _of_each_class(self, chars: str) -> list[str]:
        found: dict[str, str] = {}
        for char in chars:
            found.setdefault(self._classes(char), char)
        return list(found.values())
