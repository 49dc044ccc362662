"""What a tokenizer's special tokens are for: the files beside tokenizer.json go in, and out come the strings of begin, end,
padding and unknown token, in the order in which transformers looks for them.

1. tokenizer_config.json; 2. special_tokens_map.json, over it, where tokenizer_config.json does not list the added tokens;
3. for begin and end, if neither file names them: the default of the tokenizer's class, which config.json or
tokenizer_class names (GPT-2's folder on the Hub says nothing but this); 4. for the end alone: the id in config.json, then in
generation_config.json, where it is a special token of the tokenizer. The last step is not transformers' own, whose
tokenizer has no end then; generation ends with that id all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.bpe.rank_lists import TEKKEN, TEKKEN_ROLES
from engine.bpe.tokenizer_json import ROLES, read_json, token_name

_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of transformers without defaults for any tokenizer."""


def roles_of(folder: Path, where: str, *, trust_remote_code: bool = False) -> dict[str, str | None]:
    """Role (a word of ROLES) -> the string of its token, or None; steps 1 to 3. Raises TokenizerError for damaged files."""
    said = _said(folder, where)
    names = {role: token_name(said.get(f"{role}_token")) for role in ROLES}
    silent = [role for role in ("bos", "eos") if f"{role}_token" not in said]
    if silent and _has_class(folder, said, where):
        tokenizer = auto_tokenizer(folder, trust_remote_code=trust_remote_code)
        for role in silent:
            names[role] = getattr(tokenizer, f"{role}_token", None)
    return names


def end_by_id(folder: Path, specials: Mapping[int, str], where: str) -> str | None:
    """Step 4: the string of the end token that config.json or generation_config.json gives by its id. specials: id -> string
    of the tokenizer's special tokens. None where there is none."""
    for name in ("config.json", "generation_config.json"):
        value = _optional(folder / name, where).get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int) and token_id in specials:
                return specials[token_id]
    return None


def auto_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer as transformers loads it, in silence; None where it cannot."""
    from transformers import AutoTokenizer

    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception:  # whatever stands in a class of the Hub, or in transformers' own; what is found without it counts
        return None


def _said(folder: Path, where: str) -> dict:
    """What the files say by name; a key that is absent was left to the class."""
    config = _optional(folder / "tokenizer_config.json", where)
    if (folder / TEKKEN).is_file() and not (folder / "tokenizer.json").is_file():
        config = TEKKEN_ROLES | config
    if "added_tokens_decoder" in config:
        return config
    return config | _optional(folder / "special_tokens_map.json", where)


def _has_class(folder: Path, said: dict, where: str) -> bool:
    named = said.get("tokenizer_class")
    return named not in _GENERIC if named else "model_type" in _optional(folder / "config.json", where)


def _optional(file: Path, where: str) -> dict:
    return read_json(file, where) if file.is_file() else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remarks about the folder."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
