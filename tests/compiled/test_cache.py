"""A pair in files is the pair that was compiled; damage is noticed, makers do not disturb each other."""

from __future__ import annotations

import multiprocessing
import os
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bpe.pretokenizer import build_splitter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.compiled import cache
from engine.compiled.cache import key_of, open_pair
from engine.compiled.pair import CompiledPair, compile_pair
from engine.compiled.state import STATE_ARRAYS
from engine.kernels.flat import FlatTokenizer
from tests.support.toys import toy

CHARS = ("a", "b", " ", "'", "é")


def two(folder: Path, style: str, seed: int = 0) -> tuple[Vocabulary, Vocabulary]:
    rng = random.Random(seed)
    teacher = toy(rng, folder / "t", "gpt2", CHARS, whole=True, merges=12)
    return teacher, toy(rng, folder / "s", style, CHARS, whole=False, merges=12)


def lefts(student: Vocabulary) -> list[str]:
    """Some pending parts, in a splitter's own classes."""
    split = build_splitter(student)
    texts = [b"", b"a", b" ", b"  ", b"'", b"ab", b" a"]
    return [split.reduce(split.canonical(split.classes(t))) for t in texts]


def same(a: CompiledPair, b: CompiledPair) -> None:
    """All arrays and some states. The two number the classes of characters by themselves."""
    for one, two in ((a.teacher, b.teacher), (a.student, b.student)):
        for name in FlatTokenizer._fields:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    np.testing.assert_array_equal(a.columns, b.columns)
    for f in fields(a.suffixes):
        np.testing.assert_array_equal(getattr(a.suffixes, f.name), getattr(b.suffixes, f.name))
    assert a.answers.keys() == b.answers.keys()
    for left in range(len(lefts(a.vocabulary))):
        here, there = (pair.state(units_of(pair, left)) for pair in (a, b))
        for name in STATE_ARRAYS:
            np.testing.assert_array_equal(getattr(here, name), getattr(there, name), err_msg=name)
            assert getattr(here, name).dtype == getattr(there, name).dtype
        assert (here.variants, here.simple) == (there.variants, there.simple)


def units_of(pair: CompiledPair, number: int) -> str:
    split = pair.splitter
    text = [b"", b"a", b" ", b"  ", b"'", b"ab", b" a"][number]
    return split.reduce(split.canonical(split.classes(text)))


@pytest.mark.parametrize("style", ["gpt2", "llama3", "prepend", "never"])
def test_what_is_read_is_what_was_made(style: str, tmp_path: Path) -> None:
    teacher, student = two(tmp_path, style)
    reports: list[str] = []
    made = open_pair(teacher, student, folder=tmp_path / "c", progress=lambda done, total, what: reports.append(what))
    assert reports
    same(made, compile_pair(teacher, student))
    reports.clear()
    read = open_pair(*two(tmp_path / "again", style), folder=tmp_path / "c", progress=lambda *_: reports.append("made"))
    assert not reports and isinstance(read.answers[b""].firsts.base, np.memmap)
    same(read, compile_pair(teacher, student))
    assert len(list((tmp_path / "c").glob("pair-*/states/*.json"))) == len({units_of(read, i) for i in range(7)})


def test_states_are_found_by_processes_that_number_classes_otherwise(tmp_path: Path) -> None:
    teacher, student = two(tmp_path, "llama3")
    first = open_pair(teacher, student, folder=tmp_path / "c")
    for number in range(7):
        first.state(units_of(first, number))
    split = build_splitter(student)
    split.classes("éb'a ".encode())  # another order
    second = open_pair(teacher, student, folder=tmp_path / "c", splitter=split)
    second.make = lambda left, lead: pytest.fail("made again")  # type: ignore[method-assign]
    same(compile_pair(teacher, student), second)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "meta"])
def test_a_damaged_pair_is_made_again(damage: str, tmp_path: Path) -> None:
    teacher, student = two(tmp_path, "gpt2")
    open_pair(teacher, student, folder=tmp_path / "c")
    (home,) = (tmp_path / "c").glob("pair-*[!k]")
    file = home / ("pair.json" if damage == "meta" else "answers.firsts.npy")
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "changed":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2])
    reports: list[str] = []
    again = open_pair(teacher, student, folder=tmp_path / "c", progress=lambda *_: reports.append("made"))
    assert reports
    same(again, compile_pair(teacher, student))
    reports.clear()
    open_pair(teacher, student, folder=tmp_path / "c", progress=lambda *_: reports.append("made"))
    assert not reports
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [home.name, f"{home.name}.lock"]


def test_a_damaged_state_is_made_again(tmp_path: Path) -> None:
    teacher, student = two(tmp_path, "gpt2")
    pair = open_pair(teacher, student, folder=tmp_path / "c")
    want = pair.state(units_of(pair, 1))
    for file in (tmp_path / "c").glob("pair-*/states/*"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    again = open_pair(teacher, student, folder=tmp_path / "c")
    for name in STATE_ARRAYS:
        np.testing.assert_array_equal(getattr(again.state(units_of(again, 1)), name), getattr(want, name))


def test_no_room_for_states_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = two(tmp_path, "gpt2")
    monkeypatch.setattr(cache, "_MOST_STATE_BYTES", 100)
    pair = open_pair(teacher, student, folder=tmp_path / "c")
    same(pair, compile_pair(teacher, student))
    assert not list((tmp_path / "c").glob("pair-*/states/*.json"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    teacher, student = two(tmp_path, "gpt2")
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="TARGETSMITH_CACHE"):
        pair = open_pair(teacher, student, folder=tmp_path / "file" / "c")
    same(pair, compile_pair(teacher, student))


def test_the_key_holds_both_tokenizers_and_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = two(tmp_path, "gpt2")
    keys = {key_of(teacher, student), key_of(student, teacher), key_of(*two(tmp_path / "other", "gpt2", seed=1))}
    monkeypatch.setattr(cache, "_CODE", ("bpe",))
    assert len({*keys, key_of(teacher, student)}) == 4


def _maker(folder: str, ready: Any, out: multiprocessing.Queue) -> None:
    """One of several processes that want the same pair at the same moment."""
    os.environ["OMP_NUM_THREADS"] = "1"
    teacher, student = (load_vocabulary(str(Path(folder) / name)) for name in ("t", "s"))
    ready.wait()
    reports: list[str] = []
    pair = open_pair(teacher, student, folder=Path(folder) / "c", progress=lambda d, t, what: reports.append(what))
    state = pair.state("")
    out.put(("strings" in reports, state.cell_U.tolist()))


def test_of_several_processes_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    teacher, student = two(tmp_path, "gpt2")
    context = multiprocessing.get_context("spawn")
    out, ready = context.Queue(), context.Barrier(3)
    started = [context.Process(target=_maker, args=(str(tmp_path), ready, out)) for _ in range(3)]
    for process in started:
        process.start()
    found = [out.get(timeout=120) for _ in started]
    for process in started:
        process.join()
        assert process.exitcode == 0
    assert [made for made, _ in found].count(True) == 1
    want = compile_pair(teacher, student).state("").cell_U.tolist()
    assert all(cells == want for _, cells in found)
