"""What is stored: chunks of the teacher's next-token probabilities in, one Arrow table for each product out. On the way every
position of every product (the teacher's own tokens, each student's tokens, bytes) gets its distribution over that product's
vocabulary. What is kept of a distribution, the top-k and the mass of the tail among it, is computed in `positions` (`TopK`), for
rows of compiled functions in engine/push (`push_kernels.keep`).

Files, in the order of the data:
  teacher_rows  rows over the teacher's own tokens, statistics of them, and its hidden states
  exact_rows    rows of a student that refines the teacher (a subset of its vocabulary), or of bytes
  beam_rows     rows of any other student
  pushforward   masses of teacher tokens -> masses of student tokens at a batch of boundaries
  positions     what is kept of each position: top-k, mass of the tail, gold token, shares
  sampling      what is kept instead in the codec `sample`: tokens drawn, with counts
  tables        rows -> one table for each product, a row for each document
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.targets.exact_rows import Refinement
    from engine.targets.positions import TargetRows, TopK
    from engine.targets.pushforward import PushForward
    from engine.targets.sampling import Sample
    from engine.targets.tables import table_of

__all__ = ["PushForward", "Refinement", "Sample", "TargetRows", "TopK", "table_of"]

_FILE_OF = {
    "PushForward": "pushforward",
    "Refinement": "exact_rows",
    "Sample": "sampling",
    "TargetRows": "positions",
    "TopK": "positions",
    "table_of": "tables",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: torch and transformers take seconds."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
