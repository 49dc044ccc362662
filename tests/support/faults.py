"""For tests of faults: commands in this process, and what an output holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import main

BAD = '{"id": "b0", "text": ""}\n{"id": "b1", "text": ""}\n{"id": "b2", "text": ""}\n'
"""Lines of a corpus: three documents that are quarantined."""


def contents(out: Path) -> dict[str, bytes]:
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if "_engine/tmp/" not in name}


Said = tuple[int, str, str]
Call = Callable[..., Said]


def caller(capsys: pytest.CaptureFixture[str]) -> Call:
    """A command in this process: exit code, standard output, standard error. Nothing here may need an actor."""

    def run(*arguments: object) -> Said:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return int(stop.value.code or 0), said.out, said.err

    return run
