"""A LoRA adapter merged into the weights of the teacher it was made for.

In: a model of transformers and the folder of an adapter. Out: the model, with other weights and nothing of peft left in it, so
that all of the engine sees a plain model.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from schemas.errors import TeacherError


def with_adapter(model: Any, path: str, revision: str | None) -> Any:
    """The model with the adapter in it. Raises TeacherError: peft is missing, or the adapter is of another model."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise TeacherError(
            f"[teacher] adapter = {path!r}: peft is not installed here; run `pip install 'targetsmith[adapters]'` on all nodes"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # else they stay at zero in silence
            made = PeftModel.from_pretrained(model, path, revision=revision)
        return made.merge_and_unload(safe_merge=True)
    except (torch.OutOfMemoryError, MemoryError):  # says nothing about the adapter
        raise
    except Exception as error:  # peft and the files of strangers raise anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TeacherError(
            f"[teacher] adapter = {path!r} does not fit the model: {first}. Want a LoRA adapter that was trained on this very "
            "model (base_model_name_or_path in its adapter_config.json)."
        ) from error
