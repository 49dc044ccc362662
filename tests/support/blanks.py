"""Tokenizers whose added texts hold white space, and texts of mixed white space for them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.bpe.vocabulary import Vocabulary
from tests.support.toys import added_texts, toy
from tests.support.vocabularies import SHARED, vocabulary

CHARS = (" ", "\t", "\n", "a", "b", "s", "=", "'", "1", "\u00a0")
ADDED = {
    "spaces": [" " * n for n in range(2, 25)],  # as GPT-NeoX
    "some spaces": [" " * n for n in (3, 4, 7)],
    "spaces and tabs": [*(" " * n for n in range(2, 9)), *("\t" * n for n in range(2, 6))],  # as Phi
    "long ones": [" " * 9, "\t" * 10, "=" * 11, "\n" * 12],
    "beside others": [" a", "\t\n ", "\n\n", "=  =", "b \t"],
    "of one and more": [" ", " " * 3, "\t" * 2],
    "random": [],
}
STYLES = ("gpt2", "llama3", "digits")
NEOX = ("gpt-neox-20b", "")
_ALWAYS = (("spaces", "gpt2"), ("long ones", "llama3"), ("beside others", "llama3"), NEOX)
CASES = [
    case if case in _ALWAYS else pytest.param(case, marks=pytest.mark.thorough)
    for case in [*((added, style) for added in ADDED for style in STYLES), NEOX]
]
"""(added texts, pre-tokenizer) of a toy; or a published tokenizer."""
_MIXES = (" \t\n", "\t\n\t\n\u00a0 ", " \t\t\t\t", "  \t\n", " a\t\n", " \t\n=", "\n\n ")
_ENDS = ("", "a", " ", "1", "= =", "'s", "b a", "  ", "\t\t")


def mixed(rng: random.Random, longest: int) -> str:
    """White space of several kinds between other characters."""
    runs = ["".join(rng.choices(rng.choice(_MIXES), k=rng.randint(1, longest))) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
        runs.insert(rng.randint(0, len(runs)), rng.choice(CHARS) * rng.randint(2, 30))
    return rng.choice(_ENDS) + "".join(run + rng.choice(_ENDS) for run in runs)


def tokenizer_of(case: tuple[str, str], folder: Path) -> Vocabulary:
    """The tokenizer of one of `CASES`; skips where its file is not there."""
    if case == NEOX:
        if not (SHARED / "tokenizers").is_dir():
            pytest.skip(f"no shared data at {SHARED}: set TARGETSMITH_SHARED")
        return vocabulary(case[0])
    rng = random.Random("".join(case))
    added = ADDED[case[0]] or added_texts(rng, " \t\na")
    return toy(rng, folder / "added", case[1], CHARS, whole=rng.random() < 0.3, merges=20, added=added)
