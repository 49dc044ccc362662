"""The commands as such: every option is documented, help loads nothing heavy, and how a command ends."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from engine.plan.make_plan import ENGINE_VERSION
from jobs import app
from jobs.cli import VERBS
from tests.jobs.test_cli import call

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "tokenizers", "ray", "pyarrow", "numpy", "polars", "datasets"}


# ---- documentation


def parameters() -> Iterator[tuple[str, Any]]:
    """(verb, option or argument) of every command."""
    group = app.commands(VERBS)
    for verb in VERBS:
        command = group.get_command(typer.Context(group), verb)
        assert command is not None and command.help, verb
        yield from ((verb, parameter) for parameter in command.params if parameter.name != "help")


def test_every_command_and_option_is_documented() -> None:
    lines = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").splitlines()
    for verb, parameter in parameters():
        shown = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
        assert any(f"targetsmith {verb}" in line and shown in line for line in lines), (
            f"docs/commands.md: no line `targetsmith {verb} ... {shown}`"
        )


def test_every_option_has_help() -> None:
    assert [(verb, parameter.name) for verb, parameter in parameters() if not parameter.help] == []


def loaded_by(code: str) -> list[str]:
    """Modules that a new Python has loaded after this code; standard output of the code goes away."""
    code = f"import sys\ntry:\n    {code}\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """What takes seconds to import is imported when a command does its work, not before."""
    loaded = loaded_by(f"from jobs.cli import main; main({arguments})")
    assert not HEAVY & set(loaded)
    assert f"jobs.{VERBS[0] if arguments == ['--help'] else arguments[0]}" in loaded


def test_a_verb_is_loaded_when_it_is_asked_for() -> None:
    found = loaded_by(f"from jobs.app import commands; commands({VERBS}).get_command(None, 'cat')")
    assert {name for name in found if name.removeprefix("jobs.") in VERBS} == {"jobs.cat"}


def test_help_prints_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("score", "--help") == 0
    assert "[ray]" in capsys.readouterr().out


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ENGINE_VERSION
    assert f"## {ENGINE_VERSION}" in (ROOT / "docs" / "CHANGELOG.md").read_text()


# ---- the end of a command

LEAVING = """
import atexit, sys, threading, time
class Apart:
    def __del__(self):
        print("taken apart", flush=True)
kept = Apart()
kept.itself = kept
atexit.register(print, "at the end")
threading.Thread(target=lambda: (time.sleep(0.3), print("waited for"))).start()
sys.argv = ["targetsmith", {arguments}]
from jobs.cli import main
main()
"""


@pytest.mark.parametrize(("arguments", "code"), [('"--help"', 0), ('"verify", "nowhere"', 1), ('"scroe"', 2)])
def test_a_command_ends_without_taking_the_interpreter_apart(arguments: str, code: int) -> None:
    """Native threads that let go of Python's objects while it is taken apart aborted one `verify --run` in five, exit code 134
    behind "sound: nothing found"."""
    command = [sys.executable, "-c", LEAVING.format(arguments=arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    # on a busy machine the command may take longer than the thread
    assert done.returncode == code and lines[-1] == "at the end" and "waited for" in lines, done
    assert "taken apart" not in done.stdout
