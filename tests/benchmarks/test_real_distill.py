"""The pieces of benchmarks/real_distill.py: wrong targets and their error against slow twins, rates, the table."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks.distill_methods import Context, make_context
from benchmarks.real_distill import FIRST_RATE, RATES, Experiment, OutOfTime, Table, report
from benchmarks.real_distill_data import LANGUAGES, Splits, udhr_splits
from benchmarks.real_distill_methods import (
    WRONG,
    Rows,
    drawn,
    error_against,
    renormalised,
    shuffled,
    stored,
    unconditioned,
)
from benchmarks.real_distill_train import Place
from engine.bpe.vocabulary import load_vocabulary
from engine.reader.targets import Targets
from tests.support.runs import ASSETS, score_here, write_run
from tests.support.vocabularies import needs_shared

Scored = tuple[dict[str, Any], Context]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """One batch of all texts, with the teacher's rows beside the student's."""
    place = tmp_path_factory.mktemp("real_distill")
    out = score_here(write_run(place, students={"small": ASSETS / "student_bl"}, targets="top_k = 16"))
    targets = Targets(out, "small", beside=("teacher",))
    return next(iter(targets.batches(64))), make_context(out, ASSETS / "teacher", ASSETS / "student_bl", targets, None)


def as_dicts(rows: Rows) -> list[dict[int, float]]:
    """Token -> probability of each row; no token stands twice. The tail has key -1."""
    found = []
    for ids, logps, tail in zip(rows.ids_RK.tolist(), rows.logp_RK.tolist(), rows.tail_logp_R.tolist(), strict=True):
        kept = [(i, math.exp(logp)) for i, logp in zip(ids, logps, strict=True) if logp > -math.inf]
        assert len(dict(kept)) == len(kept)
        found.append(dict(kept) | {-1: math.exp(tail)})
    return found


@pytest.mark.parametrize("name", WRONG)
def test_wrong_targets_are_distributions(name: str, scored: Scored) -> None:
    for row in as_dicts(WRONG[name](*scored)):
        assert sum(row.values()) == pytest.approx(1, abs=2e-3)


def test_draws_as_shares(tmp_path: Path) -> None:
    targets_keys = 'codec = "sample"\ndraws = 20\nteacher = false'
    out = score_here(write_run(tmp_path, students={"small": ASSETS / "student_bl"}, targets=targets_keys))
    targets = Targets(out, "small")
    batch = next(iter(targets.batches(64)))
    rows = as_dicts(drawn(batch, make_context(out, ASSETS / "teacher", ASSETS / "student_bl", targets, None)))
    counts_RU, ids_RU = batch["counts"][batch["mask"]].tolist(), batch["ids"][batch["mask"]].tolist()
    assert len(rows) == len(counts_RU) > 20
    for row, counts, ids in zip(rows, counts_RU, ids_RU, strict=True):
        assert row == pytest.approx({i: n / 20 for i, n in zip(ids, counts, strict=True) if n} | {-1: 0.0})
        assert sum(row.values()) == pytest.approx(1)


def test_renormalised_and_shuffled_rows(scored: Scored) -> None:
    right, without_tail, mixed = (as_dicts(of(*scored)) for of in (stored, renormalised, shuffled))
    moved = 0
    for row, whole, other in zip(right, without_tail, mixed, strict=True):
        inside = sum(p for i, p in row.items() if i >= 0)
        assert whole == pytest.approx({i: p / inside if i >= 0 else 0.0 for i, p in row.items()}, abs=1e-6)
        assert other.keys() == row.keys() and sorted(other.values()) == sorted(row.values())
        assert next(iter(other.items())) == next(iter(row.items()))
        moved += other != row
    assert moved > len(right) / 2


@pytest.mark.parametrize("name", ["first_token", "unconditioned"])
def test_first_tokens_by_string_row_by_row(name: str, scored: Scored) -> None:
    """Slow twin: each stored teacher token is written out and cut by the student's tokenizer."""
    batch, context = scored
    tokenizer, teacher = AutoTokenizer.from_pretrained(ASSETS / "student_bl"), load_vocabulary(str(ASSETS / "teacher"))
    wanted, marked = [], []
    for b, n in enumerate(batch["lengths"].tolist()):
        ends = [0, *batch["teacher"]["byte_end"][b][batch["teacher"]["mask"][b]].tolist()]
        for s in range(n):
            begin = 0 if s == 0 else int(batch["byte_end"][b, s - 1])
            at = max(t for t, end in enumerate(ends[:-1]) if end <= begin)
            take = name == "unconditioned" or ends[at] == begin
            marked.append(take)
            if not take:
                continue
            row: dict[int, float] = {}
            for i, logp in zip(*(batch["teacher"][key][b, at].tolist() for key in ("ids", "logps")), strict=True):
                if logp == -math.inf:
                    continue
                if i == teacher.eos_id:
                    first = context.student.eos_id
                else:
                    try:
                        piece = (teacher.token_bytes[i] or b"").decode()
                    except UnicodeDecodeError:
                        continue
                    first = (tokenizer(piece, add_special_tokens=False).input_ids or [None])[0]
                if first is not None:
                    row[first] = row.get(first, 0.0) + math.exp(logp)
            wanted.append({i: p / sum(row.values()) for i, p in row.items()} | {-1: 0.0})
    rows = WRONG[name](batch, context)
    assert rows.mask_BL[batch["mask"]].tolist() == marked
    found = as_dicts(rows)
    assert len(found) == len(wanted) > 20
    for mine, slow in zip(found, wanted, strict=True):
        assert mine == pytest.approx(slow, abs=1e-5)
    if name == "first_token":
        assert 0 < sum(marked) < len(marked)


def test_errors_of_targets_are_total_variations(scored: Scored) -> None:
    batch, context = scored
    assert error_against(batch, batch, stored, context).abs().max() < 1e-6
    right = as_dicts(stored(batch, context))
    for of in (shuffled, renormalised):
        wrong = as_dicts(of(batch, context))
        slow = [sum(abs(p - q[i]) for i, p in r.items()) / 2 for r, q in zip(right, wrong, strict=True)]
        assert error_against(batch, batch, of, context).tolist() == pytest.approx(slow, abs=2e-3)
    error_R = error_against(batch, batch, unconditioned, context)
    assert len(error_R) == len(right) and bool((error_R >= 0).all()) and bool((error_R <= 1).all())
    assert error_R.mean() > 0.01


def experiment(table: Path, valid: dict[str, dict[float, float]]) -> Experiment:
    """With these bits per byte of trainings that were run; any other raises, for time is up."""
    place = Place(Path("nowhere"), "gsm8k", "smollm2", Path("nowhere"), Path("nowhere"), Splits([], [], [], (), []), 1)
    found = Experiment(place, Table(table), time.time() - 1, "weights")
    for name, by_rate in valid.items():
        for rate, bits in by_rate.items():
            found.table.add(found.key(name, 0, rate) | {"valid_bits_per_byte": bits})
    return found


def test_a_rate_is_chosen_that_is_better_than_both_neighbours(tmp_path: Path) -> None:
    first = RATES.index(FIRST_RATE["smollm2"])
    low, mid, high, top = RATES[first - 1 :][:4]
    cases = {
        "ce": ({mid: 0.7, high: 0.8, low: 0.9}, mid),
        "alm": ({mid: 0.7, high: 0.6, top: 0.65}, high),
        "forward_kl": ({mid: 0.7, high: 0.8, low: 0.6, RATES[first - 2]: 0.61}, low),
    }
    done = experiment(tmp_path / "runs.parquet", {name: bits for name, (bits, _) in cases.items()})
    for name, (_, best) in cases.items():
        assert done.best_rate(name) == best
    assert done.best_rate("budget2") == low  # the targets are all that differs from forward_kl
    with pytest.raises(OutOfTime):
        done.best_rate("gold")
    other = replace(done, weights="of another teacher")  # takes over what was found with both neighbours
    assert other.best_rate("forward_kl") == low
    done.table.add(done.key("gold", 0, high) | {"valid_bits_per_byte": 0.6})
    other.table.rows = done.table.rows
    with pytest.raises(OutOfTime):
        other.best_rate("gold")
    for rate, bits in ((high, 0.6), (top, 0.7), (mid, 0.65)):  # its own search begins where that one's ended
        other.table.add(other.key("gold", 0, rate) | {"valid_bits_per_byte": bits})
    assert other.best_rate("gold") == high


def test_the_table_is_kept_and_a_row_grows(tmp_path: Path) -> None:
    path = tmp_path / "results" / "runs.parquet"
    done = experiment(path, {"ce": {1e-4: 0.7}})
    figures = {"bits_per_byte": 0.6, "kl_nats": 0.5, "solved": 0.01, "step_s": 2.0, "bytes": 0.0}
    done.table.add(done.key("ce", 0, 1e-4) | figures)
    done.table.add(done.key("alm", 0, 1e-4) | figures | {"bits_per_byte": 0.59})
    done.table.add(done.key("alm", -1, 0.0) | {"target_tv": 0.0123})
    again = Table(path)
    assert again.find(**done.key("ce", 0, 1e-4)) == pytest.approx(
        done.key("ce", 0, 1e-4) | figures | {"valid_bits_per_byte": 0.7, "target_tv": None}
    )
    lines = report(again.rows).splitlines()
    assert len(lines) == 4 and "| 0.6000 |" in lines[2] and "| 0.0100 |" in lines[3] and "| 0.0123 |" in lines[3]
    assert json.loads(json.dumps(again.rows)) == again.rows


@needs_shared
def test_no_article_is_in_two_splits_in_any_language() -> None:
    splits = udhr_splits(48, 24, 48)
    numbers = [
        [int(re.findall(r"\d+", example.completion)[0]) for example in part]
        for part in (splits.train, splits.held, splits.valid)
    ]
    assert [len(part) for part in numbers] == [48, 48, 24]
    for part in numbers:
        assert part == sorted(part) and all(part.count(number) == len(LANGUAGES) for number in part)
    assert max(numbers[0]) < min(numbers[1]) and max(numbers[1]) < min(numbers[2])
    with pytest.raises(SystemExit, match="multiples of 6"):
        udhr_splits(40, 24, 48)
