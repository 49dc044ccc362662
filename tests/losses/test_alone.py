"""The losses as a trainer has them who copied the folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import engine.losses
from engine.losses import align, bytes_head, gold, multilevel
from engine.losses.sparse import forward_kl
from schemas import target
from schemas.products import BYTES_END

FOLDER = Path(engine.losses.__file__).parent


def test_constants_are_those_of_the_schema() -> None:
    assert (align.FLAG_END, align.FLAG_CONTEXT) == (target.FLAG_END, target.FLAG_CONTEXT)
    assert align.ROLE_END == target.ROLES["end"] and target.ROLES["text"] == 0
    assert bytes_head.SYMBOLS == BYTES_END + 1
    assert gold.MANTISSA == multilevel.MANTISSA == 2.0 ** -(target.MANTISSA_BITS + 1)


@pytest.mark.parametrize("name", ["kd_losses", "engine"])
def test_the_folder_works_alone_under_any_name(name: str, tmp_path: Path) -> None:
    """Copied into an empty folder every file can be imported, a loss is the same number, nothing else of ours is loaded."""
    shutil.copytree(FOLDER, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    files = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
    code = f"""
import importlib, sys, torch
modules = [importlib.import_module("{name}." + file) for file in {files}]
assert all(module.__file__.startswith({str(tmp_path)!r}) for module in modules)
tops = {{module.partition(".")[0] for module in sys.modules}}
assert tops & {{"engine", "schemas", "jobs", "kd_losses"}} == {{{name!r}}}
from {name}.sparse import forward_kl
ids, rest = torch.tensor([[0, 5], [3, 1]]), torch.full((2,), -1.5)
print(forward_kl(torch.arange(12.0).view(2, 6), ids, torch.full((2, 2), -1.0), rest).tolist())
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids, rest = torch.tensor([[0, 5], [3, 1]]), torch.full((2,), -1.5)
    wanted = forward_kl(torch.arange(12.0).view(2, 6), ids, torch.full((2, 2), -1.0), rest)
    assert done.stdout.strip() == str(wanted.tolist())
