"""The architecture as data, held by a walk over the imports: who may import whom, where torch and Ray may be named, what
stands alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Container
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = {"schemas": {"schemas"}, "engine": {"schemas", "engine"}, "jobs": {"schemas", "engine", "jobs"}}

# Inside engine, in the order of the data: a package may import those that stand before it and are named here, and schemas.
MAY_IMPORT: dict[str, set[str]] = {
    "corpus": set(),
    "kernels": set(),
    "bpe": {"kernels"},
    "chat": {"corpus", "bpe"},
    "contexts": {"kernels", "bpe"},
    "alignment": {"bpe", "contexts"},
    "compiled": {"kernels", "bpe", "contexts", "alignment"},
    "dataset": set(),
    "plan": {"corpus", "bpe", "chat", "alignment", "dataset"},
    "teacher": {"kernels", "bpe", "contexts", "alignment", "dataset"},
    "targets": {"corpus", "bpe", "chat", "contexts", "alignment", "compiled", "teacher", "dataset"},  # nothing of beam
    "push": {"kernels", "bpe", "alignment", "compiled", "teacher", "targets"},
    "beam": {"bpe", "contexts", "alignment", "compiled", "teacher", "dataset", "push", "targets"},
    "scoring": {
        "corpus",
        "kernels",
        "bpe",
        "chat",
        "contexts",
        "alignment",
        "compiled",
        "dataset",
        "plan",
        "teacher",
        "beam",
        "push",
        "targets",
    },
    "verify": {"corpus", "dataset", "plan", "teacher", "beam", "scoring"},
    "figures": {"dataset"},
    "card": {"dataset", "figures", "plan"},
    "exchange": {"bpe", "dataset", "plan", "verify", "figures", "card"},
}
ALONE = {  # nothing of the project, not even schemas; these libraries, and relative imports: the folder can be copied
    "engine/reader": {"numpy", "torch", "pyarrow", "fsspec", "filelock", "safetensors"},
    "engine/losses": {"numpy", "torch"},
}
NO_TORCH = (
    "schemas",
    "engine/corpus",
    "engine/kernels",
    "engine/bpe",
    "engine/chat",
    "engine/contexts/tree.py",
    "engine/alignment",
    "engine/compiled",
    "engine/dataset",
    "engine/plan",
    "engine/figures",
    "engine/card",
)
RAY_ONLY_IN = [f"jobs/pool/ray_{name}.py" for name in ("cluster", "metrics", "pool", "ranks", "steps")]
TOP_LEVEL = {
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


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def below(place: str) -> list[Path]:
    """The modules of a folder and all below it, or the one file."""
    path = ROOT / place
    return [path] if path.suffix else sorted(path.rglob("*.py"))


MODULES = [path for top in LAYERS for path in below(top)]
PACKAGES = [path for path in MODULES if path.name == "__init__.py"]


def imports(path: Path) -> set[str]:
    """Every dotted name that a file imports, wherever in the file the import stands; relative ones in full."""
    found: set[str] = set()
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level]] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def module_of(path: Path) -> str:
    return name_of(path.parent if path.name == "__init__.py" else path.with_suffix("")).replace("/", ".")


def longest(name: str, modules: Container[str]) -> str:
    """The module that an imported name lies in: itself, or what stands before its last dot."""
    return name if name in modules else name.rpartition(".")[0]


def test_the_walk_sees_the_project() -> None:
    names = {name_of(path) for path in MODULES}
    assert {"schemas/errors.py", "engine/corpus/scan.py", "jobs/pool/ray_pool.py", "jobs/cli.py"} <= names
    assert "engine.dataset.store.Out" in imports(ROOT / "jobs/look/products.py")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    """schemas <- engine <- jobs, and inside engine the table."""
    top = path.relative_to(ROOT).parts[0]
    assert not (foreign := tops(path) & {*LAYERS, "tests"} - LAYERS[top]), f"imports {sorted(foreign)}: see LAYERS"
    if top == "engine" and path.parent.name in MAY_IMPORT:
        here = path.parent.name
        others = {name.split(".")[1] for name in imports(path) if name.startswith("engine.")} - {here}
        assert others <= MAY_IMPORT[here], f"imports {sorted(others - MAY_IMPORT[here])}: see MAY_IMPORT"
    if path.parent == ROOT / "jobs/pool":
        others = {name for name in imports(path) if name.startswith("jobs.")}
        assert all(name.startswith("jobs.pool.") for name in others), f"the pool knows no command: {sorted(others)}"


def test_the_table_has_every_package_and_no_circle() -> None:
    folders = {path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")}
    assert folders == {*MAY_IMPORT, *(place.partition("/")[2] for place in ALONE)}
    order = list(MAY_IMPORT)
    for package, others in MAY_IMPORT.items():
        late = others - set(order[: order.index(package)])
        assert not late, f"{package} may import {sorted(late)}, which stands behind it"


def test_no_file_imports_itself_by_way_of_others() -> None:
    """No circle of imports anywhere, those inside functions included."""
    modules = {module_of(path): path for path in MODULES}
    arrows = {name: {longest(other, modules) for other in imports(path)} & {*modules} for name, path in modules.items()}
    graph = TopologicalSorter({name: others - {name} for name, others in arrows.items()})
    try:
        graph.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_relative_imports_only_where_a_folder_can_be_copied(path: Path) -> None:
    levels = {n.level for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)}
    allowed = {0, 1} if path.parent in [ROOT / place for place in ALONE] else {0}
    assert levels <= allowed, "relative import; write the package's name"


@pytest.mark.parametrize("place", ALONE)
def test_what_stands_alone(place: str) -> None:
    """Its files need each other and few libraries, so that the folder can be copied into a trainer."""
    found = {name for path in below(place) for name in imports(path)}
    package = place.replace("/", ".")
    assert not {name for name in found if name.split(".")[0] in LAYERS and not f"{name}.".startswith(f"{package}.")}
    libraries = {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"engine"}
    assert libraries == ALONE[place]


def test_only_the_files_named_ray_know_it() -> None:
    assert [name_of(path) for path in MODULES if "ray" in tops(path)] == RAY_ONLY_IN


@pytest.mark.parametrize("path", [path for place in NO_TORCH for path in below(place)], ids=name_of)
def test_no_torch_here(path: Path) -> None:
    assert "torch" not in tops(path)


def test_schemas_need_no_model_library() -> None:
    heavy = {"transformers", "tokenizers", "datasets", "huggingface_hub", "safetensors"}
    guilty = {name_of(path): tops(path) & heavy for path in below("schemas")}
    assert not {name: found for name, found in guilty.items() if found}


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").rglob("test_*.py"))], ids=name_of)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


def test_the_readme_maps_every_package() -> None:
    """Packages, not files: those are listed in each package's own `__init__.py`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = {name for path in PACKAGES if f"`{(name := name_of(path.parent))}`" not in text} - {"engine"}
    assert not missing, f"README.md, map of packages, lacks {sorted(missing)}"
    assert len(text.splitlines()) < 120


@pytest.mark.parametrize("path", PACKAGES, ids=name_of)
def test_each_package_lists_its_files_in_its_docstring(path: Path) -> None:
    """A line each, `  name   what it does`: its modules once, and below `engine` its packages."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    listed = re.findall(r"^(?:  )?(\w+)  +\S", doc, re.MULTILINE)
    modules = [file.stem for file in path.parent.glob("*.py") if file != path]
    packages = [folder.parent.name for folder in path.parent.glob("*/__init__.py")] if not modules else []
    assert sorted(listed) == sorted(modules + packages)


TEXTS = [
    *(
        path for path in (ROOT / "docs").glob("*.md") if path.name not in ("log.md", "CHANGELOG.md")
    ),  # those tell of the past
    ROOT / "README.md",
    ROOT / "Makefile",
    *(path for top in ("engine", "jobs", "schemas", "tests", "benchmarks", "examples") for path in below(top)),
]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_texts_name_files_that_there_are(path: Path) -> None:
    named = re.findall(
        r"(?<![\w/.<])((?:engine|jobs|schemas|tests|benchmarks|examples|docs)/[\w/]*\w\.(?:py|md|toml))",
        path.read_text("utf-8"),
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_pyproject_names_every_package() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(named) == sorted(name_of(path.parent).replace("/", ".") for path in PACKAGES)


def test_every_dependency_is_imported_and_every_import_declared() -> None:
    """`dependencies` for the three packages, `adapters`, `gguf` and `sentencepiece` for what is imported where a run file or a
    tokenizer asks for it; transformers imports what quantised weights ask for; `dev` and `s3` are for the rest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}
    used = {top for path in MODULES for top in tops(path)} - set(sys.stdlib_module_names) - {*LAYERS, "_typeshed"}
    extras = [
        line for extra in ("adapters", "gguf", "sentencepiece") for line in project["optional-dependencies"][extra]
    ]
    asked_for = {re.split(r"[\[<>=]", line)[0] for line in extras} - {"protobuf"}  # transformers imports that one
    modules = {
        "vl-convert-python": "vl_convert",
        "pyyaml": "yaml",
        "tomli-w": "tomli_w",
    }  # named otherwise than their packages
    assert asked_for == {"peft", "gguf", "sentencepiece"}
    assert {modules.get(name, name) for name in declared} | asked_for == used


def test_the_top_level_holds_only_what_is_agreed() -> None:
    """pyproject, README, the three packages, tests and docs, and the optional folders; everything else has a place."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: no list of tracked files")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert {name.split("/")[0] for name in tracked if not name.startswith(".")} <= TOP_LEVEL
