"""A text ready to be scored: its context tree, and each product's tokens of it with what their rows are made from.

Made by scoring/prepare.py of a document, or of a part of one; the one thing that teacher, beam and targets work on, passage
beside passage in a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.alignment.boundaries import Boundary
from engine.alignment.refinement import ExactPairs
from engine.alignment.student_view import StudentView
from engine.contexts.illegal import IllegalLists
from engine.contexts.tree import ContextTree


@dataclass(slots=True)
class ProductView:
    """One product's tokens of one passage, and how their rows are made.

    ids: int64 [n], token ids, the closing end included if the passage is `closed`. ends: int64 [n], byte of the text where each
    token ends. boundaries: for the regimes fast and beam, one for each token; student: the same as arrays, where the
    pair is compiled. exact: for subsets and bytes. None of these: the product has the teacher's own tokens.
    """

    ids: np.ndarray
    ends: np.ndarray
    boundaries: list[Boundary] | None = None
    student: StudentView | None = None
    exact: ExactPairs | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class HungContexts:
    """Contexts that a search has hung off a passage's own: the last X of its tree. Their tokens are not the text's.

    text: uint8, one string behind the other, for each context some bytes of the text before the place where it leaves the text,
    and the bytes of its tokens. shift: int64 [X], byte x of the string that context i ends is text[x + shift[i]]. begin: int64
    [X], the first x that is there.
    """

    text: np.ndarray
    shift: np.ndarray
    begin: np.ndarray


@dataclass(slots=True)
class Passage:
    """One document, or one scored part of it.

    tree: the teacher's contexts, N of them. data: the teacher's prefix and the text, bytes; lead: how many of them are prefix.
    views: by product. illegal: for each context the tokens that may not follow, None when nobody asks.
    place: (number of the document in the corpus, of the part in the document); random draws depend on it. hung: the contexts
    at the end of the tree that a search has added, None before one.

    Set while it is scored: kept, bool [N], False for contexts that pruning left out (None: none was); bad, (reason, detail) of
    the first distribution that was not finite, None while all were.
    """

    tree: ContextTree
    data: bytes
    views: dict[str, ProductView]
    illegal: IllegalLists | None = None
    kept: np.ndarray | None = None
    bad: tuple[str, str] | None = None
    place: tuple[int, int] = (0, 0)
    lead: int = 0
    hung: HungContexts | None = None
