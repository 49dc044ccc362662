"""Which cases of a test run always, and which with `make thorough` only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def one_of(count: int, cases: Sequence[Any]) -> list[Any]:
    """The cases of a parametrised test: the first of every `count` runs always, the others are marked `thorough`."""
    return [
        case
        if i % count == 0
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough)
        for i, case in enumerate(cases)
    ]
