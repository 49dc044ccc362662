"""The command line `targetsmith <verb>`: the names of its verbs. What a verb is called with and does: jobs/<verb>.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import app

VERBS = (
    "plan",
    "score",
    "show",
    "cat",
    "stats",
    "diff",
    "report",
    "push",
    "verify",
    "export",
    "import",
    "demo",
    "vendor",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script: with no arguments given, those of the process, which ends with the command. Exits; never
    returns."""
    if arguments is None:
        app.main_and_leave(VERBS, sys.argv[1:])
    else:
        app.main(VERBS, arguments)


if __name__ == "__main__":
    main()
