"""A conversation in any of the forms that data sets have it in -> messages, or the problem why it cannot be used.

Read are: a list of objects with role and content, or with from and value (ShareGPT), or under other keys that [corpus] names; a
struct of lists; pairs of a role and a content; and each of these as a text of JSON. A content may be null beside tool calls, or
a list of parts of text. What else a message has is handed to the chat template (`Message.more`), as transformers does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.corpus.document import CALLS, REASONING, Message
from engine.corpus.thinking import thinking_end
from engine.corpus.values import MapValue, NotText, Problem, described, listed
from schemas.settings_corpus import CorpusConfig

USUAL_KEYS = (("role", "content"), ("from", "value"))
"""Under which keys a message has its role and its content, the first pair that is there."""
SHAREGPT_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "bot": "assistant",
    "function_call": "assistant", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""What the roles of ShareGPT are called in chat templates; others are called the same."""
_WEIGHTS = ("weight", "train")
_MEDIA = ("image", "audio", "video")
_FORM = "wanted a list of messages with role and content (docs/runfile.md, Conversations)"


@dataclass(frozen=True, slots=True)
class MessageForm:
    """How [corpus] says that conversations are written. keys: of role and content, None where it does not say.
    role_names: role in the data -> role in templates, None where it does not say. system: as `[corpus] system`.
    thinking: as `[corpus] thinking`."""

    keys: tuple[str | None, str | None]
    role_names: Mapping[str, str] | None
    system: str
    thinking: str

    @classmethod
    def of(cls, config: CorpusConfig) -> MessageForm:
        """From [corpus] role_key, content_key, role_names, system and thinking."""
        return cls((config.role_key, config.content_key), config.role_names or None, config.system, config.thinking)


class _Unusable(Exception):
    """Carries a Problem out of what is nested."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


def messages_of(value: object, where: str, form: MessageForm) -> tuple[Message, ...] | Problem:
    """The messages of a conversation. value: of a JSON or Arrow column. where: the column, for people."""
    try:
        items = _items(_parsed(plain(value, where), where), where)
        if not items:
            raise _Unusable("not_messages", f"{where} is an empty list, {_FORM}")
        found = [_message(item, f"{where}, message {number}", form) for number, item in enumerate(items, start=1)]
    except _Unusable as error:
        return error.problem
    return tuple(_with_system_in_user(found) if form.system == "user" else found)


def tools_of(value: object, where: str) -> str | Problem:
    """The tools of a conversation as JSON, "" for none. value: null, a list of objects, or a text of JSON."""
    try:
        tools = _parsed(plain(value, where), where)
    except _Unusable as error:
        return error.problem
    if tools in (None, "", [], {}):
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return Problem(
            "not_messages", f"{where} is {described(tools)}, wanted the tools: a list of objects, or their JSON"
        )
    return json.dumps(tools, ensure_ascii=False)


def plain(value: object, where: str) -> Any:
    """A value of a column as JSON has it: texts that Arrow gives as bytes decoded. Raises _Unusable for bad UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            told = f"byte 0x{value[error.start]:02x} at offset {error.start}: {error.reason}"
            raise _Unusable("invalid_utf8", f"{where}: {told}") from error
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            told = f"lone surrogate U+{ord(value[error.start]):04X} at {error.start}"
            raise _Unusable("invalid_utf8", f"{where}: {told}") from error
    if isinstance(value, dict):
        kind: Callable[[Any], dict[str, Any]] = MapValue if isinstance(value, MapValue) else dict
        return kind({str(plain(key, where)): plain(item, where) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return [plain(item, where) for item in value]
    return value


def _parsed(value: Any, where: str) -> Any:
    """JSON written as a text, read. Any other text is left as it is, to be refused as what it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return plain(json.loads(value), where)
    except (ValueError, RecursionError):
        return value


def _items(value: Any, where: str) -> list[Any]:
    """The messages one by one; a struct of lists is turned into objects."""
    if isinstance(value, dict) and not isinstance(value, MapValue) and any(isinstance(v, list) for v in value.values()):
        columns = {key: column for key, column in value.items() if isinstance(column, list)}
        lengths = {len(column) for column in columns.values() if column}
        if len(lengths) != 1:
            raise _Unusable(
                "not_messages", f"{where} is an object of lists of {sorted(lengths)} values, wanted equal lengths"
            )
        return [{key: column[i] for key, column in columns.items() if column} for i in range(lengths.pop())]
    if not isinstance(value, list):
        raise _Unusable("not_messages", f"{where} is {described(value)}, {_FORM}")
    return value


def _message(item: Any, place: str, form: MessageForm) -> Message:
    if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str):
        item = {"role": item[0], "content": item[1]}
    if not isinstance(item, dict) or isinstance(item, MapValue):
        raise _Unusable(
            "not_messages", f"{place} is {described(item)}, {_FORM.replace('a list of messages', 'an object')}"
        )
    role_key, content_key = _keys(item, form)
    role = item.get(role_key)
    if not isinstance(role, str):
        got = "missing" if role_key not in item else described(role)
        raise _Unusable("not_messages", f"{place}: {role_key} is {got}, wanted a text; it has {listed(list(item))}")
    names = form.role_names if form.role_names is not None else SHAREGPT_ROLES if role_key == "from" else {}
    more = {
        key: _call_arguments(value) if key in CALLS else value
        for key, value in item.items()
        if key not in (role_key, content_key, *_WEIGHTS) and value not in (None, "", [], {}) and _is_json(value)
    }
    content, thoughts = _content(item.get(content_key), place, content_key, item, more)
    if thoughts and not any(key in more for key in REASONING):
        more[REASONING[0]] = thoughts
    role = names.get(role, role)
    if form.thinking == "drop" and role == "assistant":
        content = content[thinking_end(content) :]
        more = {key: value for key, value in more.items() if key not in REASONING}
    learned = _learned(item, place)
    return Message(role, content, json.dumps(more, ensure_ascii=False) if more else "", learned)


def _keys(item: dict[str, Any], form: MessageForm) -> tuple[str, str]:
    usual = next((keys for keys in USUAL_KEYS if keys[0] in item), USUAL_KEYS[0])
    return form.keys[0] or usual[0], form.keys[1] or usual[1]


def _content(value: Any, place: str, key: str, item: dict[str, Any], more: dict[str, Any]) -> tuple[str, str]:
    """(the text of a content, the thoughts among its parts)."""
    if isinstance(value, str):
        return value, ""
    if value is None and any(name in more for name in (*CALLS, *REASONING)):
        return "", ""
    if isinstance(value, list) and value and all(isinstance(part, (str, dict)) for part in value):
        parts = [_part(part, f"{place}, part {number}") for number, part in enumerate(value, start=1)]
        return "".join(text for text, _ in parts), "".join(thought for _, thought in parts)
    got = "missing" if key not in item else described(value)
    raise _Unusable("not_messages", f"{place}: {key} is {got}, wanted a text, or parts of text")


def _part(part: Any, place: str) -> tuple[str, str]:
    """(text, thought) of a part of a content."""
    if isinstance(part, str):
        return part, ""
    kind = str(part.get("type") or "")
    if found := next((word for word in _MEDIA if word in kind or part.get(word) or part.get(f"{word}_url")), None):
        raise _Unusable("has_media", f"{place} is of the kind {found}, wanted text")
    if isinstance(part.get("text"), str):
        return part["text"], ""
    if isinstance(part.get("thinking"), str):
        return "", part["thinking"]
    raise _Unusable("not_messages", f"{place} has {listed(list(part))}, type {kind!a}: wanted a text")


def _learned(item: dict[str, Any], place: str) -> bool:
    """Whether the data set wants a message to be learned from: weight (0 or 1) or train (false or true); both may be absent."""
    for key in _WEIGHTS:
        value = item.get(key)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise _Unusable(
                "not_messages", f"{place}: {key} is {value!a}, wanted 0 or 1: a message is scored or it is not"
            )
        if not value:
            return False
    return True


def _call_arguments(calls: Any) -> Any:
    """Tool calls with their arguments as an object where they are a text of JSON: templates write what they are given."""
    if isinstance(calls, list):
        return [_call_arguments(call) for call in calls]
    if not isinstance(calls, dict):
        return calls
    out = {key: _call_arguments(value) if key == "function" else value for key, value in calls.items()}
    if isinstance(out.get("arguments"), str):
        try:
            read = json.loads(out["arguments"])
        except ValueError:
            return out
        if isinstance(read, dict):
            out["arguments"] = read
    return out


def _is_json(value: Any) -> bool:
    """Whether a value can be handed to a template on any machine: no dates, no types of Arrow's own."""
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    return not isinstance(value, NotText) and isinstance(value, (str, bool, int, float, type(None)))


def _with_system_in_user(messages: Sequence[Message]) -> list[Message]:
    """The system message, where one begins the conversation, before the first user's content, with a blank line between."""
    first, *rest = messages
    at = next((i for i, message in enumerate(rest) if message.role == "user"), None)
    if first.role != "system" or at is None:
        return list(messages)
    rest[at] = rest[at]._replace(content=f"{first.content}\n\n{rest[at].content}")
    return rest
