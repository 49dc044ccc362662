"""The worked example of docs/design.md, section 5, is what the code prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.worked_example import main

DESIGN = Path(__file__).resolve().parents[2] / "docs" / "design.md"


def test_the_page_has_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    section = DESIGN.read_text(encoding="utf-8").partition("### Worked example\n")[2]
    block = section.partition("```text\n")[2].partition("```")[0]
    capsys.readouterr()
    main()
    printed = capsys.readouterr().out
    assert block == printed, f"put into docs/design.md, section 5:\n{printed}"
