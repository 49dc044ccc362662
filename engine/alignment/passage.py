"""One scored text: its tree, and each product's view of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.alignment.boundaries import Boundary
from engine.alignment.refinement import ExactSide
from engine.contexts.tree import ContextTree


@dataclass(slots=True)
class ProductView:
    """One product's view of one document: token ids [n] and their byte ends in the text, the closing end included (if it is
    `closed`), and how its rows are made: boundaries (fast), exact pairs, or neither for the teacher's own tokens."""

    ids: np.ndarray
    ends: np.ndarray
    boundaries: list[Boundary] | None = None
    exact: ExactSide | None = None
    closed: bool = False


@dataclass(slots=True)
class Passage:
    """One document (or part of one) ready to be scored.

    data: the teacher's prefix and the text. states: what `canonical` knows of every node, None when it is not asked.
    kept: bool [nodes], False for contexts that were pruned; None: none was. bad: (reason, detail) once not finite.
    lead: bytes of the prefix. place: (number of the document in the corpus, of the part in the document); what draws hang on.
    """

    tree: ContextTree
    data: bytes
    sides: dict[str, ProductView]
    states: list[Any] | None = None
    kept: np.ndarray | None = None
    bad: tuple[str, str] | None = None
    place: tuple[int, int] = (0, 0)
    lead: int = 0
