"""The tokenizer in a GGUF file as a folder with tokenizer.json, which transformers makes of the file's tokens and merges.

GGUF file -> folder (made once, in the cache of this machine)

Such a file holds tokens, merges or scores, and kinds of tokens; of how a text is cut before the merges it holds only a name, and
nothing of a normaliser. Where transformers does not know the name it cuts as GPT-2 does, without a word: "smollm" then lacks its
step that parts digits, and numbers have other tokens than the model learned. So names that it does not know are refused, and a
space before a text that the file says otherwise of. What no file can say (NFC, flags of added tokens) stays unknown.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from engine.kernels.jit import cache_home
from schemas.address import gguf_parts
from schemas.errors import TokenizerError

_CUT_AS_GPT2 = {"gpt-2"}
"""Names of pre-tokenizers that are GPT-2's own, which transformers takes where it knows no other."""
_INSTEAD = "Name the model's own tokenizer beside it: tokenizer = ..., a folder with tokenizer.json or a Hub id"


def gguf_file(place: str, revision: str | None, where: str) -> Path:
    """The file itself; fetched from the Hub when it is one of a repository there. Raises TokenizerError."""
    folder, name = gguf_parts(place)
    assert name is not None
    file = Path(folder, name).expanduser()
    if file.is_file():
        return file
    if file.is_absolute():
        raise TokenizerError(
            f"{where}: {place}: there is no such file. Want a path, or owner/name/file.gguf of the Hub; check it."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(folder, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TokenizerError(
            f"{where}: {place!r} is neither a file here nor one of a model on the Hugging Face Hub that can be reached "
            f"({type(error).__name__}). Want a path, or owner/name/file.gguf; check the spelling."
        ) from error


def gguf_folder(file: Path, where: str) -> Path:
    """A folder with the files of its tokenizer, as `save_pretrained` writes them. Raises TokenizerError."""
    facts = file.stat()
    return _folder(file.resolve(), facts.st_size, facts.st_mtime_ns, where)


@cache
def _folder(file: Path, size: int, changed: int, where: str) -> Path:
    """size, changed: of the file, so that another one under its name is read anew."""
    import transformers

    head = gguf_head(file, where)
    _refuse_unknown_steps(head, file, where)
    said = {key: value for key, value in head.items() if key.startswith(("tokenizer.", "general.architecture"))}
    digest = hashlib.sha256(json.dumps([transformers.__version__, said], sort_keys=True).encode())
    home = cache_home() / f"gguf-{digest.hexdigest()[:32]}"
    if not home.is_dir():
        made = _made(file, where)
        _refuse_other_space(made, head, file, where)
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as part:
            made.save_pretrained(part)
            _drop_foreign(Path(part, "tokenizer.json"), len(head["tokenizer.ggml.tokens"]))
            shutil.copytree(part, f"{part}-whole")
        try:
            Path(f"{part}-whole").rename(home)
        except OSError:  # another process was faster
            shutil.rmtree(f"{part}-whole")
    return home


def gguf_head(file: Path, where: str) -> dict[str, Any]:
    """What the file says of itself, key -> value. Raises TokenizerError where it is no whole GGUF file of one part."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        head, _ = read_gguf_metadata(str(file), ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"))
    except Exception as error:  # of a damaged file: whatever its bytes lead to
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TokenizerError(
            f"{where}: {file} cannot be read as GGUF ({first}). Want a whole file of version 2 or 3; fetch it again"
        ) from error
    if int(head.get("split.count", 1)) > 1:
        raise TokenizerError(
            f"{where}: {file} is one of {head['split.count']} parts, and transformers reads files of one part only. Join them "
            "(llama-gguf-split --merge FIRST_PART WHOLE.gguf), and name the whole"
        )
    return head


def _made(file: Path, where: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as alone:  # beside the file may lie configurations of other tokenizers
        Path(alone, "model.gguf").symlink_to(file)
        try:
            return PreTrainedTokenizerFast.from_pretrained(alone, gguf_file="model.gguf")
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TokenizerError(
                f"{where}: transformers cannot make a tokenizer of {file}: {first}. {_INSTEAD}"
            ) from error


def _drop_foreign(file: Path, count: int) -> None:
    """Special tokens that the classes of transformers put behind those of the file, such as GPT-2's own end, stand for no row of
    the model. count: tokens of the file."""
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < count]
    file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


def _refuse_unknown_steps(head: dict[str, Any], file: Path, where: str) -> None:
    """Byte-level tokenizers alone are cut by a pattern; SentencePiece's take a text as it is."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind, steps = head.get("tokenizer.ggml.model"), head.get("tokenizer.ggml.pre")
    if kind == "gpt2" and steps not in GGUF_PRE_TOKENIZER_SPLITS and steps not in _CUT_AS_GPT2:
        named = f"names its pre-tokenizer {steps!r}, which transformers does not know" if steps else "names none"
        raise TokenizerError(
            f"{where}: {file} holds tokens and merges, but of how a text is cut before them only a name, and {named}: it would "
            f"cut as GPT-2 does, so that tokens would be guessed. {_INSTEAD}"
        )


def _refuse_other_space(made: Any, head: dict[str, Any], file: Path, where: str) -> None:
    """Raises TokenizerError where what was made puts a space before a text and the file says no, or the other way round."""
    if head.get("tokenizer.ggml.model") == "gpt2":
        return
    wanted = bool(head.get("tokenizer.ggml.add_space_prefix", True))
    put = made.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith("\u2581")
    if put != wanted:
        told = ["no space", "a space"]
        raise TokenizerError(
            f"{where}: {file} says that {told[wanted]} is put before a text, the tokenizer that transformers makes of it puts "
            f"{told[put]}: tokens would be others than the model learned. {_INSTEAD}"
        )
