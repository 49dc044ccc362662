"""Sums by tensor operations, as teachers on a GPU have them, against those of compiled functions: equal rows; here on the CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine.push.compiled_push as compiled_push
import engine.push.device_lists as device_lists
import engine.push.sums_on_device as sums_on_device
from engine.push.compiled_push import CompiledPush
from engine.push.sums_on_device import SumsOnDevice, largest_below
from tests.push.test_compiled_rows import TEXTS, flat, scorer
from tests.push.test_compiled_truth import Compiled
from tests.scoring.test_scorer import documents
from tests.support.pairs import STUDENT, cases, random_pair, stored
from tests.support.vocabularies import EFFORT


@pytest.mark.parametrize("seed", range(1 * EFFORT))
def test_rows_are_those_of_compiled_functions(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random toy pairs; blocks, lists of heavy tokens and lists on the device that are too small for what they are to hold."""
    monkeypatch.setattr(sums_on_device, "BLOCK", 3)
    monkeypatch.setattr(device_lists, "MOST_COLUMNS", 40)
    monkeypatch.setattr(compiled_push, "MOST_HEAVY", (2048, 3)[seed % 2])
    rng, made, rows_seen = random.Random(f"sums {seed}"), None, 0
    for case in cases(rng, tmp_path, 50, random_pair):
        if made is None or made[0].pair is not case.pair:
            least = rng.choice((0.0, 1e-4, 0.1))
            made = Compiled(case.pair, least=least), Compiled(case.pair, least=least)
            made[1].push.on_device = True
        made[0].view(case.doc, case.text)
        host, device = (case.pair.emit([case.doc], case.table, emitter=m.emitter)[STUDENT] for m in made)
        assert made[1].push._sums is None or isinstance(made[1].push._sums, SumsOnDevice)
        np.testing.assert_array_equal(device.scored, host.scored, err_msg=str(case))
        np.testing.assert_array_equal(device.flags, host.flags, err_msg=str(case))
        for name in ("err", "open_mass", "stored_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
            x, y = getattr(device, name), getattr(host, name)
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-12, err_msg=f"{case} {name}")
        np.testing.assert_allclose(np.exp(device.gold_logp), np.exp(host.gold_logp), rtol=0, atol=1e-12)
        size = case.pair.student.size
        for k in np.flatnonzero(host.scored).tolist():
            np.testing.assert_allclose(stored(device, k, size), stored(host, k, size), rtol=0, atol=1e-12)
        rows_seen += int(host.scored.sum())
    assert rows_seen > 60


@pytest.mark.parametrize("least", [0.0, 1e-4, 0.1, 0.3])
def test_tokens_are_heavy_as_on_the_host_whatever_the_type_of_the_rows(least: float) -> None:
    near = np.float32(least)
    row = np.array([np.nextafter(near, np.float32(-1)), near, np.nextafter(near, np.float32(1))], np.float32)
    on_host = row.astype(np.float64) > least
    on_device = torch.from_numpy(row) > largest_below(least, torch.float32)
    assert on_device.tolist() == on_host.tolist()
    assert largest_below(least, torch.float64) == least


@pytest.mark.parametrize(
    "targets",
    [{}, pytest.param({"eps": 1e-3}, marks=pytest.mark.thorough), {"codec": "sample", "draws": 20, "seed": 3}],
)
def test_units_are_those_of_compiled_functions(monkeypatch: pytest.MonkeyPatch, targets: dict[str, Any]) -> None:
    """A teacher, rows in float32, several chunks. Draws are equal, because whole distributions are."""
    made = scorer(monkeypatch, compiled=True, **targets)
    host = made.score_unit(documents(TEXTS)).products
    for push in made.stages.emitter.compiled.values():
        push.on_device, push._sums = True, None
    device = made.score_unit(documents(TEXTS)).products
    for product, push in made.stages.emitter.compiled.items():
        assert isinstance(push, CompiledPush) and isinstance(push._sums, SumsOnDevice)
        a, b = device[product], host[product]
        use = flat(a, "scored")
        assert np.array_equal(use, flat(b, "scored")) and use.sum() > 100
        for name in ("err", "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
            assert np.abs(flat(a, name) - flat(b, name))[use].max() < 1e-6, name
        ids = "sample_ids" if "codec" in targets else "topk_ids"
        assert (flat(a, ids) == flat(b, ids)).mean() > 0.999  # equal masses may come in another order
        assert np.abs(np.exp(flat(a, "gold_logp")) - np.exp(flat(b, "gold_logp")))[use].max() < 1e-6
