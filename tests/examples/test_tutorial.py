"""docs/tutorial.md: every block runs, in its order and in a fresh folder, and prints what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"


def blocks() -> list[tuple[str, str]]:
    """Kind and text of each fenced block. `console`: not run here, `text`: what the blocks before it print."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)


def as_pattern(line: str) -> str:
    """A line of the page as a pattern: `…` is anything, and so is how wide a table's columns are."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in line.split("…")]
    return r"\s*.*\s*".join(parts)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_every_block_runs_and_prints_what_the_page_shows(tmp_path: Path) -> None:
    for name in ("jobs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    found = [path for path in os.environ["PATH"].split(os.pathsep) if path]
    environment = {
        **os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), *found]), "PYTHONPATH": str(ROOT),
        "COLUMNS": "140",
    }  # fmt: skip
    printed, compared = "", 0
    for kind, text in blocks():
        if kind == "text":
            lines = iter(printed.splitlines())
            for line in filter(str.strip, text.splitlines()):
                pattern = re.compile(as_pattern(line))
                assert any(pattern.search(here) for here in lines), f"the page shows {line!r}, printed was\n{printed}"
                compared += 1
            printed = ""
        elif kind in ("sh", "python"):
            command = ["bash", "-euc", text] if kind == "sh" else [sys.executable, "-c", text]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
        else:
            assert kind in ("console", "toml"), f"a block of an unknown kind: {kind}"
    assert compared > 20
