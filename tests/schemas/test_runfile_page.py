"""docs/runfile.md has every key of the run file, as the code has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.runfile import RunConfig
from schemas.runfile_errors import wanted
from schemas.settings import QuarantineConfig, RayConfig, StudentConfig, TeacherConfig
from schemas.settings_card import CardConfig
from schemas.settings_corpus import CorpusConfig
from schemas.settings_targets import TargetsConfig
from tests.schemas.test_runfile import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "runfile.md"
TABLES: dict[str, type[BaseModel]] = {
    "top of the file": RunConfig,
    "[teacher]": TeacherConfig,
    "[corpus]": CorpusConfig,
    "[[student]]": StudentConfig,
    "[targets]": TargetsConfig,
    "[ray]": RayConfig,
    "[quarantine]": QuarantineConfig,
    "[card]": CardConfig,
}
ALL_FIELDS = [
    pytest.param(name, key, field, id=f"{name} {key}")
    for name, table in TABLES.items()
    for key, field in table.model_fields.items()
]


@pytest.mark.parametrize(("name", "key", "field"), ALL_FIELDS)
def test_every_field_is_marked_and_described(name: str, key: str, field: FieldInfo) -> None:
    extra = field.json_schema_extra
    assert isinstance(extra, dict) and isinstance(extra["semantic"], bool)
    assert field.description and field.description.endswith(".")


def page_row(key: str, field: FieldInfo) -> str:
    """The line of docs/runfile.md for a plain key."""
    if field.is_required():
        default = "required"
    elif field.default is None:
        default = "not given"
    elif isinstance(field.default, BaseModel):
        default = "as below"
    else:
        default = f"`{json.dumps(field.default)}`"
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    results = "yes" if extra["semantic"] else "no"
    return f"| `{key}` | {wanted(field)} | {default} | {results} | {field.description} |"


@pytest.mark.parametrize(("name", "key", "field"), ALL_FIELDS)
def test_the_page_has_every_field_in_its_section(name: str, key: str, field: FieldInfo) -> None:
    sections = dict(part.split("\n", 1) for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:])
    section = next(body for title, body in sections.items() if title.replace("`", "").lower() == name)
    assert page_row(key, field) in section.splitlines(), f"put into docs/runfile.md, {name}:\n{page_row(key, field)}"


def test_the_example_of_the_page_loads(tmp_path: Path) -> None:
    example = PAGE.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    assert load(tmp_path, example).student[0].name == "small"
