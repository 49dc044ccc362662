"""Which signs of a stretch make no difference to how the text is cut: `='/=` counts as a run of one kind.

In: a splitter whose units are characters. Out: `Signs`: in a stretch of signs at the beginning of a pending part, or behind
one blank there, all are alike but the first and the last. Patterns take such a stretch as a whole and look at its ends only (`'`
may begin a `'s`, `/` may stand behind a line break). So minified code is a few class strings (`Splitter.fold`).

Tried, not proved, as white space is (bpe/blanks.py): a class counts where the splitter cuts the same, now and for certain, with
all that a pattern looks at around; and on all tokenizers by tests/bpe/test_folding.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from engine.bpe.blanks import Run
from engine.bpe.unit_classes import UnitClasses

_PLAIN = "="
_SIGNS = "=-'/\"._#&$\u20ac\u00ab\u3001\u30fb\u2014\u2018"
_LEADS = ("", " ", "\t", "\n", "\u3000")
_OTHERS = "a A0\n\t\u65e5\u0301s"


@dataclass(frozen=True)
class Signs:
    """every: classes of signs that are alike inside a stretch. plain: the one that they count as. leads: classes of blanks,
    of which one may stand before a stretch."""

    every: frozenset[str]
    plain: str
    leads: frozenset[str]

    def even(self, pending: str) -> str:
        """A pending class string whose signs at the beginning are plain where they make no difference. Of the same length."""
        begin = int(pending[:1] in self.leads)
        stop = next((i for i in range(begin, len(pending)) if pending[i] not in self.every), len(pending))
        if stop - begin < 3:
            return pending
        return pending[: begin + 1] + self.plain * (stop - begin - 2) + pending[stop - 1 :]


def find_signs(classes: UnitClasses, run: Run) -> Signs | None:
    """The signs of one splitter. run: how it cuts. None where there are none that differ: bytes as units, patterns that do
    not tell signs apart, or cut between them."""
    if classes.byte_units:
        return None

    def of(text: str) -> str:
        return classes.disown(classes.canonical(classes.classes(text.encode())))

    first_of: dict[str, str] = {}
    for char in _SIGNS:
        first_of.setdefault(of(char), char)
    plain, alike = of(2 * _PLAIN)[1], [_PLAIN]
    if len(first_of) == 1:
        return None

    def is_plain(front: str, char: str, behind: str) -> bool:
        for end in ("", *first_of.values(), *_OTHERS, *map("".join, product([*first_of.values(), *_OTHERS], _OTHERS))):
            whole = of(front + char + behind + end)
            other = whole[: len(front)] + plain + whole[len(front) + 1 :]
            if any(run(whole, final) != run(other, final) for final in (True, False)):
                return False
        return True

    for char in first_of.values():
        tried = [*alike, char]
        around = [(lead + a, b, c) for lead in _LEADS for a, b, c in product(tried, repeat=3) if char in (a, b, c)]
        if char not in alike and all(is_plain(*each) for each in around):
            alike = tried
    every = frozenset(of(lead + a + b)[-1] for lead in _LEADS for a in ("", *alike) for b in alike)
    return Signs(every, plain, frozenset(of(lead) for lead in _LEADS[1:])) if len(every) > 1 else None
