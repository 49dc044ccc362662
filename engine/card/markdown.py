"""Texts of others inside Markdown: what they hold stays text, wherever it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MEANS_SOMETHING = re.compile(r"([\\`*_\[\]<>#|&~$])")


def plain(text: str) -> str:
    """One line that Markdown shows as it is, also within a heading, a list or a table."""
    return _MEANS_SOMETHING.sub(r"\\\1", _one_line(text))


def code(text: str) -> str:
    """One line as code, also within a table."""
    inside = _one_line(text).replace("|", "\\|")
    fence = "`" * (_longest_run(inside) + 1)
    pad = " " if inside.startswith("`") or inside.endswith("`") or not inside else ""
    return f"{fence}{pad}{inside}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """Lines as a block of code, with a fence that the text does not have."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as they are: from `plain` or `code`, or the program's own words."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
