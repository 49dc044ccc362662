"""Stage 1: a Hugging Face fast BPE tokenizer seen as bytes.

Everything later works on bytes, never on token strings: `Ġthe`, `▁the` and ` the` are the five bytes b" the".
Two families exist, and both are read from `tokenizer.json`, the one file that defines the tokenizer:

* byte-level BPE (GPT-2, Llama-3, Qwen ...): token strings are spelt in an alphabet of 256 printable characters;
* SentencePiece-style BPE (Llama-2, Mistral v0.3, Gemma ...): token strings are text with U+2581 for the space, single
  bytes `<0xNN>` where a character has no token, and often one space put before the text.

Names: V = number of ids; `token_bytes[v]` = bytes of token v, None for specials and for ids without a token.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from schemas.errors import BadDocument, TokenizerError

SPACE_MARK = "▁"  # SentencePiece writes the space as U+2581
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ROLES = ("bos", "eos", "pad", "unk")
_SECTIONS = ("model", "added_tokens", "normalizer", "pre_tokenizer")
_LOSSLESS_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Metaspace", "Sequence"}


def byte_alphabet() -> dict[str, int]:
    """The byte-level alphabet: character -> byte. Computed by the rule of GPT-2, checked against the tokenizers library.

    Printable Latin-1 characters stand for themselves; the other bytes take the code points from 256 on, in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(printable)]
    alphabet = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    if set(alphabet) != set(pre_tokenizers.ByteLevel.alphabet()):
        raise TokenizerError(
            "the byte-level alphabet of this `tokenizers` version differs from GPT-2's rule; report this"
        )
    return alphabet


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """One tokenizer as bytes. Immutable; `tokenizer` is the Rust object, used for encoding only.

    `kind`: "bytelevel" or "sentencepiece". `prefix_bytes`: what the tokenizer puts before a text (b"" or b" ").
    `merges`: (left id, right id, merged id) in rank order. `added_text`: added tokens that are ordinary text.
    `bos_ids`: what the tokenizer's own template puts before a text (usually one id or none).
    """

    name: str
    kind: str
    size: int
    token_bytes: list[bytes | None]
    merges: list[tuple[int, int, int]]
    specials: dict[int, str]
    eos_id: int | None
    bos_id: int | None
    unk_id: int | None
    bos_ids: tuple[int, ...]
    added_text: dict[str, int]
    byte_fallback: bool
    ignore_merges: bool
    nfc: bool
    prefix_bytes: bytes
    pre_tokenizer: dict[str, Any] | None
    content_hash: str
    tokenizer: Tokenizer = field(repr=False)

    @cached_property
    def id_of_bytes(self) -> dict[bytes, int]:
        """Bytes -> id of the ordinary token with these bytes; a byte-fallback token only where no other has them."""
        table: dict[bytes, int] = {}
        for token_id in self.fallback_ids:
            table[self.token_bytes[token_id] or b""] = token_id
        fallback = set(self.fallback_ids)
        for token_id, piece in enumerate(self.token_bytes):
            if piece is not None and token_id not in fallback and token_id not in self.added_only:
                table[piece] = token_id
        return table

    @cached_property
    def added_only(self) -> frozenset[int]:
        """Ids of added tokens that are text but no tokens of the BPE model: matched whole, before pre-tokenization."""
        return frozenset(i for text, i in self.added_text.items() if self.tokenizer.model.token_to_id(text) is None)

    @cached_property
    def fallback_ids(self) -> list[int]:
        """Ids of the `<0xNN>` tokens, by byte (empty for byte-level vocabularies)."""
        if not self.byte_fallback:
            return []
        return [i for i in (self.tokenizer.token_to_id(f"<0x{b:02X}>") for b in range(256)) if i is not None]

    def spell(self, piece: bytes) -> str:
        """Bytes -> the string that the BPE model reads. SentencePiece needs valid UTF-8 (UnicodeDecodeError otherwise)."""
        if self.kind == "bytelevel":
            return piece.decode("latin-1").translate(_SPELL)
        return piece.decode("utf-8").replace(" ", SPACE_MARK)

    @cached_property
    def _merges_only(self) -> Any:
        """The BPE model without `ignore_merges`: what a pre-token's part does when the pre-token goes on."""
        if not self.ignore_merges:
            return self.tokenizer.model
        spec = json.loads(self.tokenizer.to_str())
        spec["model"]["ignore_merges"] = False
        return Tokenizer.from_str(json.dumps(spec)).model

    def bpe(self, piece: bytes, *, whole: bool = True) -> list[int]:
        """Token ids of one pre-token, by the tokenizer's own merges; no normaliser, no pre-tokenizer, no prefix.

        `whole`: the bytes are a whole pre-token, so that `ignore_merges` applies (a vocabulary entry wins over merges).
        SentencePiece: bytes that are not valid UTF-8 at the end become byte tokens (what the tokenizer does with the
        bytes of a character that it does not know).
        """
        if not piece:
            return []
        model = self.tokenizer.model if whole else self._merges_only
        if self.kind == "bytelevel":
            return [t.id for t in model.tokenize(self.spell(piece))]
        whole_chars = valid_utf8_prefix(piece)
        ids = [t.id for t in model.tokenize(self.spell(piece[:whole_chars]))] if whole_chars else []
        for byte in piece[whole_chars:]:
            if not self.byte_fallback:
                return [*ids, self.unk_id] if self.unk_id is not None else ids
            ids.append(self.fallback_ids[byte])
        return ids

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Text -> (ids [n], byte ends [n] in the UTF-8 of the text), no specials added, special strings as plain text.

        A prefix space ends at byte 0. Raises BadDocument("not_reversible" | "unknown_token") when the tokens'
        bytes are not the text's bytes: a normaliser changed it, or a character has no token.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        raw = text.encode("utf-8")
        pieces = [self.token_bytes[i] for i in ids]
        for index, (token_id, piece) in enumerate(zip(ids, pieces, strict=True)):
            if piece is None:
                what = "unknown_token" if token_id == self.unk_id else "not_reversible"
                raise BadDocument(
                    what, f"tokenizer {self.name}: token {index} of the text is the special {token_id}, not text"
                )
        joined = b"".join(p for p in pieces if p is not None)
        if joined != self.prefix_bytes + raw:
            raise BadDocument("not_reversible", self._where_it_differs(joined, raw))
        ends, end = [], -len(self.prefix_bytes)
        for piece in pieces:
            end += len(piece or b"")
            ends.append(max(end, 0))
        return ids, ends

    def _where_it_differs(self, joined: bytes, raw: bytes) -> str:
        want = self.prefix_bytes + raw
        at = next(
            (i for i, (a, b) in enumerate(zip(joined, want, strict=False)) if a != b), min(len(joined), len(want))
        )
        return (
            f"tokenizer {self.name} changes the text at byte {max(at - len(self.prefix_bytes), 0)}: "
            f"{want[at : at + 12]!r} came back as {joined[at : at + 12]!r} (normaliser or stripping)"
        )


_SPELL = {byte: char for char, byte in byte_alphabet().items()}


def valid_utf8_prefix(data: bytes) -> int:
    """Length of `data` without an incomplete character at its end (the rest is at most 3 bytes).

    Bytes that are broken elsewhere than at the end count as valid up to the first of them.
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def load_vocabulary(
    path_or_id: str, *, revision: str | None = None, trust_remote_code: bool = False, where: str = "tokenizer"
) -> Vocabulary:
    """Read a tokenizer from a folder, a `tokenizer.json`, or a Hub id. Raises TokenizerError, naming what to do."""
    spec, config = _read_files(path_or_id, revision, trust_remote_code, where)
    name = path_or_id
    model = spec["model"]
    _refuse_unless_exact_bpe(spec, f"{where} {name}")
    merges = _merges(model, f"{where} {name}")
    tokenizer = _compile(spec, f"{where} {name}")
    tokenizer.encode_special_tokens = True  # special strings inside documents are plain text (docs/decisions.md)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    kind = "bytelevel" if _has_type(spec["pre_tokenizer"], "ByteLevel") else "sentencepiece"
    added = {a["id"]: a for a in spec["added_tokens"]}
    names = {role: _token_name(config.get(f"{role}_token")) for role in _ROLES}
    specials = {
        i: next((r for r in _ROLES if names[r] == a["content"]), "other") for i, a in added.items() if a["special"]
    }
    for a in added.values():
        if not a["special"] and (a["lstrip"] or a["rstrip"] or a["single_word"]):
            raise TokenizerError(
                f"{where} {name}: added token {a['content']!r} strips its neighbours or wants word limits; the bytes around "
                "it are then not certain. Want plain added tokens; remove the flags or use another tokenizer."
            )
    added_text = {a["content"]: i for i, a in added.items() if not a["special"]}
    size = max([*model["vocab"].values(), *added], default=-1) + 1
    token_bytes = _token_bytes(
        model["vocab"], added, specials, size, kind, bool(model.get("byte_fallback")), f"{where} {name}"
    )
    ids = model["vocab"]
    unk = model.get("unk_token")
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.encode("a", add_special_tokens=True).ids
    bos_ids = tuple(framed[: _find(framed, plain)]) if plain else ()
    by_role = {role: tokenizer.token_to_id(text) if text else None for role, text in names.items()}
    for role in ("eos", "bos"):  # SentencePiece vocabularies may keep </s> out of added_tokens
        token_id = by_role[role]
        if token_id is not None and token_id not in specials:
            specials[token_id] = role
            token_bytes[token_id] = None
    if unk is not None and unk in ids and not added_text.get(unk):
        specials.setdefault(ids[unk], "unk")
        token_bytes[ids[unk]] = None
    return Vocabulary(
        name=name,
        kind=kind,
        size=size,
        token_bytes=token_bytes,
        merges=merges,
        specials=specials,
        eos_id=by_role["eos"],
        bos_id=by_role["bos"],
        unk_id=ids.get(unk) if unk else None,
        bos_ids=bos_ids,
        added_text=added_text,
        byte_fallback=bool(model.get("byte_fallback")),
        ignore_merges=bool(model.get("ignore_merges")),
        nfc=_has_type(spec["normalizer"], "NFC"),
        prefix_bytes=_prefix_bytes(spec),
        pre_tokenizer=spec["pre_tokenizer"],
        content_hash=_content_hash(spec, by_role),
        tokenizer=tokenizer,
    )


def _read_files(path_or_id: str, revision: str | None, trust_remote_code: bool, where: str) -> tuple[dict, dict]:
    """(tokenizer.json, tokenizer_config.json or {}) as objects; slow tokenizers are converted by transformers."""
    path = Path(path_or_id).expanduser()
    folder = path.parent if path.name == "tokenizer.json" else path
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(
                snapshot_download(path_or_id, revision=revision, allow_patterns=["*.json", "*.model", "*.txt"])
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise TokenizerError(
                f"{where}: {path_or_id!r} is neither a folder here nor a model on the Hugging Face Hub that can be reached "
                f"({type(error).__name__}). Want a folder with tokenizer.json, or a Hub id; check the spelling."
            ) from error
    file = folder / "tokenizer.json"
    if file.is_file():
        spec = _read_json(file, where)
    else:
        from transformers import AutoTokenizer

        try:
            slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, use_fast=True)
            spec = json.loads(slow.backend_tokenizer.to_str())
        except (OSError, ValueError, AttributeError, ImportError, KeyError) as error:
            raise TokenizerError(
                f"{where}: {folder} has no tokenizer.json and transformers cannot make a fast tokenizer from it "
                f"({type(error).__name__}: {error}). Want tokenizer.json; save one with `AutoTokenizer...save_pretrained`."
            ) from error
    config_file = folder / "tokenizer_config.json"
    config = _read_json(config_file, where) if config_file.is_file() else {}
    missing = [key for key in _SECTIONS if key not in spec]
    if missing:
        raise TokenizerError(
            f"{where}: {file} lacks {missing[0]!r}; want a tokenizer.json as `save_pretrained` writes it"
        )
    return spec, config


def _read_json(file: Path, where: str) -> dict:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{where}: {file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{where}: {file} holds {type(value).__name__}, want a JSON object; fetch it again")
    return value


def _compile(spec: dict, where: str) -> Tokenizer:
    """The Rust tokenizer of a tokenizer.json. Raises TokenizerError with what the library says about the file."""
    try:
        return Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises the bare class, whatever it is that it cannot read
        raise TokenizerError(
            f"{where}: tokenizer.json is not a tokenizer that the tokenizers library can read ({error}). "
            "Want the file that `save_pretrained` writes; fetch it again, or update `tokenizers`."
        ) from error


def _merges(model: dict, where: str) -> list[tuple[int, int, int]]:
    """(left id, right id, merged id) in rank order."""
    ids, out = model["vocab"], []
    for rank, merge in enumerate(model["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise TokenizerError(f"{where}: merge {rank} ({left!r} {right!r}) names tokens that the vocabulary lacks")
        out.append((ids[left], ids[right], ids[left + right]))
    return out


def _refuse_unless_exact_bpe(spec: dict, where: str) -> None:
    model = spec.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise TokenizerError(
            f"{where}: the model is {model.get('type')!r}, want 'BPE'. WordPiece and Unigram have no exact boundary rule here; "
            "choose a BPE tokenizer (GPT-2, Llama, Mistral, Qwen, Gemma and most others are BPE)."
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(
                f"{where}: BPE option {key} = {model[key]!r} makes tokens ambiguous as bytes; want none"
            )
    for pre in _walk(spec["pre_tokenizer"], "pretokenizers"):
        lossy = pre["type"] == "Split" and pre.get("behavior") == "Removed"
        if pre["type"] not in _LOSSLESS_PRE_TOKENIZERS or lossy or pre.get("add_prefix_space") is True:
            raise TokenizerError(
                f"{where}: pre-tokenizer {pre['type']} is not known to keep every byte (add_prefix_space = "
                f"{pre.get('add_prefix_space')}); want one of {sorted(_LOSSLESS_PRE_TOKENIZERS)} without removal"
            )
    for norm in _walk(spec["normalizer"], "normalizers"):
        fine = norm["type"] in ("NFC", "Sequence") or (norm["type"] == "Prepend" and norm["prepend"] == SPACE_MARK)
        fine |= norm["type"] == "Replace" and norm["pattern"] == {"String": " "} and norm["content"] == SPACE_MARK
        if not fine:
            raise TokenizerError(
                f"{where}: normaliser {norm} changes bytes that cannot be given back; want none, NFC, or the ▁ of SentencePiece"
            )


def _token_bytes(
    vocab: dict[str, int],
    added: dict[int, dict],
    specials: dict[int, str],
    size: int,
    kind: str,
    fallback: bool,
    where: str,
) -> list[bytes | None]:
    alphabet = byte_alphabet()
    out: list[bytes | None] = [None] * size
    for text, token_id in vocab.items():
        if token_id in added:
            continue
        if kind == "bytelevel":
            unknown = [c for c in text if c not in alphabet]
            if unknown:
                raise TokenizerError(
                    f"{where}: token {token_id} {text!r} holds {unknown[0]!r}, which is not in the byte-level alphabet: "
                    "its bytes are not known. Want a byte-level vocabulary, or the token marked as added."
                )
            out[token_id] = bytes(alphabet[c] for c in text)
        elif fallback and (match := _BYTE_TOKEN.fullmatch(text)):
            out[token_id] = bytes([int(match.group(1), 16)])
        else:
            out[token_id] = text.replace(SPACE_MARK, " ").encode("utf-8")
    for token_id, token in added.items():
        if token_id not in specials:
            out[token_id] = (
                token["content"].replace(SPACE_MARK, " " if kind == "sentencepiece" else SPACE_MARK).encode()
            )
    return out


def _prefix_bytes(spec: dict) -> bytes:
    prepends = any(n["type"] == "Prepend" for n in _walk(spec["normalizer"], "normalizers"))
    metaspace = [p for p in _walk(spec["pre_tokenizer"], "pretokenizers") if p["type"] == "Metaspace"]
    return b" " if prepends or any(p.get("prepend_scheme", "always") != "never" for p in metaspace) else b""


def _content_hash(spec: dict, roles: dict[str, int | None]) -> str:
    """sha256 of all that decides how text becomes ids: not the template, truncation or padding."""
    keys = ("model", "added_tokens", "normalizer", "pre_tokenizer")
    body = json.dumps([{k: spec[k] for k in keys}, roles], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()


def _walk(node: dict | None, children: str) -> list[dict]:
    if node is None:
        return []
    return [node, *(x for child in node.get(children, []) for x in _walk(child, children))]


def _has_type(node: dict | None, kind: str) -> bool:
    return any(n["type"] == kind for children in ("pretokenizers", "normalizers") for n in _walk(node, children))


def _token_name(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _find(framed: list[int], plain: list[int]) -> int:
    return next(i for i in range(len(framed)) if framed[i : i + len(plain)] == plain)
