"""A Hugging Face BPE tokenizer seen as bytes: a folder or Hub id goes in, the bytes of every token and an exact encoder come out.

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
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from tokenizers import Tokenizer

from engine.bpe.added_texts import AddedTexts
from engine.bpe.roles import end_by_id, roles_of
from engine.bpe.tokenizer_files import (
    hold_against_sentencepiece,
    read_spec,
    sentencepiece_file,
    tokenizer_folder,
)
from engine.bpe.tokenizer_json import (
    ROLES,
    SPACE_MARK,
    bar_added,
    byte_alphabet,
    bytes_of_tokens,
    compile_tokenizer,
    content_hash_of,
    find_within,
    has_type,
    merges_of,
    prefix_bytes_of,
    refuse_other_ids,
    refuse_unless_exact_bpe,
    texts_of_added,
    without_prefix,
)
from engine.bpe.utf8 import valid_utf8_prefix
from schemas.errors import BadDocument, TokenizerError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """One tokenizer as bytes. Immutable; `tokenizer` is the Rust object, used for encoding only.

    `kind`: "bytelevel" or "sentencepiece". `prefix_bytes`: what the tokenizer puts before a text (b"" or b" ").
    `merges`: (left id, right id, merged id) in rank order. `added_text`: added tokens that are ordinary text, by that text.
    `barred`: strings that no text may hold, because added tokens stand for them whose bytes are not certain.
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
    barred: tuple[str, ...]
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
        """Ids of added tokens that are text but no tokens of the BPE model: matched whole, before pre-tokenization. The model
        may list the same string and yet never write it: in a byte-level vocabulary two literal spaces are no `ĠĠ`."""
        token_to_id = self.tokenizer.model.token_to_id
        return frozenset(i for text, i in self.added_text.items() if token_to_id(self.spell(text.encode())) != i)

    @cached_property
    def byte_tokens(self) -> dict[int, int]:
        """Byte -> id of its `<0xNN>` token (empty for byte-level vocabularies). All bytes that a character without a token of its
        own can hold are there (`bytes_of_tokens`)."""
        if not self.byte_fallback:
            return {}
        ids = ((b, self.tokenizer.token_to_id(f"<0x{b:02X}>")) for b in range(256))
        return {b: i for b, i in ids if i is not None}

    @cached_property
    def fallback_ids(self) -> list[int]:
        """Ids of the `<0xNN>` tokens, by rising byte."""
        return list(self.byte_tokens.values())

    @cached_property
    def bare(self) -> Vocabulary:
        """The same tokenizer as it is inside a text: nothing put before what it reads."""
        if not self.prefix_bytes:
            return self
        spec = json.loads(self.tokenizer.to_str())
        without_prefix(spec)
        tokenizer = compile_tokenizer(spec, self.name)
        tokenizer.encode_special_tokens = True
        known = hashlib.sha256(f"{self.content_hash} without prefix".encode()).hexdigest()
        return replace(
            self, prefix_bytes=b"", pre_tokenizer=spec["pre_tokenizer"], content_hash=known, tokenizer=tokenizer
        )

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
            known = self.byte_tokens.get(byte)
            ids.append(self.id_of_bytes[bytes([byte])] if known is None else known)
        return ids

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Text -> (ids [n], byte ends [n] in the UTF-8 of the text), no specials added, special strings as plain text.

        A prefix space ends at byte 0. Raises BadDocument("not_reversible" | "unknown_token") when the tokens'
        bytes are not the text's bytes: a normaliser changed it, or a character has no token. BadDocument("added_token"): the
        text holds one of `barred`.
        """
        if self.barred and (found := self._barred.matches(text)):
            raise BadDocument(
                "added_token",
                f"tokenizer {self.name}: the text holds {text[slice(*found[0])]!a}, an added token "
                "beside which bytes are not certain, or that the model cannot write",
            )
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        ids = encoding.ids
        raw = text.encode("utf-8")
        pieces = [p for i in ids if (p := self.token_bytes[i]) is not None]
        if len(pieces) < len(ids):
            index = next(k for k, i in enumerate(ids) if self.token_bytes[i] is None)
            what = "unknown_token" if ids[index] == self.unk_id else "not_reversible"
            at = slice(*encoding.offsets[index])
            raise BadDocument(
                what,
                f"tokenizer {self.name}: {text[at]!a} at character {at.start} has no token of its own: token {index} of the text "
                f"is the special {ids[index]}",
            )
        joined = b"".join(pieces)
        if joined != self.prefix_bytes + raw:
            raise BadDocument("not_reversible", self._where_it_differs(joined, raw))
        ends = list(accumulate(map(len, pieces), initial=-len(self.prefix_bytes)))[1:]
        return ids, [max(end, 0) for end in ends] if self.prefix_bytes else ends

    @cached_property
    def _barred(self) -> AddedTexts:
        return AddedTexts(self.barred)

    def within(self, rows: int) -> Vocabulary:
        """The same tokenizer for a teacher whose output has only `rows` ids: it cannot write the added tokens beyond, and texts
        that hold one are refused. Raises TokenizerError where a token of the model itself lies beyond."""
        if self.size <= rows:
            return self
        added = self.tokenizer.get_added_tokens_decoder()
        beyond = [i for i in range(rows, self.size) if self.token_bytes[i] is not None or i in self.specials]
        model = next((i for i in beyond if i not in added or self.tokenizer.model.id_to_token(i) is not None), None)
        if model is not None or self.eos_id in beyond:
            token = (self.eos_id or 0) if model is None else model
            raise TokenizerError(
                f"tokenizer {self.name}: token {token} {self.tokenizer.id_to_token(token)!r} lies beyond the {rows} output rows "
                "of the model; only added tokens may. Check that model and tokenizer belong together."
            )
        return replace(
            self,
            size=rows,
            token_bytes=self.token_bytes[:rows],
            specials={i: role for i, role in self.specials.items() if i < rows},
            bos_id=self.bos_id if self.bos_id is not None and self.bos_id < rows else None,
            added_text={text: i for text, i in self.added_text.items() if i < rows},
            barred=tuple(sorted({*self.barred, *(added[i].content for i in beyond)})),
            content_hash=hashlib.sha256(f"{self.content_hash} within {rows}".encode()).hexdigest(),
        )

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


def load_vocabulary(
    path_or_id: str, *, revision: str | None = None, trust_remote_code: bool = False, where: str = "tokenizer"
) -> Vocabulary:
    """Read a tokenizer from a folder, a `tokenizer.json`, or a Hub id. Raises TokenizerError, naming what to do."""
    folder = tokenizer_folder(path_or_id, revision, where)
    spec, name = read_spec(folder, trust_remote_code, where), path_or_id
    model = spec["model"]
    refuse_unless_exact_bpe(spec, f"{where} {name}")
    merges = merges_of(model, f"{where} {name}")
    barred = bar_added(spec)
    added = {a["id"]: a for a in spec["added_tokens"]}
    tokenizer = compile_tokenizer(spec, f"{where} {name}")
    refuse_other_ids(spec, tokenizer, f"{where} {name}")
    tokenizer.encode_special_tokens = True  # special strings inside documents are plain text (docs/decisions.md)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    kind = "bytelevel" if has_type(spec["pre_tokenizer"], "ByteLevel") else "sentencepiece"
    names = roles_of(folder, where, trust_remote_code=trust_remote_code)
    if names["eos"] is None:
        names["eos"] = end_by_id(folder, {i: a["content"] for i, a in added.items() if a["special"]}, where)
    specials = {
        i: next((r for r in ROLES if names[r] == a["content"]), "other") for i, a in added.items() if a["special"]
    }
    texts = texts_of_added(added.values(), model["vocab"], tokenizer, kind)
    added_text = {text: i for i, text in texts.items()}
    size = max([*model["vocab"].values(), *added], default=-1) + 1
    token_bytes = bytes_of_tokens(
        model["vocab"], texts, specials, size, kind, bool(model.get("byte_fallback")), f"{where} {name}"
    )
    ids = model["vocab"]
    unk = model.get("unk_token")
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.encode("a", add_special_tokens=True).ids
    bos_ids = tuple(framed[: find_within(framed, plain)]) if plain else ()
    by_role = {role: tokenizer.token_to_id(text) if text else None for role, text in names.items()}
    for role in ("eos", "bos"):  # SentencePiece vocabularies may keep </s> out of added_tokens
        token_id = by_role[role]
        if token_id is not None and token_id not in specials:
            specials[token_id] = role
            token_bytes[token_id] = None
    if unk is not None and unk in ids and not added_text.get(unk):
        specials.setdefault(ids[unk], "unk")
        token_bytes[ids[unk]] = None
    made = Vocabulary(
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
        barred=tuple(sorted(set(barred.values()))),
        byte_fallback=bool(model.get("byte_fallback")),
        ignore_merges=bool(model.get("ignore_merges")),
        nfc=has_type(spec["normalizer"], "NFC"),
        prefix_bytes=prefix_bytes_of(spec),
        pre_tokenizer=spec["pre_tokenizer"],
        content_hash=content_hash_of(spec, by_role),
        tokenizer=tokenizer,
    )
    if (model_file := sentencepiece_file(folder)) is not None:
        hold_against_sentencepiece(made.encode, model_file, f"{where} {name}")
    return made
