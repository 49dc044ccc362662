"""Which chat template each product has: the one of the run file, or the one that comes with its tokenizer.

run file + the tokenizers' files -> product -> ChatTemplate, tried on a small conversation
"""

from __future__ import annotations

import json
from pathlib import Path

from engine.bpe.roles import roles_of
from engine.bpe.tokenizer_files import tokenizer_folder
from engine.bpe.tokenizer_json import token_name
from engine.chat.template import ChatTemplate
from schemas.errors import RunFileError
from schemas.runfile import RunConfig


def is_template(value: str) -> bool:
    """Whether a chat_template of the run file is the template itself, not a path."""
    return "{{" in value or "{%" in value


def chat_templates(run: RunConfig) -> dict[str, ChatTemplate]:
    """Product ("teacher", "student/<name>") -> its template, checked. Raises RunFileError, TokenizerError.

    The teacher's is needed even where its own view is not stored.
    """
    if run.corpus.messages is None:
        for source in run.tokenizers:
            for key in ("chat_template", "chat_template_kwargs"):
                if getattr(source, key):
                    raise RunFileError(
                        f"{source.where} {key}: got one, but no [corpus] messages; want it only for conversations. Remove "
                        f"{key}, or name the column of the conversations"
                    )
        return {}
    if run.teacher.bos != "auto":
        raise RunFileError(
            "[teacher] bos: got true or false together with [corpus] messages; whether a conversation begins with a BOS "
            "token is said by the chat template. Remove bos"
        )
    out, without = {}, []
    for source in run.tokenizers:
        folder = tokenizer_folder(source.place, source.revision, source.where)
        config, given = _config(folder), template_text(run, source.chat_template, source.where)
        text = _own(folder, config) if given is None else given
        if text is None:
            without.append((source.where, folder))
            continue
        roles = roles_of(folder, source.where, trust_remote_code=source.trust_remote_code)
        out[source.product] = ChatTemplate(
            text, _variables(config, roles), source.where, given=source.chat_template_kwargs
        )
        out[source.product].check()
    if without:
        raise RunFileError(
            "; ".join(f"{where}: no chat template comes with the tokenizer in {folder}" for where, folder in without)
            + " (chat_template.jinja, or chat_template in tokenizer_config.json); [corpus] messages needs one for every "
            'tokenizer. Name one there: chat_template = "chatml.jinja" (examples/chatml.jinja is one for base models)'
        )
    return out


def template_text(run: RunConfig, given: str | None, where: str) -> str | None:
    """The template that a chat_template of the run file stands for. None: none is given. Raises RunFileError."""
    if given is None or is_template(given):
        return given
    # Always a path: a template without a tag would render nothing.
    file = Path(run.base_dir, Path(given).expanduser())
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFileError(
            f"{where} chat_template = {given!r}: {file} cannot be read ({error}). Want the path of a .jinja file (relative "
            "ones start at the folder of the run file), or the template itself between quotes"
        ) from error


def _own(folder: Path, config: dict) -> str | None:
    """The template that comes with a tokenizer, as transformers chooses: chat_template.jinja, else the one in
    tokenizer_config.json, of several the one called "default". None: there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((item["template"] for item in found if item.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _config(folder: Path) -> dict:
    file = folder / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _variables(config: dict, roles: dict[str, str | None]) -> dict[str, str]:
    """What `apply_chat_template` hands a template beside the messages: the strings of the tokenizer's specials."""
    named = {name: token_name(value) for name, value in config.items() if name.endswith("_token")}
    named |= {f"{role}_token": name for role, name in roles.items()}
    return {name: value for name, value in named.items() if isinstance(value, str)}
