"""The object of a `tokenizer.json`: checked and taken apart into what the package needs. What cannot be seen exactly as bytes is
refused here.

Raises TokenizerError only; every message begins with where (which table of the run file) and the tokenizer's name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from engine.bpe.pattern import escape
from schemas.errors import TokenizerError

SPACE_MARK = "▁"  # SentencePiece writes the space as U+2581
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
ROLES = ("bos", "eos", "pad", "unk")
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LOSSLESS_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "Sequence"}
PUNCTUATION = r"\p{step Punctuation}"
"""The one-character pattern that stands for what the library's Punctuation step takes for punctuation."""


INSTEAD_OF_BPE = (
    "A student with such a tokenizer learns from bytes: leave its [[student]] out, set [targets] bytes = true, which is exact "
    "whatever the student, and train it by a byte head (docs/train.md, students without BPE). A teacher must have a BPE "
    "tokenizer (GPT-2, Llama, Mistral, Qwen, Gemma and most others)."
)

_LOST = {
    "NFKC": "Lost are compatibility characters: `\u00b2` becomes `2`, `\u2026` three full stops, `\ufb01` two letters",
    "NFKD": "Lost are compatibility characters (`\u00b2` becomes `2`), and accents are taken apart",
    "NFD": "Lost is whether an accent was a character of its own",
    "Lowercase": "Lost are capitals",
    "StripAccents": "Lost are accents",
    "Strip": "Lost is white space at the ends of a text",
}
_LOST_ELSE = "Lost is what stood there before"


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


def read_json(file: Path, where: str) -> dict:
    """A file that holds one JSON object. Raises TokenizerError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{where}: {file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{where}: {file} holds {type(value).__name__}, want a JSON object; fetch it again")
    return value


def compile_tokenizer(spec: dict, where: str) -> Tokenizer:
    """The Rust tokenizer of a tokenizer.json. Raises TokenizerError with what the library says about the file."""
    try:
        return Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises the bare class, whatever it is that it cannot read
        raise TokenizerError(
            f"{where}: tokenizer.json is not a tokenizer that the tokenizers library can read ({error}). "
            "Want the file that `save_pretrained` writes; fetch it again, or update `tokenizers`."
        ) from error


def merges_of(model: dict, where: str) -> list[tuple[int, int, int]]:
    """(left id, right id, merged id) in rank order."""
    ids, out = model["vocab"], []
    for rank, merge in enumerate(model["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise TokenizerError(f"{where}: merge {rank} ({left!r} {right!r}) names tokens that the vocabulary lacks")
        out.append((ids[left], ids[right], ids[left + right]))
    return out


def refuse_unless_exact_bpe(spec: dict, where: str) -> None:
    """Refuse models that are not BPE, and options, pre-tokenizers and normalisers that lose bytes."""
    model = spec.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise TokenizerError(
            f"{where}: the model is {model.get('type') or _kind_of(model)!r}, want 'BPE'. WordPiece and Unigram have no exact "
            f"boundary rule here. {INSTEAD_OF_BPE}"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(
                f"{where}: BPE option {key} = {model[key]!r} makes tokens ambiguous as bytes; want none"
            )
    steps = steps_of(spec["pre_tokenizer"])
    for pre in steps:
        if pre["type"] not in _LOSSLESS_PRE_TOKENIZERS:
            raise TokenizerError(
                f"{where}: pre-tokenizer {pre['type']} is not known to keep every byte; want one of "
                f"{sorted(_LOSSLESS_PRE_TOKENIZERS)}"
            )
        if (
            pre["type"] == "Metaspace"
        ):  # what it puts before a text is known (`prefix_bytes_of`), by whatever key it says so
            if pre.get("replacement", SPACE_MARK) != SPACE_MARK:
                raise TokenizerError(
                    f"{where}: pre-tokenizer Metaspace writes a space as {pre['replacement']!r}, so that texts with that "
                    f"character lose it; want replacement = {SPACE_MARK!r}"
                )
        elif pre.get("add_prefix_space") is True:
            raise TokenizerError(
                f"{where}: pre-tokenizer {pre['type']} puts a space before a text that begins with none (add_prefix_space "
                "= True), so that two texts have the same tokens; want add_prefix_space = false"
            )
        removes = "removed" in str(pre.get("behavior")).lower() and not (pre["type"] == "Split" and pre.get("invert"))
        if removes:
            raise TokenizerError(
                f"{where}: pre-tokenizer {pre['type']} removes what it matches, so that bytes are lost ({pre}); "
                "want the behaviour Isolated, or Removed with invert = true and a pattern that matches everything"
            )
    names = [pre["type"] for pre in steps]
    behind = steps[names.index("ByteLevel") + 1 :] if "ByteLevel" in names else []
    cutting = next((pre for pre in behind if pre["type"] != "ByteLevel" or pre.get("use_regex", True)), None)
    if cutting is not None:
        raise TokenizerError(
            f"{where}: the step {cutting['type']} stands behind ByteLevel, where every byte is a letter of its own: "
            "it cuts inside characters (`²` and `½` are numbers there, in the middle of others). Want ByteLevel as the last step."
        )
    for norm in _walk(spec["normalizer"], "normalizers"):
        fine = norm["type"] in ("NFC", "Sequence") or (norm["type"] == "Prepend" and norm["prepend"] == SPACE_MARK)
        fine |= norm["type"] == "Replace" and norm["pattern"] == {"String": " "} and norm["content"] == SPACE_MARK
        if not fine:
            raise TokenizerError(
                f"{where}: normaliser {norm} changes bytes that cannot be given back; want none, NFC, or the ▁ of SentencePiece. "
                f"{_LOST.get(norm['type'], _LOST_ELSE)}, so that two texts have the same tokens. If the corpus is as this "
                "normaliser leaves it (run it over the text first), give a copy of the folder whose tokenizer.json says "
                f'"normalizer": null: it has the same tokens for such texts. {INSTEAD_OF_BPE}'
            )


def _kind_of(model: dict) -> str:
    """The kind of a model that does not say it: files of old versions of the library, which went by the keys."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "BPE" if "merges" in model else "WordLevel"


def bar_added(spec: dict) -> dict[int, str]:
    """Id -> content of the added tokens beside which the bytes of a text are not certain; they are made specials, in place.

    A special string inside a text is read as plain text, so such a token is never met, and is right in each text that does not
    hold its string; texts that hold it are refused one by one (`Vocabulary.encode`). These are tokens that strip their
    neighbours or want word limits, and tokens that cut a text whose every part gets a space before it.
    """
    out: dict[int, str] = {}
    parts_get_a_space = any(n["type"] == "Prepend" for n in _walk(spec["normalizer"], "normalizers")) or any(
        p["type"] == "Metaspace" and p.get("prepend_scheme", "always") == "always"
        for p in _walk(spec["pre_tokenizer"], "pretokenizers")
    )
    for token in spec["added_tokens"]:
        if token.get("special", True):
            continue
        # found behind what the normaliser puts before a text
        inside = token["normalized"] and spec["normalizer"] is not None
        strips = any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word"))
        if strips or (parts_get_a_space and not inside):
            out[token["id"]] = token["content"]
            token["special"] = True
    return out


def refuse_other_ids(spec: dict, tokenizer: Tokenizer, where: str) -> None:
    """Raises TokenizerError where the library gives an added token another id than the file: it numbers those that the model's
    vocabulary lacks one after another, whatever the file says, so that a hole in the ids shifts all behind it."""
    for token in spec["added_tokens"]:
        known = tokenizer.token_to_id(token["content"])
        if known != token["id"]:
            raise TokenizerError(
                f"{where}: tokenizer.json gives the added token {token['content']!r} the id {token['id']}, the library "
                f"reads it as {known}, so that it stands for another row of the model. Want added tokens whose ids go on from "
                "the vocabulary without a hole: put unused ids into `model.vocab`, under any name."
            )


def texts_of_added(added: Iterable[dict], vocab: dict[str, int], tokenizer: Tokenizer, kind: str) -> dict[int, str]:
    """Id -> the text that an added token stands for, of all that are no specials.

    A normalised one is looked for in the normalised text: behind a SentencePiece normaliser `<tool>` is there as `▁<tool>`, and
    stands for " <tool>". Any other is looked for in the text as it is, where ▁ is that very character. If the BPE model has
    the same string, in which ▁ is the space, the token is what the model makes of it and no added text: a text with the
    character comes back with spaces, and is not reversible.
    """
    out: dict[int, str] = {}
    for token in added:
        content, normalizer = token["content"], tokenizer.normalizer
        if token["special"]:
            continue
        if token["normalized"] and normalizer is not None:
            content = normalizer.normalize_str(content)
            out[token["id"]] = content.replace(SPACE_MARK, " ") if kind == "sentencepiece" else content
        elif kind == "bytelevel" or SPACE_MARK not in content or vocab.get(content) != token["id"]:
            out[token["id"]] = content
    return out


def bytes_of_tokens(
    vocab: dict[str, int],
    added: dict[int, str],
    specials: Container[int],
    size: int,
    kind: str,
    fallback: bool,
    where: str,
) -> list[bytes | None]:
    """Bytes of every id (None: special or unused), by the alphabet or the marks of its kind. added: as `texts_of_added`."""
    alphabet = byte_alphabet()
    if fallback:
        _refuse_without_bytes(vocab, where)
    out: list[bytes | None] = [None] * size
    for text, token_id in vocab.items():
        if token_id in added or token_id in specials:
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
    for token_id, text in added.items():
        out[token_id] = text.encode()
    return out


def _refuse_without_bytes(vocab: dict[str, int], where: str) -> None:
    """Raises TokenizerError where byte_fallback lacks the byte token of a byte that a character without a token can hold. A byte
    that is a character by itself is in no other one: with a token for that character (Gemma 1 has a tab, and no <0x09>) its
    byte token is never asked for. Nor is one of a byte that no UTF-8 text holds. A vocabulary with no byte token at all has no
    fallback: characters without a token are unknown there."""
    missing = [b for b in range(256) if f"<0x{b:02X}>" not in vocab]
    if len(missing) == 256:
        return
    unicode = [b for b in missing if b not in (0xC0, 0xC1, *range(0xF5, 0x100))]
    needed = [b for b in unicode if b >= 0x80 or chr(b).replace(" ", SPACE_MARK) not in vocab]
    if needed:
        raise TokenizerError(
            f"{where}: byte_fallback is on, but the vocabulary has neither the byte token <0x{needed[0]:02X}> nor a token for "
            f"the character with that byte ({len(needed)} such bytes), so that texts with it lose characters. Want one or the "
            "other for each byte, as in the model's own repository; fetch tokenizer.json there again."
        )


def prefix_bytes_of(spec: dict) -> bytes:
    """What the tokenizer puts before a text: a space, or nothing."""
    prepends = any(n["type"] == "Prepend" for n in _walk(spec["normalizer"], "normalizers"))
    metaspace = [p for p in _walk(spec["pre_tokenizer"], "pretokenizers") if p["type"] == "Metaspace"]
    return b" " if prepends or any(p.get("prepend_scheme", "always") != "never" for p in metaspace) else b""


def without_prefix(spec: dict) -> None:
    """Change a tokenizer.json, in place, so that nothing is put before a text. Added tokens that are normalised still stand for
    what they stood for with it (`texts_of_added`)."""
    if any(step["type"] == "Prepend" for step in _walk(spec["normalizer"], "normalizers")):
        for token in spec["added_tokens"]:
            if token["normalized"] and not token["special"]:
                token["content"] = SPACE_MARK + token["content"]
    normalizer = spec["normalizer"]
    if normalizer is not None and normalizer["type"] == "Prepend":
        spec["normalizer"] = None
    for step in _walk(spec["normalizer"], "normalizers"):
        if "normalizers" in step:
            step["normalizers"] = [inner for inner in step["normalizers"] if inner["type"] != "Prepend"]
    for step in _walk(spec["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"


def content_hash_of(spec: dict, roles: dict[str, int | None]) -> str:
    """sha256 of all that decides how text becomes ids: not the template, truncation or padding."""
    keys = ("model", "added_tokens", "normalizer", "pre_tokenizer")
    body = json.dumps([{k: spec[k] for k in keys}, roles], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()


def _walk(node: dict | None, children: str) -> list[dict]:
    if node is None:
        return []
    return [node, *(x for child in node.get(children, []) for x in _walk(child, children))]


def steps_of(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer in order, sequences opened. [] for none."""
    return [node for node in _walk(pre_tokenizer, "pretokenizers") if node["type"] != "Sequence"]


def pattern_of(pre: dict[str, Any], where: str) -> str | None:
    """The pattern that one step isolates, None when it cuts nothing. Raises TokenizerError for an unknown step."""
    if pre["type"] == "ByteLevel":
        return _GPT2_PATTERN if pre.get("use_regex", True) else None
    if pre["type"] == "Digits":
        return r"\p{N}" if pre["individual_digits"] else r"\p{N}+"
    if pre["type"] == "Punctuation" and pre["behavior"] in ("Isolated", "Contiguous"):
        return PUNCTUATION + ("+" if pre["behavior"] == "Contiguous" else "")
    if pre["type"] == "Split" and (pre["behavior"] == "Isolated" or removes_the_rest(pre)):
        pattern = pre["pattern"]
        return pattern["Regex"] if "Regex" in pattern else "".join(escape(c) for c in pattern["String"])
    raise TokenizerError(
        f"{where}: pre-tokenizer {pre['type']} ({pre}) beside ByteLevel is not known; want Digits, Punctuation or an isolating "
        "Split before it"
    )


def removes_the_rest(pre: dict[str, Any]) -> bool:
    """Whether a step keeps its matches and removes what lies between them: lossless where its pattern matches everything."""
    return pre["type"] == "Split" and pre["behavior"] == "Removed" and bool(pre.get("invert"))


def has_type(node: dict | None, kind: str) -> bool:
    """Whether a (sequence of) normaliser or pre-tokenizer has a step of this type."""
    return any(n["type"] == kind for children in ("pretokenizers", "normalizers") for n in _walk(node, children))


def token_name(value: Any) -> str | None:
    """The string of a special token in tokenizer_config.json, which may be an object."""
    return value.get("content") if isinstance(value, dict) else value


def find_within(framed: list[int], plain: list[int]) -> int:
    """Where the plain ids begin inside the framed ones."""
    return next(i for i in range(len(framed)) if framed[i : i + len(plain)] == plain)
