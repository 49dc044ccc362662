"""The frame around every command: its verbs are loaded when they are asked for, and every error becomes a message and an
exit code.

Exit codes: 0 all done, 1 something failed, 2 the run file or the command line is wrong, 3 too many bad documents,
130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import atexit
import io
import keyword
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from jobs.pipes import outlive_the_reader
from schemas.errors import TargetsmithError
from schemas.redact import without_secrets

HELP = (
    "A teacher language model's next-token distributions over a student's vocabulary, offline, into Parquet. "
    "Exit codes: 0 done, 1 failed, 2 wrong run file or command line, 3 too many bad documents."
)
# markup would take "[ray]" in a help text for a style
PLAIN: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}
ENDLESS_VERBS = ("cat",)  # print as much as there is: they stop when their reader has enough; all others end their work


class Commands(TyperGroup):
    """Verbs by name; verb `x` is the function `x` of the module jobs.x, whose arguments are its options; `import_` where `import`
    is a word of Python. Runs one of them. The module's EXAMPLE ends its help."""

    def get_command(self, ctx, cmd_name):
        if self.commands.get(cmd_name, self) is None:  # a verb, not loaded yet
            module, one = import_module(f"jobs.{cmd_name}"), typer.Typer(add_completion=False, **PLAIN)
            name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
            one.command(cmd_name, epilog=f"Example: {module.EXAMPLE}")(getattr(module, name))
            self.commands[cmd_name] = typer.main.get_command(one)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx):
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe is understood, and not when Python ends
            return result
        except KeyboardInterrupt:
            print("targetsmith: interrupted; what is published stays, resume by running again", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `targetsmith cat OUT | head`: the reader has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def commands(verbs: Sequence[str]) -> Commands:
    """The command line of these verbs. Imports none of them."""
    app = typer.Typer(cls=Commands, help=HELP, no_args_is_help=True, **PLAIN)
    app.callback()(lambda: None)
    group = typer.main.get_command(app)
    assert isinstance(group, Commands)
    group.commands = dict.fromkeys(verbs)  # pyright: ignore[reportAttributeAccessIssue]
    return group


def main(verbs: Sequence[str], arguments: Sequence[str]) -> None:
    """Run a command line of these verbs. Exits with a code of above; never returns."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        commands(verbs)(args=list(arguments), prog_name="targetsmith")
    except TargetsmithError as error:  # of a verb, or of the command line: `--help` onto a full disk
        print(without_secrets(f"targetsmith: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception:  # a bug: Python's own traceback would print every secret that a message holds
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
        sys.exit(1)


def main_of(verb: str) -> None:
    """`python -m jobs.<verb>`: the same as `targetsmith <verb>`."""
    main_and_leave([verb], [verb, *sys.argv[1:]])


def main_and_leave(verbs: Sequence[str], arguments: Sequence[str]) -> None:
    """Run a command line as the only work of this process, and end the process.

    Whatever is to be done at the end is done (threads are waited for, `atexit`, streams), but the interpreter is not taken
    apart: native threads of pyarrow and torch that let go of Python's objects meanwhile abort it at times, behind the last
    line of a command that has done all ("terminate called without an active exception", exit code 134). Not where Ray is loaded.
    """
    code: Any = 0
    if not set(ENDLESS_VERBS) & set(arguments[:1]):
        outlive_the_reader()
    try:
        main(verbs, arguments)
    except SystemExit as stop:
        code = stop.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    if "ray" in sys.modules:  # it ends its own processes as the interpreter ends
        raise SystemExit(code)
    try:
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]  # what Python itself does first when it ends
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BrokenPipeError:  # the reader has enough
        pass
    except OSError:  # a full disk: what was printed is not all there
        code = code or 1
    finally:
        os._exit(code or 0)
