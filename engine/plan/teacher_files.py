"""The files that decide what the teacher answers: found, complete, and hashed for the fingerprint.

[teacher] of the run file -> the local folder of the model, its files, their sha256
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from engine.plan.teacher_config import teacher_config
from engine.plan.teacher_place import teacher_folder, teacher_gguf
from schemas.counts import counted
from schemas.errors import TeacherError
from schemas.runfile import RunConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SLOW_TOKENIZER_FILES = ("tekken.json", "tokenizer.model", "vocab.json", "merges.txt")
"""What a tokenizer is made of where there is no tokenizer.json (bpe/tokenizer_files.py)."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the order in which transformers looks for them
_GGUF = "model.gguf"
"""What a GGUF file is called in the fingerprint, whatever its name."""


def teacher_files(run: RunConfig) -> list[Path]:
    """All files that decide what the teacher answers, sorted. Raises TeacherError naming the first that is missing."""
    if (file := teacher_gguf(run)) is not None:
        teacher_config(run)
        return sorted({file, *_tokenizer_files(run, None)})
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
    teacher_config(run)
    files = [config, *_weights(folder), *_tokenizer_files(run, folder)]
    if run.teacher.trust_remote_code:
        files += folder.glob("*.py")
    return sorted(set(files))


def _tokenizer_files(run: RunConfig, folder: Path | None) -> list[Path]:
    """Those in the folder that the run file names, or in the model's; none where the tokenizer is a file or an id, whose content
    the plan hashes. Raises TeacherError."""
    tokenizer = Path(run.locate(run.teacher.tokenizer)) if run.teacher.tokenizer else folder
    if tokenizer is None or not tokenizer.is_dir():
        return []
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
    return have


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
                        f"[teacher] model: {folder / shard} is missing, one of {counted(len(shards), 'weight file')} that "
                        f"{index.name} names. Fetch it again; an interrupted download leaves such a folder."
                    )
            yield index
            yield from (folder / shard for shard in shards)
            return
    raise TeacherError(
        f"[teacher] model: {folder} has no weights; want {' or '.join(_WEIGHTS)}, or their .index.json with all parts. "
        f"Fetch them, or correct the path."
    )


def name_of(file: Path) -> str:
    """What a file is called in the fingerprint."""
    return _GGUF if file.suffix.lower() == ".gguf" else file.name


def sha256_of(path: Path) -> str:
    """Hex digest of a file. Large files of the Hub's cache are not read: their names are their digests."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:  # the Hub cache names large files by their sha256
        return blob.name
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
