"""Values of columns, as JSON and Arrow give them: what they are in words, and the problem with one that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a record cannot be used: `reason` is a word of schemas.reasons.REASONS, `detail` is for people (ASCII)."""

    reason: str
    detail: str


class NotText:
    """Stands for an Arrow value that is neither text nor a whole number: only its type is of interest."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name


class MapValue(dict[str, Any]):
    """A map of Arrow, which is no object of named fields."""


def without_nulls(value: Any) -> Any:
    """A nested value without the fields that are null: Arrow gives every object of a column the fields of all of them."""
    if isinstance(value, dict):
        return type(value)((key, without_nulls(item)) for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def decode(raw: bytes) -> str | Problem:
    """`raw` as UTF-8, strictly."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem("invalid_utf8", f"byte 0x{raw[error.start]:02x} at offset {error.start}: {error.reason}")


def described(value: object) -> str:
    """What a JSON or Arrow value is, in words."""
    if isinstance(value, NotText):
        return f"of type {value.type_name}"
    if isinstance(value, MapValue):
        return "of type map"
    names = {
        type(None): "null", bool: "true or false", int: "a number", float: "a number",
        str: "a text", bytes: "a text", list: "a list", dict: "an object",
    }  # fmt: skip
    return names.get(type(value), f"of type {type(value).__name__}")


CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
"""Columns in which data sets have conversations."""

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("instruction", "output"),
    ("input", "output"),
)
"""Pairs of columns in which data sets have prompts and answers."""


def advice(present: Sequence[str]) -> str:
    """What to write in [corpus] where a column is missing and these are there; "" where they say nothing. Begins with a space."""
    if found := next((name for name in CONVERSATIONS if name in present), None):
        return f' For conversations write messages = "{found}" in [corpus].'
    if pair := next((pair for pair in PAIRS if {*pair} <= {*present}), None):
        return (
            f' To score answers behind their prompts write prompt = "{pair[0]}" and completion = "{pair[1]}" in [corpus], to '
            f'score both as one text template = "{{{pair[0]}}}\\n{{{pair[1]}}}".'
        )
    if "input_ids" in present:
        return ' For tokens instead of texts write input_ids = "input_ids" in [corpus].'
    return ""


def listed(names: Sequence[str]) -> str:
    """Names in quotes, ASCII, the first few of them."""
    shown = ", ".join(json.dumps(name) for name in names[:SHOWN_COLUMNS])
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return shown + more if names else "none"
