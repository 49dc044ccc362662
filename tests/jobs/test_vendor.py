"""targetsmith vendor: what is copied is whole and says what it is; nothing of a person's is overwritten."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import engine
from engine.plan.make_plan import ENGINE_VERSION
from jobs.vendor import VENDORED, Package, copy_package, vendor
from schemas.errors import OutputError

PACKAGES: tuple[Package, ...] = ("reader", "losses")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_copy_is_whole_and_has_its_version_and_checksums(package: Package, tmp_path: Path) -> None:
    dest = tmp_path / "src" / f"kd_{package}"
    told = copy_package(package, dest)
    source = {path.name: path.read_bytes() for path in (Path(engine.__file__).parent / package).glob("*.py")}
    copied = contents(dest)
    first, *sums = copied.pop(VENDORED).decode().splitlines()
    assert copied == source and len(source) > 4
    assert first == f"# engine/{package} of targetsmith {ENGINE_VERSION}"
    assert [line.split("  ")[1] for line in sums] == sorted(source)
    assert f"{len(source)} files" in told and f"`import kd_{package}`" in told
    if shutil.which("sha256sum"):
        checked = subprocess.run(["sha256sum", "-c", VENDORED], cwd=dest, capture_output=True, text=True, check=True)
        assert checked.stdout.count(": OK") == len(source)
        (dest / "__init__.py").write_text("")
        assert subprocess.run(["sha256sum", "-c", VENDORED], cwd=dest, capture_output=True).returncode == 1


def test_again_changes_nothing_and_an_interrupted_copy_is_completed(tmp_path: Path) -> None:
    dest = tmp_path / "kd_losses"
    copy_package("losses", dest)
    whole = contents(dest)
    (dest / "__pycache__").mkdir()
    assert "already, unchanged" in copy_package("losses", dest)
    (dest / "__pycache__").rmdir()
    (dest / VENDORED).unlink()
    (dest / "gold.py").unlink()
    assert "files of engine/losses" in copy_package("losses", dest)
    assert contents(dest) == whole


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [
        ("targets.py", "# mine\n", "targets.py: differs from engine/reader of this version"),
        (VENDORED, "# engine/reader of targetsmith 0.0.1\n", "VENDORED: differs"),
        ("train.py", "# mine\n", "train.py: not a file of engine/reader"),
    ],
)
def test_nothing_of_a_person_is_overwritten(file: str, text: str, wanted: str, tmp_path: Path) -> None:
    dest = tmp_path / "kd_reader"
    dest.mkdir()
    (dest / file).write_text(text)
    with pytest.raises(OutputError, match=f"{wanted}.*nothing was written"):
        copy_package("reader", dest)
    assert contents(dest) == {file: text.encode()}


@pytest.mark.parametrize("name", ["kd-reader", "1st", "class"])
def test_a_name_that_python_cannot_import_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"cannot import {name!r}.*kd_reader"):
        copy_package("reader", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for dest in (tmp_path / "file", tmp_path / "file" / "kd_reader"):
        with pytest.raises(OutputError, match="cannot be written or read .*name another folder"):
            copy_package("reader", dest)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vendor("losses", tmp_path / "kd_losses")
    assert capsys.readouterr().out.startswith(f"{tmp_path}/kd_losses: 17 files of engine/losses")
