"""Tokenizers that are a list of tokens by rank, such as Mistral's tekken.json: read, and written as a tokenizer.json is.

In: the file. Out: what tokenizer.json would say of the same tokenizer, exactly. tiktoken, which reads such files, joins in a
pre-token the two neighbours whose bytes together have the least rank, the leftmost of equal ones, until none is left; a pre-token
that is a token as a whole is that token. A merge list names pairs instead. Here each token is the merge of one pair: the two
parts that are left when its own bytes are joined that way, just before they become the token.

*One pair is enough.* Where a token is made inside a longer pre-token, nothing was joined across its ends before, so inside it the
joins were those of its bytes alone, in their order; the last of them joined that very pair. So no other pair with the same bytes
is ever the least, and leaving all others out changes no step. A token that its own bytes do not make is made by no join: it
stands as a whole pre-token only, which is what `ignore_merges` says.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.bpe.tokenizer_json import byte_alphabet, read_json
from schemas.errors import TokenizerError

TEKKEN = "tekken.json"
TEKKEN_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""Special tokens of all versions of tekken.json, which names no roles."""
_OLD_SPECIALS = ("<unk>", "<s>", "</s>")  # files without a list of specials; the names of the others stand in no file
_REPEATED_COUNT = re.compile(r"\{\d+(,\d*)?\}\+")


def last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that are joined last when the token's bytes are joined by rank; None where they do not become the token."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        known = [ranks.get(a + b) for a, b in zip(parts, parts[1:], strict=False)]
        least = min((rank for rank in known if rank is not None), default=None)
        if least is None:
            return None
        at = known.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def tekken_spec(file: Path, where: str) -> dict[str, Any]:
    """A tekken.json as the object of a tokenizer.json. Raises TokenizerError where the file is not as Mistral writes it."""
    content = read_json(file, where)
    try:
        config = content["config"]
        pattern, specials = str(config["pattern"]), int(config["default_num_special_tokens"])
        count = int(config["default_vocab_size"]) - specials
        ranks = {base64.b64decode(t["token_bytes"], validate=True): int(t["rank"]) for t in content["vocab"][:count]}
        names = {int(t["rank"]): str(t["token_str"]) for t in content.get("special_tokens") or []}
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TokenizerError(
            f"{where}: {file} is not a tekken.json as Mistral writes it ({type(error).__name__}: {error}); want config with "
            "pattern, default_vocab_size, default_num_special_tokens, and vocab with rank and token_bytes. Fetch it again."
        ) from error
    if sorted(ranks.values()) != list(range(count)) or len({*ranks, *(bytes([b]) for b in range(256))}) > count:
        raise TokenizerError(
            f"{where}: {file}: the first {count} tokens of vocab do not have the ranks 0 to {count - 1} once each, all 256 bytes "
            "among them. Fetch it again."
        )
    if _REPEATED_COUNT.search(pattern):
        raise TokenizerError(
            f"{where}: {file}: its pattern has a count with a + behind it, which tiktoken and the tokenizers library read in two "
            f"ways ({pattern}). Report this."
        )
    names = names or dict(enumerate(_OLD_SPECIALS))
    return rank_spec(ranks, pattern, [names.get(i, f"<SPECIAL_{i}>") for i in range(specials)])


def rank_spec(ranks: Mapping[bytes, int], pattern: str, specials: list[str]) -> dict[str, Any]:
    """Tokens by rank, cut by a pattern, behind special tokens with the first ids; `<s>` is put before each text."""
    spelling = {byte: char for char, byte in byte_alphabet().items()}

    def spell(token: bytes) -> str:
        return "".join(spelling[b] for b in token)

    ordered = sorted(ranks, key=ranks.__getitem__)
    pairs = [pair for token in ordered if len(token) > 1 and (pair := last_pair(token, ranks)) is not None]
    vocab = {spell(token): len(specials) + ranks[token] for token in ordered}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    begin = TEKKEN_ROLES["bos_token"]
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    text, before = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": begin, "type_id": 0}}
    framed = {
        "type": "TemplateProcessing",
        "single": [before, text],
        "pair": [before, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {begin: {"id": begin, "ids": [specials.index(begin)], "tokens": [begin]}},
    }
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, "special": True, **flags} for i, name in enumerate(specials)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, as_bytes]},
        "post_processor": framed if begin in specials else None,
        "decoder": {**as_bytes, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": vocab | {name: i for i, name in enumerate(specials)},
            "merges": [[spell(left), spell(right)] for left, right in pairs],
        },
    }
