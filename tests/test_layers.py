"""The architecture, held by a walk over the imports: schemas <- engine <- jobs, Ray in two files, the reader alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "engine", "jobs")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALLOWED = {"schemas": {"schemas"}, "engine": {"schemas", "engine"}, "jobs": {"schemas", "engine", "jobs"}}
READER = ("stream", "shardfiles", "rowgroups", "collate", "loader")
READER_LIBRARIES = {"pyarrow", "numpy", "torch", "fsspec"}


def imports(path: Path) -> set[str]:
    """Every dotted name that a file imports, wherever in the file the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: relative import; write the package's name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_walk_sees_the_project() -> None:
    names = {name_of(path) for path in MODULES}
    assert {"schemas/errors.py", "engine/corpus/scan.py", "jobs/pool/ray_pool.py", "jobs/cli.py"} <= names
    assert "engine" in tops(ROOT / "jobs/score.py")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    foreign = tops(path) & set(PACKAGES) - ALLOWED[path.relative_to(ROOT).parts[0]]
    assert not foreign, f"{name_of(path)} imports {sorted(foreign)}: schemas <- engine <- jobs"
    assert "tests" not in tops(path)


def test_only_two_files_know_ray() -> None:
    assert [name_of(path) for path in MODULES if "ray" in tops(path)] == [
        "jobs/pool/ray_cluster.py",
        "jobs/pool/ray_pool.py",
    ]


def test_schemas_need_neither_torch_nor_transformers() -> None:
    heavy = {"torch", "transformers", "tokenizers", "datasets"}
    guilty = {name_of(path): tops(path) & heavy for path in MODULES if path.parent.name == "schemas"}
    assert not {name: found for name, found in guilty.items() if found}


def test_the_reader_stands_alone() -> None:
    """Its files need each other and four libraries, so that they can be copied into a trainer."""
    found = {name for file in READER for name in imports(ROOT / "engine" / f"{file}.py")}
    ours = {name.split(".")[1] for name in found if name.partition(".")[0] == "engine"}
    assert ours <= set(READER)
    outside = {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"engine"}
    assert outside == READER_LIBRARIES


def test_losses_need_torch_and_numpy_only() -> None:
    found = {top for path in (ROOT / "engine/losses").glob("*.py") for top in tops(path)}
    assert found - set(sys.stdlib_module_names) == {"torch", "numpy", "engine"}


def test_the_readme_lists_every_file() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The files")[2]
    listed, folder = set(), ""
    for line in tree.splitlines():
        folder = line.partition(" ")[0] if re.match(r"[a-z/]+/ ", line) else folder
        listed |= {folder + name for name in re.findall(r"\w+\.py", line.partition("  ")[2])}
    missing = {name_of(path) for path in MODULES if path.name != "__init__.py"} - listed
    assert not missing, f"README.md, tree of files, lacks {sorted(missing)}"


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").glob("test_*.py"))], ids=name_of)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


def test_the_top_level_holds_only_what_is_agreed() -> None:
    """pyproject, README, the three packages, tests and docs, and the optional folders; everything else has a place."""
    agreed = {
        "pyproject.toml",
        "README.md",
        "Makefile",
        "engine",
        "jobs",
        "schemas",
        "tests",
        "docs",
        "benchmarks",
        "examples",
    }
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: no list of tracked files")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert {name.split("/")[0] for name in tracked if not name.startswith(".")} <= agreed
