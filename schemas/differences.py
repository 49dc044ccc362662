"""What differs between two runs, in lines for a person: settings by their keys, corpus files by their names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from schemas.counts import counted

MAX_DIFFERENCES = 20
_HEX = re.compile(r"[0-9a-f]{32,}")
_ABSENT = object()


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Lines for two plans as JSON values, with the keys `semantic`, `products` and `units`; [] when they are equal."""
    mine, theirs = dict(mine), dict(theirs)
    units = _unit_lines(mine.pop("units"), theirs.pop("units"))
    files = _corpus_files(mine["semantic"]), _corpus_files(theirs["semantic"])
    corpus = [] if files[0] is None or files[1] is None else _corpus_lines(files[0], files[1])
    here, there = dict(_leaves("", mine)), dict(_leaves("", theirs))
    changed = [key for key in here.keys() | there.keys() if here.get(key, _ABSENT) != there.get(key, _ABSENT)]
    if corpus:
        changed = [key for key in changed if not key.startswith("semantic.corpus.files.")]
    changed.sort(key=lambda key: (key.startswith("products."), key))  # the cause before what follows from it
    told = [f"{key}: {_show(here.get(key, _ABSENT))} -> {_show(there.get(key, _ABSENT))}" for key in changed]
    lines = corpus + told + units
    if len(lines) > MAX_DIFFERENCES:
        lines = lines[:MAX_DIFFERENCES] + [f"... and {len(lines) - MAX_DIFFERENCES} more"]
    return lines


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted key, scalar) of every leaf; an empty dict or list is a leaf itself."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = _HEX.sub(
        lambda match: match.group()[:12] + "…",
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
    )
    return text if len(text) <= 100 else f"{text[:60]} … {text[-30:]}"


def _corpus_files(semantic: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The corpus files as the scan has them (engine/corpus/scan.py); None where the plan is of another form."""
    corpus = semantic.get("corpus")
    files = corpus.get("files") if isinstance(corpus, dict) else None
    known = isinstance(files, list) and all(
        isinstance(f, dict) and {"label", "sha256", "n_rows"} <= f.keys() for f in files
    )
    return files if known else None


def _corpus_lines(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    """Which files of the corpus differ, by their names."""
    here, there = ({file["label"]: file for file in files} for files in (mine, theirs))
    lines = []
    gone, come = ([name for name in one if name not in other] for one, other in ((here, there), (there, here)))
    for name in gone:
        same = next((other for other in come if there[other]["sha256"] == here[name]["sha256"]), None)
        if same is not None:
            come.remove(same)
        lines.append(f"corpus file {name}: {'removed' if same is None else f'renamed, it is {same} now'}")
    lines += [f"corpus file {name}: added" for name in come]
    for name in here.keys() & there.keys():
        if here[name] != there[name]:
            what = "sha256" if here[name]["sha256"] != there[name]["sha256"] else "unit_rows"
            records = f"{here[name]['n_rows']:,} -> {counted(there[name]['n_rows'], 'record')}"
            lines.append(
                f"corpus file {name}: {what} {_show(here[name].get(what))} -> {_show(there[name].get(what))}, {records}"
            )
    return sorted(lines)


def _unit_lines(mine: list[dict[str, int]], theirs: list[dict[str, int]]) -> list[str]:
    if mine == theirs:
        return []
    if len(mine) != len(theirs):
        return [f"units: {len(mine)} -> {len(theirs)}"]
    first = next(index for index, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    count = sum(a != b for a, b in zip(mine, theirs, strict=True))
    keys = [key for key in mine[first] if mine[first][key] != theirs[first][key]]
    what = ", ".join(f"{key} {mine[first][key]} -> {theirs[first][key]}" for key in keys)
    return [f"units: {count} of {len(mine)} are cut differently, first unit {first}: {what}"]
