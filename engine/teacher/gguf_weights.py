"""Whether a model made of a GGUF file has all that is in the file: transformers passes over tensors that it does not know.

loaded model + the file's table of tensors -> nothing, or a TeacherError
"""

from __future__ import annotations

import re
from typing import Any

from transformers.utils.hub import cached_file

from schemas.errors import TeacherError

_OF_ANY_MODEL = re.compile(r"(token_embd|output|output_norm|blk\.\d+\.[a-z_]+)\.(weight|bias)")


def check_all_taken(model: Any, place: str, file: str, revision: str | None) -> None:
    """Compares the count of numbers. place: a folder or Hub id. Raises TeacherError where they differ."""
    from gguf import GGUFReader

    found = cached_file(place, file, revision=revision)
    assert found is not None  # it was loaded
    tensors = GGUFReader(found).tensors
    there, taken = sum(int(t.n_elements) for t in tensors), sum(p.numel() for p in model.parameters())
    if there == taken:
        return
    strange = [t.name for t in tensors if not _OF_ANY_MODEL.fullmatch(t.name)]
    named = f" (perhaps {', '.join(strange[:3])})" if strange else ""
    raise TeacherError(
        f"[teacher] model {file!r}: the file holds {there:,} numbers, the {type(model).__name__} that transformers makes of it "
        f"{taken:,}, so that some are passed over{named} and its answers would be others. Take the model's original weights as "
        "safetensors"
    )
