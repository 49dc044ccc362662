"""Where the teacher lies: a folder, one GGUF file, or a repository of the Hugging Face Hub, which is fetched.

[teacher] of the run file -> a local folder, or a local file
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from engine.bpe.tokenizer_files import TOKENIZER_PATTERNS
from schemas.address import gguf_parts
from schemas.errors import TeacherError
from schemas.runfile import RunConfig

HUB_FILES = [*TOKENIZER_PATTERNS, "*.safetensors", "*.py", "pytorch_model*.bin"]
"""What of a Hub repository belongs to a teacher, as patterns."""
_HOLDS = "config.json, weights and tokenizer"


def teacher_folder(run: RunConfig) -> Path:
    """The local folder of the teacher; fetched from the Hub when `model` is an id. Raises TeacherError."""
    return local_folder(run, "model", run.teacher.model, run.teacher.revision, HUB_FILES, _HOLDS)


def teacher_gguf(run: RunConfig) -> Path | None:
    """The one GGUF file that the teacher is; None where it is a folder. Raises TeacherError."""
    name = run.teacher.model
    repository, file = gguf_parts(run.locate(name))
    if file is None:
        return None
    here = Path(repository, file)
    if here.is_file():
        return here
    if here.is_absolute() or "/" not in repository:
        raise TeacherError(
            f"[teacher] model = {name!r}: there is no file {here}. Correct the path (relative ones start at the folder of the "
            "run file), or name a file of the Hub: owner/name/file.gguf"
        )
    folder = local_folder(run, "model", repository, run.teacher.revision, [file], file)
    if not (folder / file).is_file():
        raise TeacherError(f"[teacher] model = {name!r}: {repository} on the Hub has no file {file}; correct its name")
    return folder / file


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
