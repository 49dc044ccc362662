"""docs/faults.md names tests that there are, each in the tier that it runs in."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
TIERS = ("fast", "thorough", "chaos", "soak")


@cache
def marks_of(file: str) -> dict[str, str]:
    """Name of each test of a file -> its tier, by its marks."""
    found = {}
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            named = [mark.func if isinstance(mark, ast.Call) else mark for mark in node.decorator_list]
            marks = {mark.attr for mark in named if isinstance(mark, ast.Attribute)}
            found[node.name] = next((tier for tier in TIERS[:0:-1] if tier in marks), "fast")
    return found


def rows() -> list[list[str]]:
    """The cells of every row of every table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in table if row[0] != "fault"]


def test_there_are_rows() -> None:
    assert len(rows()) > 40 and {len(row) for row in rows()} == {5}
    assert {tier for row in rows() for tier in row[4].split(", ")} == {*TIERS, ""}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_names_the_tiers_of_its_tests(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[3])
    assert named or row[3].startswith("not tested: "), "a row needs a test, or a reason"
    tiers = {f"{file}::{test}": marks_of(file).get(test, "no such test") for file, test in named}
    wanted = ", ".join(tier for tier in TIERS if tier in tiers.values())
    assert set(tiers.values()) <= set(TIERS) and row[4] == wanted, f"the page says {row[4]} of {tiers}"


def test_every_test_of_faults_has_a_row() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE.read_text(encoding="utf-8")))
    ours = sorted((ROOT / "tests" / "faults").glob("test_*.py"))
    there = {
        f"tests/faults/{path.name}::{test}"
        for path in ours
        if path.name != Path(__file__).name
        for test in marks_of(f"tests/faults/{path.name}")
    }
    assert len(there) > 20 and there - named == set()
