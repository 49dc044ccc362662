"""The folder of machine code: another one whenever a file changes that the code is made of, and one for all copies of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.kernels.jit import kernel_files
from tests.test_layers import MODULES, imports, longest, module_of, name_of

ROOT = Path(__file__).resolve().parents[2]
FILE_OF = {module_of(path): path for path in MODULES}


def files_used(path: Path) -> set[Path]:
    return {FILE_OF[name] for name in {longest(name, FILE_OF) for name in imports(path)} & {*FILE_OF}}


@pytest.mark.parametrize("path", [path for path in MODULES if path.name.endswith("kernels.py")], ids=name_of)
def test_all_that_compiled_functions_can_hold_names_the_folder(path: Path) -> None:
    missing = {path, *files_used(path)} - {*kernel_files()}
    assert not missing, (
        "kernels/jit.py does not see a change there: name it *_arrays.py, or move it into engine/kernels"
    )


def test_some_of_it_lies_in_other_packages() -> None:
    assert "engine/push/push_arrays.py" in {name_of(path) for file in kernel_files() for path in files_used(file)}


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )


def test_a_copy_of_the_project_compiles_nothing(tmp_path: Path) -> None:
    """Ray unpacks a job's working folder at a new place whenever a file of it changes."""
    code = """
from engine.kernels import jit
import engine.kernels.merge_kernels, engine.push.push_kernels
jit.compile_declared()
stats = [function.stats for function, _ in jit.declared()]
print(jit.__file__, sum(sum(each.cache_misses.values()) for each in stats), sum(sum(each.cache_hits.values()) for each in stats))
"""
    assert (done := run(code, ROOT)).returncode == 0, done.stderr
    shutil.copytree(ROOT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    place, misses, hits = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path)
    assert misses == "0" and int(hits) > 20


def test_without_a_folder_functions_are_compiled_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = """
import numba
from engine.kernels import jit
twice = jit.kernel(numba.int64)(lambda x: 2 * x)
print(twice(21))
"""
    done = run(code, ROOT, TARGETSMITH_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["42"]
    assert "cannot be written" in done.stderr and "TARGETSMITH_CACHE" in done.stderr
