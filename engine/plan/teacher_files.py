"""The files that decide what the teacher answers: found, complete, and hashed for the fingerprint.

[teacher] of the run file -> the local folder of the model, its files, their sha256
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from engine.bpe.tokenizer_files import TOKENIZER_PATTERNS
from schemas.errors import TeacherError
from schemas.runfile import RunConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SLOW_TOKENIZER_FILES = ("tekken.json", "tokenizer.model", "vocab.json", "merges.txt")
"""What a tokenizer is made of where there is no tokenizer.json (bpe/tokenizer_files.py)."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the order in which transformers looks for them
HUB_FILES = [*TOKENIZER_PATTERNS, "*.safetensors", "*.py", "pytorch_model*.bin"]
"""What of a Hub repository belongs to a teacher, as patterns."""


def teacher_folder(run: RunConfig) -> Path:
    """The local folder of the teacher; fetched from the Hub when `model` is an id. Raises TeacherError."""
    return local_folder(
        run, "model", run.teacher.model, run.teacher.revision, HUB_FILES, "config.json, weights and tokenizer"
    )


def local_folder(run: RunConfig, key: str, name: str, revision: str | None, patterns: list[str], holds: str) -> Path:
    """The folder that a key of [teacher] names; fetched from the Hub when it is an id. patterns: what of a Hub repository
    belongs to it; holds: the same in words. Raises TeacherError."""
    folder = Path(run.locate(name))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise TeacherError(f"[teacher] {key} = {name!r} is a file; want the folder that holds {holds}")
    if folder.is_absolute():
        raise TeacherError(
            f"[teacher] {key} = {name!r}: there is no folder {folder}. Want one with {holds}; correct the path (relative ones "
            "start at the folder of the run file)."
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TeacherError(
            f"[teacher] {key} = {name!r} (revision {revision or 'main'}): there is no such folder, and the Hugging "
            f"Face Hub did not give it ({type(error).__name__}). Want a folder with {holds}, or a Hub id: check the "
            "spelling, the network, and HF_TOKEN if it is gated."
        ) from error


def teacher_files(run: RunConfig) -> list[Path]:
    """All files that decide what the teacher answers, sorted. Raises TeacherError naming the first that is missing."""
    folder = teacher_folder(run)
    config = folder / "config.json"
    if not config.is_file():
        _refuse_adapter(run.teacher.model, folder)
        raise TeacherError(
            f"[teacher] model = {run.teacher.model!r}: {config} is missing; want the folder that `save_pretrained` "
            f"writes (config.json, model.safetensors, tokenizer.json). Copy the missing file there or correct the path."
        )
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TeacherError(f"[teacher] model: {config} is not valid JSON ({error}); fetch the file again") from error
    _refuse_other_classes(run, folder)
    files = [config, *_weights(folder)]
    tokenizer = Path(run.locate(run.teacher.tokenizer)) if run.teacher.tokenizer else folder
    if tokenizer.is_dir():
        have = [tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()]
        if not (tokenizer / "tokenizer.json").is_file():
            slow = [tokenizer / name for name in SLOW_TOKENIZER_FILES if (tokenizer / name).is_file()]
            if not slow:
                raise TeacherError(
                    f"[teacher]: {tokenizer / 'tokenizer.json'} is missing, and so are "
                    f"{', '.join(SLOW_TOKENIZER_FILES)}. Copy the teacher's tokenizer there, or name "
                    f"its folder with [teacher] tokenizer = ..."
                )
            have += slow
        files += have
    if run.teacher.trust_remote_code:
        files += folder.glob("*.py")
    return sorted(set(files))


def _refuse_other_classes(run: RunConfig, folder: Path) -> None:
    """Raises TeacherError for a configuration that no causal language model of transformers has: known without the weights."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=run.teacher.trust_remote_code)
    except Exception as error:  # remote code, and whatever transformers says about an unknown model_type
        raise TeacherError(
            f"[teacher] model = {run.teacher.model!r}: transformers cannot read its config.json "
            f"({(str(error).strip().splitlines() or [type(error).__name__])[0]}). Want a model that this version of transformers "
            "knows: update transformers, or set trust_remote_code = true where the model brings its own code and you trust it."
        ) from error
    own = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or (run.teacher.trust_remote_code and "AutoModelForCausalLM" in own):
        return
    named = ", ".join(config.architectures or ()) or "none named"
    raise TeacherError(
        f"[teacher] model = {run.teacher.model!r}: model_type {config.model_type!r} (architectures: {named}) is no causal "
        "language model for transformers' AutoModelForCausalLM. Want a decoder that predicts the next token, such as "
        "Llama or Qwen; of a multimodal checkpoint, its text model saved by itself."
    )


def _refuse_adapter(name: str, folder: Path) -> None:
    """Raises TeacherError for the folder of an adapter (LoRA and its kin): there is no model in it to copy a file to."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        base = "its base model"
    raise TeacherError(
        f"[teacher] model = {name!r}: {folder} is an adapter (LoRA) for {base}, not a model; want both: model = {base!r} and "
        f"adapter = {name!r} under [teacher]"
    )


def _weights(folder: Path) -> Iterator[Path]:
    """The weights as transformers would find them: one file, or an index and all files that it names. Raises TeacherError."""
    for name in _WEIGHTS:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            yield single
            return
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
                raise TeacherError(
                    f"[teacher] model: {index} is not a weight index ({error}); fetch it again"
                ) from error
            for shard in shards:
                if Path(shard).name != shard:
                    raise TeacherError(
                        f"[teacher] model: {index} names {shard!r}; want plain file names beside it, or weights would be read "
                        "from anywhere on this machine. Do not use this model, or mend its index."
                    )
                if not (folder / shard).is_file():
                    raise TeacherError(
                        f"[teacher] model: {folder / shard} is missing, one of the {len(shards)} weight files that "
                        f"{index.name} names. Fetch it again; an interrupted download leaves such a folder."
                    )
            yield index
            yield from (folder / shard for shard in shards)
            return
    raise TeacherError(
        f"[teacher] model: {folder} has no weights; want {' or '.join(_WEIGHTS)}, or their .index.json with all parts. "
        f"Fetch them, or correct the path."
    )


def sha256_of(path: Path) -> str:
    """Hex digest of a file. Large files of the Hub's cache are not read: their names are their digests."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:  # the Hub cache names large files by their sha256
        return blob.name
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
