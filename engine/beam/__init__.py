"""Where more teacher evaluations are spent: boundaries of a group of passages with their open leaves in; the same boundaries out,
with heavy leaves split by the teacher's own next tokens until each is known well enough or a budget is spent (docs/design.md,
section 5). An open leaf is a teacher token whose first student token still depends on what follows it.

Files, in the order of the data:
  sketch            a row of probabilities as far as splitting needs it: heaviest tokens, and sums by head
  leaves            the open leaves of every boundary, and how much mass each context brings there
  frontier          which open leaves of a document are split, and what becomes of their mass
  search            rounds of teacher evaluations for a group, until every document is done
  compiled_search   the same for students with compiled boundaries: one round, spent where the expected error is largest
  calibration       the mean row behind each teacher token, from a sample of the corpus: what stays open is closed by it
  calibration_file  the same as a file of the output
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.beam.calibration import Calibration
    from engine.beam.calibration_file import publish_calibration, read_calibration
    from engine.beam.frontier import Spending
    from engine.beam.leaves import LeafFinder
    from engine.beam.search import BeamSearch
    from engine.beam.sketch import Sketcher

__all__ = ["BeamSearch", "Calibration", "LeafFinder", "Sketcher", "Spending", "publish_calibration", "read_calibration"]

_FILE_OF = {
    "BeamSearch": "search",
    "Calibration": "calibration",
    "LeafFinder": "leaves",
    "Sketcher": "sketch",
    "Spending": "frontier",
    "publish_calibration": "calibration_file",
    "read_calibration": "calibration_file",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: torch and transformers take seconds."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
