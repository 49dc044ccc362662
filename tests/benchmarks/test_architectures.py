"""The table of architectures in the docs is what its command gives, on a sample."""

from __future__ import annotations

import pytest

from benchmarks.architectures import PAGE, line
from tests.support.architectures import NAMES

SAMPLE = ("llama", "gemma3_text", "deepseek_v32", "qwen3_next", "mamba", "rwkv", "bart", "openai-gpt", "bert")
STORED = {
    cells[0]: cells
    for row in PAGE.read_text(encoding="utf-8").splitlines()
    if row.startswith("| ") and len(cells := [cell.strip() for cell in row.strip("|").split("|")]) == 5
}

pytestmark = pytest.mark.filterwarnings("ignore")  # of models with odd configurations, about themselves


def test_every_architecture_of_the_installed_transformers_is_listed() -> None:
    assert set(STORED) - {"architecture"} == set(NAMES), "run python -m benchmarks.architectures --write"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_line_is_what_the_command_gives(name: str) -> None:
    made, (_, way, tokens, gap, note) = line(name), STORED[name]
    assert (made.way, made.note.replace("|", "/")) == (way, note)
    if tokens:
        assert f"{made.tokens:.2f}" == tokens
        assert made.gap <= 1e-3 and float(gap) <= 1e-3
