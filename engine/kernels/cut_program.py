"""A pre-tokenizer over characters as instructions for compiled code.

In: the patterns of a `Splitter` and its classes. Out: `CutMachine`, which cuts class strings as the splitter does, some fifty
times as fast. Classes are made while texts are read; the machine takes new ones over when it meets them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.kernels.cut_kernels import CutProgram, ends_of
from engine.kernels.flat import empty_table
from engine.kernels.hash_kernels import put
from engine.kernels.instructions import Code


class CutMachine:
    """Cuts class strings. Not thread-safe.

    codes: for each stage its pattern's instructions; None for the stage of added texts. added: these texts. broken: class of
    an incomplete character. masks, owns: the splitter's lists, which grow.
    """

    def __init__(
        self, codes: Sequence[Code | None], added: Sequence[str], broken: int, masks: list[int], owns: list[str]
    ) -> None:
        self._masks, self._owns = masks, owns
        stage, code = [], []
        for pattern in codes:
            stage.append(-1 if pattern is None else len(code))
            code += pattern or ()
        self._added = frozenset("".join(added))
        keys, nodes, ends, goes_on = _trie(added)
        self.program = CutProgram(
            code=np.array(code or [(0, 0, 0)], np.int32),
            stage=np.array(stage, np.int32),
            masks=np.empty(0, np.int64),
            owns=np.empty(0, np.int32),
            forget=np.empty((0, 0), np.int32),
            broken=broken,
            added_key=keys,
            added_node=nodes,
            added_ends=ends,
            added_goes_on=goes_on,
        )
        self._out = np.empty(256, np.int32)
        self.grow()

    def grow(self) -> None:
        """Take over classes that were made since."""
        known, size = len(self.program.masks), max(64, 2 * len(self._masks))
        masks, owns = np.zeros(size, np.int64), np.zeros(size, np.int32)
        masks[: len(self._masks)] = self._masks
        owns[: len(self._owns)] = [ord(o) if o in self._added else 0 for o in self._owns]
        forget = np.full((size, size), -1, np.int32)
        forget[:known, :known] = self.program.forget[:size, :size]
        self.program = self.program._replace(masks=masks, owns=owns, forget=forget)
        self._seen = len(self._masks)

    def learn(self, before: int, unit: int, kept: int) -> None:
        """Note what is kept of a class behind another: `program.forget`."""
        self.up_to_date()
        if kept >= len(self.program.masks):
            self.grow()
        self.program.forget[before, unit] = kept

    def up_to_date(self) -> CutProgram:
        """The program with all classes."""
        if self._seen != len(self._masks):
            self.grow()
        return self.program

    def ends(self, classes: str, *, final: bool) -> list[int]:
        """Ends of all pre-tokens when the text ends here (final), else of those that are certain."""
        program = self.up_to_date()
        units = np.array(list(map(ord, classes)), np.int32) if len(classes) < 24 else _numbers(classes)
        if len(self._out) < len(units) + 1:
            self._out = np.empty(2 * len(units), np.int32)
        return self._out[: ends_of(program, units, len(units), final, self._out)].tolist()


def _numbers(classes: str) -> np.ndarray:
    return np.frombuffer(bytearray(classes.encode("utf-32-le")), np.int32)


def _trie(added: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(keys, nodes, ends bool [N], goes_on bool [N]) of the trie of texts by code points."""
    keys, nodes = empty_table(sum(map(len, added)) + 1)
    number: dict[str, int] = {"": 0}
    for text in added:
        for i in range(1, len(text) + 1):
            if text[:i] not in number:
                number[text[:i]] = len(number)
                put(keys, nodes, number[text[: i - 1]] << 21 | ord(text[i - 1]), np.int32(number[text[:i]]))
    ends, goes_on = np.zeros(len(number), bool), np.zeros(len(number), bool)
    ends[[number[text] for text in added]] = True
    goes_on[[number[text[:i]] for text in added for i in range(len(text))]] = True
    return keys, nodes, ends, goes_on
