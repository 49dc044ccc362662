"""Which cases of a test run always, and which with `make thorough` only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

# Every kind of pattern, normaliser, prefix and fallback, each in its smallest file: the others load for seconds.
USUAL = frozenset({
    "gpt2", "smollm2", "gpt-neox-20b", "olmo1-v1_5", "qwen2.5-subset-8000", "llama-2", "yi-34b",
    "stories260K", "vachan-gpt2-280K", "babyllama-tok105",
})  # fmt: skip


def usual(names: Sequence[str]) -> list[Any]:
    """The cases of a test of shared tokenizers: those of `USUAL` run always, the others are marked `thorough`."""
    return [name if name in USUAL else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def one_of(count: int, cases: Sequence[Any]) -> list[Any]:
    """The cases of a parametrised test: the first of every `count` runs always, the others are marked `thorough`."""
    return [
        case
        if i % count == 0
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough)
        for i, case in enumerate(cases)
    ]
