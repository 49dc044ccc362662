"""What is remembered about text stays bounded, and forgetting changes no answer."""

from __future__ import annotations

import random
from dataclasses import replace

from engine.alignment.rules import TeacherTokens
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.vocabulary import load_vocabulary
from tests.support.runs import ASSETS


def test_it_forgets_everything_when_it_is_full() -> None:
    memory: BoundedCache[int, int] = BoundedCache(3)
    for key in range(10):
        known = memory[key] = 2 * key
        assert known == memory[key] and len(memory) <= 3
    assert dict(memory) == {9: 18}


def test_by_weight_and_together_with_others() -> None:
    """Full is what weighs too much; what depends on the forgotten values is emptied, too, and what was hung on them counts."""
    other, memory = {1: "kept elsewhere"}, BoundedCache[int, str](10, weight=len)
    memory.together = (other,)
    memory[0], memory[1] = "abcd", "efgh"
    memory.charge(2)
    assert (memory.size, memory.cleared, len(other)) == (10, 0, 1)
    memory[2] = "i"
    assert (dict(memory), memory.size, memory.cleared, other) == ({2: "i"}, 1, 1, {})
    memory[3] = "heavier than all the rest"
    assert dict(memory) == {3: "heavier than all the rest"} and memory.cleared == 2
    memory.clear()
    assert memory.size == 0 and memory.cleared == 2  # emptied by hand, not because it was full


def test_forgetting_changes_no_answer() -> None:
    """Cuts of random class strings, ranges of random beginnings: with room for all, and with room for four."""
    vocabulary = load_vocabulary(str(ASSETS / "student_bl"))
    large = build_splitter(vocabulary)
    small = replace(large, _pieces=BoundedCache(4), _certain=BoundedCache(4))
    tokens, few = TeacherTokens(vocabulary), TeacherTokens(vocabulary)
    few._ranges = BoundedCache(4)
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices("ab 1'\n,é", k=rng.randint(1, 6)))
        for ask in ("pieces", "certain"):
            classes = large.classes(text.encode())
            assert getattr(large, ask)(classes) == getattr(small, ask)(small.classes(text.encode()))
        assert tokens.range_of(text.encode()) == few.range_of(text.encode())
        assert max(len(small._pieces), len(small._certain), len(few._ranges)) <= 4
    assert min(len(large._pieces), len(large._certain), len(tokens._ranges)) > 100
