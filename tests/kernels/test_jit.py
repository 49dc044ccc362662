"""The folder of machine code is another one whenever a file changes that the code is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.kernels.jit import kernel_files
from tests.test_layers import MODULES, imports, longest, module_of, name_of

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
