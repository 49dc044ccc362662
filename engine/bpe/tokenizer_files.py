"""The files of a tokenizer: a folder or Hub id goes in, the object of its tokenizer.json comes out. Where there is none, it is
made of what there is: a tekken.json is all that is needed (rank_lists.py); a SentencePiece model and vocab.json with merges.txt
are converted by transformers.

What a conversion takes for granted is checked, or the file is refused: the bytes of a SentencePiece model do not say how
transformers will read it, so what was made is held against the sentencepiece library; a list of tokens by rank (tiktoken) has
neither its pattern nor its special tokens beside it; a tokenizer that is a Python program cannot be seen from its files.

Raises TokenizerError only; every message begins with where (which table of the run file).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.bpe.gguf_tokenizer import gguf_file, gguf_folder
from engine.bpe.rank_lists import TEKKEN, tekken_spec
from engine.bpe.tokenizer_json import INSTEAD_OF_BPE, read_json
from engine.bpe.trial_texts import TRIAL_TEXTS
from schemas.address import gguf_parts
from schemas.errors import BadDocument, TokenizerError

TOKENIZER_PATTERNS = ["*.json", "*.model", "*.txt", "*.jinja"]  # what of a Hub repository belongs to its tokenizer
_SECTIONS = ("model", "added_tokens", "normalizer", "pre_tokenizer")
_BY_RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
_BPE = 2  # of SentencePiece's types of model


def tokenizer_folder(path_or_id: str, revision: str | None, where: str) -> Path:
    """The local folder of a tokenizer; fetched from the Hub when it is an id. Raises TokenizerError."""
    if gguf_parts(path_or_id)[1] is not None:
        return gguf_folder(gguf_file(path_or_id, revision, where), where)
    path = Path(path_or_id).expanduser()
    folder = path.parent if path.name in ("tokenizer.json", TEKKEN) else path
    if folder.is_dir():
        return folder
    # a Hub id is OWNER/NAME; the relative paths of a run file come here as absolute ones
    if folder.is_absolute() or path_or_id.count("/") > 1:
        found = "is a file" if folder.exists() else "there is no such folder"
        raise TokenizerError(
            f"{where}: {path_or_id}: {found}. Want a folder with tokenizer.json, or a Hub id; check the spelling (paths of a run "
            "file start at its folder)."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path_or_id, revision=revision, allow_patterns=TOKENIZER_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TokenizerError(
            f"{where}: there is no folder {path_or_id!r}, and as a model the Hugging Face Hub did not give it "
            f"({type(error).__name__}). Want a folder with tokenizer.json (paths of a run file start at its folder), or a Hub "
            "id; check the spelling."
        ) from error


def read_spec(folder: Path, trust_remote_code: bool, where: str) -> dict:
    """What tokenizer.json says of the folder's tokenizer, whatever file it comes in. Raises TokenizerError."""
    file = folder / "tokenizer.json"
    if file.is_file():
        spec = read_json(file, where)
    elif (folder / TEKKEN).is_file():
        return tekken_spec(folder / TEKKEN, where)
    else:
        _refuse_lists_by_rank(folder, where)
        if (model := sentencepiece_file(folder)) is not None:
            _check_sentencepiece(model, where)
        spec = _converted(folder, trust_remote_code, where)
    missing = [key for key in _SECTIONS if key not in spec]
    if missing:
        raise TokenizerError(
            f"{where}: {file} lacks {missing[0]!r}; want a tokenizer.json as `save_pretrained` writes it"
        )
    return spec


def sentencepiece_file(folder: Path) -> Path | None:
    """The SentencePiece model from which the folder's tokenizer is made; None where it is made of something else."""
    if any((folder / name).is_file() for name in ("tokenizer.json", TEKKEN, "vocab.json")):
        return None
    return next((file for file in _models(folder) if _begins(file)[:1] == b"\n"), None)


def hold_against_sentencepiece(encode: Callable[[str], tuple[list[int], list[int]]], model: Path, where: str) -> None:
    """Raises TokenizerError where a converted tokenizer has other tokens than the sentencepiece library makes of the same file.
    encode: text -> (ids, ends), BadDocument for texts that are left out, since a document with such a text is. An eighth of a
    second."""
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(model))
    for text in TRIAL_TEXTS:
        try:
            ids = encode(text)[0]
        except BadDocument:
            continue
        wanted = theirs.encode(text)
        if ids != wanted:
            made, right = (
                [theirs.id_to_piece(i) if i < len(theirs) else i for i in some[:6]] for some in (ids, wanted)
            )
            named = (model.parent / "tokenizer_config.json").is_file()
            raise TokenizerError(
                f"{where}: {text[:40]!a} becomes {made} as transformers reads {model}, {right} by the sentencepiece library: "
                + (
                    "two readings of one file. "
                    if named
                    else "there is no tokenizer_config.json, so its class is guessed. "
                )
                + "Want the tokenizer_config.json of the model's repository beside it (it names tokenizer_class, such as "
                "LlamaTokenizer), or a tokenizer.json made with the class that the model is used with."
            )


def _models(folder: Path) -> list[Path]:
    return [
        file for file in sorted(folder.iterdir()) if file.is_file() and re.search(r"\.(model|tiktoken)\b", file.name)
    ]


def _begins(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(1024)


def _refuse_lists_by_rank(folder: Path, where: str) -> None:
    lists = [file for file in _models(folder) if _BY_RANK.match(_begins(file))]
    if lists:
        raise TokenizerError(
            f"{where}: {folder} has no tokenizer.json, only {lists[0].name}, a list of tokens by rank as tiktoken reads it. The "
            "pattern that cuts a text and the special tokens are in program code, not in this file, so that tokens would be "
            "guessed. Want the tokenizer.json of the model's repository in the Hugging Face form."
        )


def _check_sentencepiece(model: Path, where: str) -> None:
    """Raises TokenizerError where the library that reads the file is missing (transformers would ask for another one), or the
    model is no BPE (transformers makes one of it all the same where the class says so)."""
    missing = [name for name in ("sentencepiece", "google.protobuf") if find_spec(name) is None]
    if missing:
        raise TokenizerError(
            f"{where}: {model.parent} has no tokenizer.json, only {model.name}, which is SentencePiece's; the library that reads "
            f"it ({missing[0]}) is not installed. Install it on every node: pip install sentencepiece protobuf (or "
            "'targetsmith[sentencepiece]'); or save a tokenizer.json elsewhere with "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`."
        )
    if not model.name.endswith(".model"):
        raise TokenizerError(
            f"{where}: {model.parent} has no tokenizer.json, only {model.name}, a SentencePiece model under a name that "
            "transformers does not look for. Copy it to tokenizer.model in a folder of its own, with the model's "
            "tokenizer_config.json beside it."
        )
    from transformers.convert_slow_tokenizer import import_protobuf

    formats: Any = import_protobuf()
    proto = formats.ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except Exception as error:  # protobuf's own class, which moves between its versions
        raise TokenizerError(f"{where}: {model} is not a SentencePiece model ({error}); fetch it again") from error
    if proto.trainer_spec.model_type != _BPE:
        kind = proto.trainer_spec.ModelType.Name(proto.trainer_spec.model_type)
        raise TokenizerError(
            f"{where}: {model} is a SentencePiece model of type {kind}, want BPE (whatever class tokenizer_config.json names: "
            f"read as BPE it would give other tokens). {INSTEAD_OF_BPE}"
        )


def _converted(folder: Path, trust_remote_code: bool, where: str) -> dict[str, Any]:
    """What transformers makes of the folder's files. Raises TokenizerError."""
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, use_fast=True)
    except (OSError, ValueError, AttributeError, ImportError, KeyError) as error:
        raise TokenizerError(
            f"{where}: {folder} has no tokenizer.json and transformers cannot make a fast tokenizer from it "
            f"({type(error).__name__}: {error}). Want tokenizer.json; save one with `AutoTokenizer...save_pretrained`."
        ) from error
    backend = getattr(slow, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{where}: {folder} has no tokenizer.json, and its class {type(slow).__name__} is a Python program: what it does "
            f"to a text stands in no file, so that its boundaries cannot be proven. {INSTEAD_OF_BPE}"
        )
    return json.loads(backend.to_str())
