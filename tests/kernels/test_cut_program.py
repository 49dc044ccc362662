"""Compiled cuts are those of the closures: real pre-tokenizers on real text, cut off anywhere, and random patterns."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engine.bpe.pretokenizer import Splitter, build_splitter
from engine.bpe.vocabulary import load_vocabulary
from schemas.errors import TokenizerError
from tests.support.tiers import usual
from tests.support.vocabularies import BYTE_LEVEL, EFFORT, byte_level, needs_shared, save, texts, vocabulary


def compare(split: Splitter, classes: str) -> int:
    """Both ways of both questions; returns the number of cuts."""
    machine, cuts = split.machine, 0
    assert machine is not None
    for final in (True, False):
        want = split.run_slowly(classes, final=final)
        assert machine.ends(classes, final=final) == want, (final, [ord(c) for c in classes])
        cuts += len(want)
    return cuts


@needs_shared
@pytest.mark.parametrize("name", usual(BYTE_LEVEL))
def test_real_pre_tokenizers(name: str) -> None:
    rng, split, cuts = random.Random(name), build_splitter(vocabulary(name)), 0
    split.learn({c for text in texts() for c in text})
    strings = []
    for _ in range(300 * EFFORT):
        text = rng.choice(texts())
        at = rng.randrange(len(text))
        strings.append(text[at : at + rng.choice((1, 2, 3, 5, 9, 20, 60))])
    strings += [
        *split.added,
        *(a[:-1] + " " for a in split.added),
        *(" " + a[:2] for a in split.added),
        " " * 40,
        "\n \n",
        "a" * 300,
    ]
    for text in strings:
        data = text.encode()
        cuts += compare(split, split.canonical(split.classes(data)))
        cuts += compare(split, split.canonical(split.classes(data[: rng.randrange(len(data) + 1)])))
    assert cuts > 2000


def test_new_classes_are_taken_over(tmp_path: Path) -> None:
    split = splitter_of({"added_tokens": [added("<x>", 257)]}, r"[^\s\p{L}]?\p{L}+|\s+(?!\S)|\s+|.", tmp_path)
    for text in ("a", "<x>", "<x", "é<x>b", " \n", "漢字 x>"):
        compare(split, split.canonical(split.classes(text.encode())))


def added(text: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": number, "content": text, **flags}


def splitter_of(changes: dict[str, Any], pattern: str, folder: Path) -> Splitter:
    vocab = [bytes([b]) for b in range(256)]
    spec = byte_level([(b"a", b"b")], vocab=vocab, pattern=pattern, **changes)
    return build_splitter(load_vocabulary(save(spec, folder)))


def random_pattern(rng: random.Random, depth: int = 0) -> str:
    """Alternatives, groups, look-ahead, repeats of every kind; never one that matches nothing in an unbounded repeat."""
    options = []
    for _ in range(rng.randint(1, 3)):
        parts = []
        for _ in range(rng.randint(1, 3)):
            way = rng.random()
            item = rng.choice([r"\p{L}", r"\s", r"\p{N}", "a", "b", r"[^\s\p{L}]", "'", "."])
            if way < 0.25 and depth < 2:
                opening = rng.choice(["(?:", "(?i:", "("])
                item = f"{opening}{random_pattern(rng, depth + 1)})"
            elif way < 0.35:
                parts.append(f"{rng.choice(['(?=', '(?!'])}{item})")
                continue
            elif way < 0.4:
                parts.append(item + "$")
                continue
            parts.append(item + rng.choice(["", "", "+", "?", "*", "{1,3}", "{2}", "++", "?+"]))
        options.append("".join(parts))
    return "|".join(options)


@pytest.mark.parametrize("seed", range(6 * EFFORT))
def test_random_patterns(seed: int, tmp_path: Path) -> None:
    rng, cuts, compiled = random.Random(seed), 0, 0
    for _ in range(25):
        pattern = random_pattern(rng)
        changes = {"added_tokens": [added("ab", 256), added("a b", 257)]} if rng.random() < 0.3 else {}
        try:
            split = splitter_of(changes, pattern, tmp_path)
        except TokenizerError as error:  # the library reads some patterns in a way of its own, and refuses them
            assert "Oniguruma" in str(error), pattern
            continue
        if split.machine is None:
            continue
        compiled += 1
        for _ in range(40):
            text = "".join(rng.choices("ab B1'\n é<", k=rng.randint(1, 9)))
            cuts += compare(split, split.canonical(split.classes(text.encode())))
    assert compiled >= 10 and cuts > 500
