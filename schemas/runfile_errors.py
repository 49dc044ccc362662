"""Wrong settings in the words of the run file: where, what was found, what was wanted, what to do next.

`explain` turns pydantic's findings into one message that lists every wrong key. What is wanted is derived from the
models' own types and limits (`wanted`), so that messages, docs/runfile.md and checks cannot disagree.
"""

from __future__ import annotations

import difflib
import inspect
import json
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, runtime_checkable

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from schemas.counts import counted

SHOWN_CHARACTERS = 60
NEAR = 0.6  # difflib ratio from which on a key counts as mistyped


@runtime_checkable
class _Low(Protocol):  # how pydantic keeps Field(ge=...)
    ge: Any


@runtime_checkable
class _High(Protocol):  # and Field(le=...)
    le: Any


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong key of a table. `got`, `wanted` and `fix` are phrases without a final stop."""

    key: str
    got: str
    wanted: str
    fix: str


class Faults(ValueError):
    """What validators of the models raise: one or several wrong keys of their table."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(f"{fault.key}: {fault.got}" for fault in faults))
        self.faults = faults


def show(value: object) -> str:
    """`value` as it would stand in TOML, shortened. Tables are only named."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "a list of tables"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def wanted(field: FieldInfo) -> str:
    """What a key holds, in words: 'a whole number, 1 to 1024'. Taken from its type and limits."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "wanted" in extra:
        return str(extra["wanted"])
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, limits: Sequence[object]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(member, limits) for member in arguments if member is not types.NoneType)
    if origin is Annotated:
        member, *its_limits = arguments
        return _kind(member, its_limits)
    if origin is Literal:
        choices = ", ".join(show(choice) for choice in arguments)
        return choices if len(arguments) == 1 else f"one of {choices}"
    if origin is tuple:
        return "a list of texts" if str in arguments else "a list of tables"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "a table"
    limits = [part for limit in limits for part in (limit.metadata if isinstance(limit, FieldInfo) else [limit])]
    low = next((limit.ge for limit in limits if isinstance(limit, _Low)), None)
    high = next((limit.le for limit in limits if isinstance(limit, _High)), None)
    span = "" if low is None else f", {low} or more" if high is None else f", {low} to {high}"
    return {str: "a text", bool: "true or false", int: f"a whole number{span}", float: f"a number{span}"}[annotation]


def explain(error: ValidationError, root: type[BaseModel], source: str) -> str:
    """One message for all findings of `error`, met while the file `source` was read into `root`."""
    return listed(_faults(error, root), source)


def listed(faults: Iterable[tuple[str, Fault]], source: str) -> str:
    """One message for faults of the file `source`, each with the header of its table."""
    blocks: dict[tuple[str, str, str], str] = {}
    for place, fault in faults:
        # Each member of a union reports by itself; they share one place and key, and one block is enough.
        where = f"{place} {fault.key}".strip()
        text = f"  {where}\n    got:    {fault.got}\n    wanted: {fault.wanted}\n    fix:    {fault.fix}"
        blocks.setdefault((place, fault.key, fault.got), text)
    count = f"{counted(len(blocks), 'setting')} {'is' if len(blocks) == 1 else 'are'} wrong"
    return f"{source}: {count}\n" + "\n".join(blocks.values())


def _faults(error: ValidationError, root: type[BaseModel]) -> Iterator[tuple[str, Fault]]:
    found = error.errors(include_url=False)
    unknown = [finding["loc"] for finding in found if finding["type"] == "extra_forbidden"]
    for finding in found:
        if finding["type"] == "too_short" and finding["input"]:
            continue  # only wrong items were left out of the count, and each of them reports by itself
        raised = finding.get("ctx", {}).get("error")
        *table, key = finding["loc"]
        beside = [str(loc[-1]) for loc in unknown if list(loc[:-1]) == table]
        absent = finding["type"] == "missing" or (isinstance(raised, Faults) and finding["input"] == ())
        if absent and difflib.get_close_matches(str(key), beside, n=1, cutoff=NEAR):
            continue  # it is there, misspelt, and told as that
        place, model, rest = _place(root, finding["loc"])
        if isinstance(raised, Faults):
            # The finding of a whole table names the table as if it were a key of the file.
            table_header = _header(model, str(rest[0])) if rest else None
            yield from ((table_header or place, fault) for fault in raised.faults)
        elif finding["type"] == "missing":
            yield place, _missing(place, model, str(rest[0]))
        elif finding["type"] == "extra_forbidden":
            yield place, _unknown(root, model, place, str(rest[0]), finding["input"])
        else:
            yield place, _mistyped(model, rest, finding)


def _place(root: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel], tuple[int | str, ...]]:
    """The table that `loc` lies in, as it is headed in the file; its model; and the rest of `loc`, from its key on.

    A finding about a whole table lies, like a plain key, in the file itself: "", `root`, `loc`.
    """
    section = root.model_fields.get(str(loc[0])) if loc else None
    if section is None:
        return "", root, loc
    if inspect.isclass(section.annotation) and issubclass(section.annotation, BaseModel) and len(loc) > 1:
        return f"[{loc[0]}]", section.annotation, loc[1:]
    item = next(iter(get_args(section.annotation)), None)
    if inspect.isclass(item) and issubclass(item, BaseModel) and len(loc) > 2:
        return f"[[{loc[0]}]] number {int(loc[1]) + 1}", item, loc[2:]
    return "", root, loc


def _header(model: type[BaseModel], key: str) -> str | None:
    """How the table `key` of the root is headed in TOML; None for a plain key."""
    kind = model.model_fields[key].annotation
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return f"[{key}]"
    return f"[[{key}]]" if any(inspect.isclass(a) and issubclass(a, BaseModel) for a in get_args(kind)) else None


def _tables(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for key, field in root.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                yield _header(root, key) or key, kind


def _missing(place: str, model: type[BaseModel], key: str) -> Fault:
    header = _header(model, key)
    if header is not None:
        inner = dict(_tables(model))[header]
        keys = " and ".join(f"{name} = ..." for name, field in inner.model_fields.items() if field.is_required())
        return Fault(
            header,
            "nothing: the table is missing",
            wanted(model.model_fields[key]),
            f"add {header}" + (f" with {keys}" if keys else ", see docs/runfile.md for its keys"),
        )
    spot = f"under {place}" if place else "at the top of the file, before the first table"
    return Fault(key, "nothing: the key is missing", wanted(model.model_fields[key]), f'add {key} = "..." {spot}')


def _unknown(root: type[BaseModel], model: type[BaseModel], place: str, key: str, value: object) -> Fault:
    known = list(model.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=NEAR)
    elsewhere = [header for header, table in _tables(root) if key in table.model_fields and table is not model]
    if key in root.model_fields and model is not root:
        elsewhere.append("the top of the file, before the first table")
    if elsewhere:
        fix = f"move it to {' or '.join(elsewhere)}"
    elif near:
        header = _header(root, near[0]) if model is root else None
        fix = f"did you mean {header or near[0]}?"
    else:
        fix = "remove it, or see docs/runfile.md for what it should be"
    return Fault(key, f"{show(value)}, but this key is not known here", f"one of {', '.join(known)}", fix)


def _mistyped(model: type[BaseModel], rest: tuple[int | str, ...], finding: Any) -> Fault:
    key, value = str(rest[0]), finding["input"]
    field, words, fix = model.model_fields[key], wanted(model.model_fields[key]), ""
    header = _header(model, key)
    if header is not None:
        got = "an empty list" if finding["type"] == "too_short" else show(value)
        return Fault(header, got, words, f"write {header} on a line of its own, and its keys below")
    name = f"{key}, item {int(rest[1]) + 1}," if len(rest) > 1 and isinstance(rest[1], int) else key
    choices = [
        c
        for kind in (field.annotation, *get_args(field.annotation))
        if get_origin(kind) is Literal
        for c in get_args(kind)
    ]
    if value == "":
        words, fix = f"{words}, not empty", f"write it between the quotes, or remove {key}"
    elif isinstance(value, str):
        near = difflib.get_close_matches(value, choices, n=1, cutoff=NEAR)
        if near:
            fix = f"did you mean {key} = {show(near[0])}?"
        elif words.startswith("a list"):
            fix = f"write {key} = [{show(value)}]"
        elif ("number" in words and value.strip().lstrip("+-").replace(".", "", 1).isdigit()) or (
            "true or false" in words and value in ("true", "false")
        ):
            fix = f"remove the quotes: {key} = {value.strip()}"
    elif isinstance(value, int | float) and "text" in words and not isinstance(value, bool):
        fix = f'put it in quotes: "{value}"'
    return Fault(name.rstrip(","), show(value), words, fix or f"give {key} {words}")
