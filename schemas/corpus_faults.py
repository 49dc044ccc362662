"""Which keys of a [corpus] table, and which [[corpus]] tables, do not go together: one message for each, with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from schemas.runfile_errors import Fault, show

CorpusTable = Any
"""A CorpusConfig of schemas/settings_corpus.py, which imports this file."""

CHAT_KEYS = ("roles", "tools", "role_key", "content_key", "role_names", "system", "thinking")
"""Keys that mean something for conversations only."""
SAME_KEYS = ("specials", "roles", "thinking", "too_long_prompt", "longest_run")
"""Keys that say how documents are scored: in a mixture, all in one way."""
MIXTURE_KEYS = ("source", "weight")
"""Keys that mean something in a mixture only."""


def corpus_faults(config: CorpusTable) -> list[Fault]:
    """What is wrong in a table as a whole."""
    given = config.model_fields_set
    faults: list[Fault] = []
    if config.dataset is not None and config.paths:
        faults.append(
            Fault("paths", "both paths and dataset", "one of the two", "remove paths or remove dataset"),
        )
    elif config.dataset is None and not config.paths:
        faults.append(
            Fault("paths", "neither paths nor dataset", "one of the two", 'add for example paths = ["data/*.jsonl"]')
        )
    if config.dataset is None:
        faults += [
            Fault(key, show(getattr(config, key)), "this key only together with dataset", f"remove {key}")
            for key in ("name", "split", "revision", "streaming")
            if key in given
        ]
    elif config.delimiter is not None and not config.streaming:
        faults.append(
            Fault("delimiter", show(config.delimiter), "this key only for plain text files", "remove delimiter")
        )
    if config.template is not None and "text" in given:
        faults.append(Fault("template", "both text and template", "one of the two", "remove text or template"))
    faults += _chat_faults(config, given) + _prompt_faults(config, given)
    return faults


def _chat_faults(config: CorpusTable, given: set[str]) -> list[Fault]:
    if config.messages is None:
        return [
            Fault(name, show(_shown(getattr(config, name))), "this key only together with messages", f"remove {name}")
            for name in CHAT_KEYS
            if name in given
        ]
    faults = [
        Fault("messages", f"both messages and {name}", "one of the two", f"remove messages or {name}")
        for name in ("text", "template", "delimiter")
        if name in given
    ]
    if config.specials == "boundary":
        wanted = "contents are plain text: the specials of a conversation are those of its chat template"
        faults.append(Fault("specials", '"boundary" with messages', wanted, "remove specials"))
    return faults


def _prompt_faults(config: CorpusTable, given: set[str]) -> list[Fault]:
    """Of prompt, prompt_template and completion, and of input_ids and labels."""
    faults = []
    prompts = [name for name in ("prompt", "prompt_template") if name in given]
    if len(prompts) != int("completion" in given):
        named = [name for name in (*prompts, "completion") if name in given]
        wanted, fix = (
            "completion, and one of prompt and prompt_template",
            'write prompt = "prompt", completion = "completion"',
        )
        faults.append(Fault(named[0], f"{' and '.join(named)} alone", wanted, fix))
    faults += [
        Fault(name, show(getattr(config, name)), "this key only together with input_ids", f"remove {name}")
        for name in ("labels", "input_ids_of")
        if name in given and "input_ids" not in given
    ]
    texts = [name for name in ("input_ids", "completion", "messages", "text", "template", "delimiter") if name in given]
    if len(texts) > 1 and texts[0] in ("input_ids", "completion"):
        got = f"both {texts[0]} and {texts[1]}"
        faults.append(Fault(texts[0], got, "one of the two", f"remove {texts[0]} or {texts[1]}"))
    if config.specials == "boundary" and texts and texts[0] in ("input_ids", "completion"):
        faults.append(Fault("specials", f'"boundary" with {texts[0]}', "texts, for this key", "remove specials"))
    return faults


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def mixture_faults(tables: Sequence[CorpusTable]) -> Iterator[tuple[str, Fault]]:
    """(header of the table, what is wrong) of the tables of a mixture, each of which is right by itself and has its name."""
    first, seen = tables[0], dict[str, int]()
    weighted = [table for table in tables if table.weight is not None]
    for number, table in enumerate(tables, start=1):
        header = f"[[corpus]] number {number}"
        same = seen.setdefault(str(table.source).casefold(), number)
        if same != number:
            got, wanted = (
                f"{show(table.source)}, as in number {same}",
                "names that differ by more than upper and lower case",
            )
            yield header, Fault("source", got, wanted, "rename one of the two")
        if _kind(table) != _kind(first):
            got, wanted = f"{_kind(table)} beside {_kind(first)}", "tables that are scored in one way"
            fix = "give each kind a run and an output of its own; a trainer can read both"
            yield header, Fault(table.key_of_columns or "text", got, wanted, fix)
        for key in SAME_KEYS:
            mine, theirs = getattr(table, key), getattr(first, key)
            if mine != theirs:
                fix = f"write the same {key} in all [[corpus]] tables"
                yield header, Fault(key, show(_shown(mine)), f"{show(_shown(theirs))}, as in the first table", fix)
        if weighted == [table] and len(tables) > 1:
            wanted = "weights in two tables or more: they are relative to each other"
            yield (
                header,
                Fault("weight", f"{table.weight:g} in one table only", wanted, "give the others one, or set limit"),
            )


def _kind(table: CorpusTable) -> str:
    if table.messages is not None:
        return "conversations"
    return "texts of which a part is scored" if table.in_parts else "texts"
