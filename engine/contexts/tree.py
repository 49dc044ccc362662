"""The tree of a document's teacher contexts, as arrays: what every later step reads, without torch.

Made by contexts/builder.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NO_NODE = -1


@dataclass(frozen=True, slots=True, eq=False)
class ContextTree:
    """Nodes 0..N-1: BOS tokens, then the trunk in order, then branches; parents before children. `given` is the node of
    the given context (the last BOS token, or the first token of the text when there is no BOS).

    All int32. token, parent (-1 for roots), end (bytes of prefix + text), depth: [N]. trunk: [n] nodes. places: [P]
    wanted bytes, rising. Contexts that end at places[i]: at_node[at_start[i]:at_start[i + 1]]. Fringe of places[i], in
    the same way: (fringe_node, fringe_token), canonical contexts not in the tree whose continuations may cross the byte.
    """

    token: np.ndarray
    parent: np.ndarray
    end: np.ndarray
    depth: np.ndarray
    trunk: np.ndarray
    given: int
    places: np.ndarray
    at_start: np.ndarray
    at_node: np.ndarray
    fringe_start: np.ndarray
    fringe_node: np.ndarray
    fringe_token: np.ndarray

    def at_bytes(self, places: Sequence[int]) -> list[list[int]]:
        """For each byte the nodes of the contexts that end there; [] for a byte that was not wanted."""
        found, nodes = self._spans(places, self.at_start), self.at_node.tolist()
        return [nodes[a:b] for a, b in found]

    def fringes(self, places: Sequence[int]) -> list[list[tuple[int, int]]]:
        """For each byte (node, token) of its fringe; [] for a byte that was not wanted."""
        found = self._spans(places, self.fringe_start)
        hanging = list(zip(self.fringe_node.tolist(), self.fringe_token.tolist(), strict=True))
        return [hanging[a:b] for a, b in found]

    def _spans(self, places: Sequence[int], start: np.ndarray) -> list[tuple[int, int]]:
        if not len(self.places):
            return [(0, 0)] * len(places)
        asked = np.asarray(places)
        i = np.minimum(np.searchsorted(self.places, asked), len(self.places) - 1)
        here = self.places[i] == asked
        return list(zip((start[i] * here).tolist(), (start[i + 1] * here).tolist(), strict=True))
