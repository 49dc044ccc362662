"""The files of a LoRA adapter: found, complete, and hashed for the fingerprint.

[teacher] adapter of the run file -> its local folder, its two files
"""

from __future__ import annotations

import json
from pathlib import Path

from engine.plan.teacher_place import local_folder
from schemas.errors import TeacherError
from schemas.runfile import RunConfig

ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
"""What an adapter is made of, as `save_pretrained` of peft writes it."""


def adapter_files(run: RunConfig) -> list[Path]:
    """The adapter's files. Raises TeacherError for one that is missing, or that is no LoRA."""
    name, revision = run.teacher.adapter or "", run.teacher.adapter_revision
    folder = local_folder(run, "adapter", name, revision, ADAPTER_FILES, " and ".join(ADAPTER_FILES))
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
