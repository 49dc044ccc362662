"""The work of an actor: a unit of documents goes in; out comes one table of target rows for each product, the quarantine records
of the documents that cannot be scored, and sums. All other packages meet here.

Files, in the order of the data:
  room          whether the teacher fits here, before it is loaded
  teacher_here  the teacher loaded in this process: whole, or as one of the ranks that share it
  stages        teacher, tokenizers and the stages made of them, loaded and derived once for a run
  prepare       a document -> its passages: tokens, contexts, and what each product's rows are made from
  ahead         the next documents prepared in a thread, while the teacher works on those before
  emit          a group of passages and their states -> rows of every product, chunk by chunk
  memory        running out of memory: how it shows, and the smaller ways to try
  scorer        documents in groups through all stages -> tables, quarantine, sums; the calibration
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.scoring.scorer import Scorer
    from engine.scoring.stages import Stages, load_stages

__all__ = ["Scorer", "Stages", "load_stages"]

_FILE_OF = {
    "Scorer": "scorer",
    "Stages": "stages",
    "load_stages": "stages",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: torch and transformers take seconds."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
