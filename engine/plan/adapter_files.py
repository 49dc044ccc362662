"""The files of a LoRA adapter: found, complete, and hashed for the fingerprint.

[teacher] adapter of the run file -> its local folder, its two files
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from schemas.errors import TeacherError
from schemas.runfile import RunConfig

ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
"""What an adapter is made of, as `save_pretrained` of peft writes it."""


def adapter_folder(run: RunConfig) -> Path:
    """The local folder of the adapter; fetched from the Hub when it is an id. Raises TeacherError."""
    name, revision = run.teacher.adapter or "", run.teacher.adapter_revision
    folder = Path(run.locate(name))
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute():
        raise TeacherError(
            f"[teacher] adapter = {name!r}: there is no folder {folder}. Want one with {' and '.join(ADAPTER_FILES)}; correct "
            "the path (relative ones start at the folder of the run file)."
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=ADAPTER_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TeacherError(
            f"[teacher] adapter = {name!r} (revision {revision or 'main'}): there is no such folder, and the Hugging Face Hub "
            f"did not give it ({type(error).__name__}). Want a folder with {' and '.join(ADAPTER_FILES)}, or a Hub id: check the "
            "spelling, the network, and HF_TOKEN if it is gated."
        ) from error


def adapter_files(run: RunConfig) -> list[Path]:
    """The adapter's files. Raises TeacherError for one that is missing, or that is no LoRA."""
    folder = adapter_folder(run)
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise TeacherError(
                f"[teacher] adapter: {folder / name} is missing; want the folder that `save_pretrained` of peft writes "
                f"({' and '.join(ADAPTER_FILES)}). Copy it there, or correct the path."
            )
    config = folder / ADAPTER_FILES[0]
    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["peft_type"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise TeacherError(
            f"[teacher] adapter: {config} is no adapter's configuration ({error}); fetch it again"
        ) from error
    if kind != "LORA":
        raise TeacherError(
            f"[teacher] adapter: {folder} is of type {kind!r}; want LORA, which can be merged into the weights. Merge it "
            "yourself and name the merged model, if its method allows that."
        )
    return [folder / name for name in ADAPTER_FILES]
