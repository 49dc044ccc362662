"""Every reason of the quarantine has a meaning, a remedy, and its line in docs/operations.md."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.reasons import REASONS, REMEDIES

ROOT = Path(__file__).resolve().parents[2]


def test_every_reason_has_a_remedy_and_the_page_has_both() -> None:
    assert REASONS.keys() == REMEDIES.keys()
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for reason, means in REASONS.items():
        assert f"| `{reason}` | {means} | {REMEDIES[reason]} |\n" in page


def test_every_reason_is_one_that_the_code_gives() -> None:
    code = "".join(
        file.read_text(encoding="utf-8") for top in ("engine", "jobs") for file in (ROOT / top).rglob("*.py")
    )
    assert [reason for reason in REASONS if not re.search(f'"{reason}"', code)] == []
