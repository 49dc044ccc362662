"""Numbers of things in messages: one function says them all, so that nobody is told of "1 documents"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from schemas.counts import counted

ROOT = Path(__file__).resolve().parents[2]
COUNTED = re.compile(r" (?:(?!of )[a-z]+ )?(documents|units|actors|files|records|findings|reasons|settings)\b")
ALWAYS_MANY = {  # limits of the program, above one
    "jobs/pool/schedule.py": {"self._deaths_in_a_row", "self._starts_failed", "SAMPLE_LOST"},
    "engine/bpe/pending.py": {"splitter.longest_pending"},
}
STANDS_ALONE = {"reader", "losses"}  # copied into trainers: they import nothing of the project


def test_one_thing_and_several() -> None:
    assert [counted(n, "unit") for n in (0, 1, 2, 12_345)] == ["0 units", "1 unit", "2 units", "12,345 units"]


def test_no_message_spells_a_plural_behind_a_number_by_itself() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {{{number}}} {noun}"
        for package in ("schemas", "engine", "jobs")
        for path in (ROOT / package).rglob("*.py")
        if not STANDS_ALONE & {*path.relative_to(ROOT).parts}
        for line, number, noun in _plurals(path)
        if number not in ALWAYS_MANY.get(path.relative_to(ROOT).as_posix(), ())
    ]
    assert not found, "write {counted(number, 'thing')} of schemas/counts.py:\n" + "\n".join(found)


def _plurals(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, expression, noun) of each f-string in which a plural stands behind a value."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    if noun := COUNTED.match(str(text.value)):
                        yield value.lineno, ast.unparse(value.value), noun[1]
