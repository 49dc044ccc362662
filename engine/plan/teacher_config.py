"""The teacher's configuration as transformers reads it: from config.json, or from the head of a GGUF file.

[teacher] of the run file -> configuration of transformers; models that are no causal language models are refused
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from engine.bpe.gguf_tokenizer import gguf_head
from engine.plan.teacher_place import teacher_folder, teacher_gguf
from schemas.errors import TeacherError, TokenizerError
from schemas.runfile import RunConfig


def teacher_config(run: RunConfig) -> Any:
    """Known without the weights. Raises TeacherError where transformers cannot read it, or it is no causal language model."""
    name, file = run.teacher.model, teacher_gguf(run)
    config = _of_folder(run) if file is None else _of_gguf(name, file, file.stat().st_size, file.stat().st_mtime_ns)
    own = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or (run.teacher.trust_remote_code and "AutoModelForCausalLM" in own):
        return config
    named = ", ".join(config.architectures or ()) or "none named"
    raise TeacherError(
        f"[teacher] model = {name!r}: model_type {config.model_type!r} (architectures: {named}) is no causal "
        "language model for transformers' AutoModelForCausalLM. Want a decoder that predicts the next token, such as "
        "Llama or Qwen; of a multimodal checkpoint, its text model saved by itself."
    )


def _of_folder(run: RunConfig) -> Any:
    try:
        return AutoConfig.from_pretrained(teacher_folder(run), trust_remote_code=run.teacher.trust_remote_code)
    except TeacherError:
        raise
    except Exception as error:  # remote code, and whatever transformers says about an unknown model_type
        raise TeacherError(
            f"[teacher] model = {run.teacher.model!r}: transformers cannot read its config.json "
            f"({_first(error)}). Want a model that this version of transformers "
            "knows: update transformers, or set trust_remote_code = true where the model brings its own code and you trust it."
        ) from error


@cache
def _of_gguf(name: str, file: Path, size: int, changed: int) -> Any:
    """Once: transformers takes 3 to 20 seconds for the vocabulary in such a file. size, changed: of the file."""
    try:
        head = gguf_head(file, f"[teacher] model = {name!r}")
    except TokenizerError as error:
        raise TeacherError(str(error)) from error
    kind = head["general.architecture"]
    try:
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    except ImportError as error:
        if find_spec("gguf") is not None:
            raise
        raise TeacherError(
            f"[teacher] model = {name!r}: the library that reads GGUF files of architecture {kind!r} is not installed; run "
            "`pip install 'targetsmith[gguf]'` on all nodes"
        ) from error
    except Exception as error:  # an architecture that it does not know, keys that are not there, values that do not fit
        raise TeacherError(
            f"[teacher] model = {name!r}: transformers cannot make a model of a GGUF file of architecture {kind!r} "
            f"({_first(error)}). Want one that this version of transformers knows (Llama, Qwen, Gemma, Phi and others), or the "
            "model's original weights as safetensors"
        ) from error
    _refuse_lost_scaling(config, head, name)
    return config


def _refuse_lost_scaling(config: Any, head: dict[str, Any], name: str) -> None:
    """Raises TeacherError where the file stretches its positions and the configuration does not: plausible numbers, all wrong."""
    keys = (".rope.scaling.type", ".rope.scaling.factor", ".rope.scale_linear")
    asked = {key: value for key, value in head.items() if key.endswith(keys) and value not in ("none", 0.0, 1.0)}
    taken = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if asked and taken.get("rope_type", "default") == "default":
        key, value = next(iter(asked.items()))
        raise TeacherError(
            f"[teacher] model = {name!r}: the file has {key} = {value!r}, and the model that transformers makes of it does not "
            "stretch its positions at all, so that its numbers would be others. Take the model's original weights as safetensors"
        )


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
