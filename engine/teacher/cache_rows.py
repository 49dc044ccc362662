"""The state of single sequences, cut out of a model's cache and put together into another cache.

A cache of transformers is a nest of objects, lists and dictionaries with tensors in it: keys and values, states of convolutions
and of recurrences, counts of tokens. Nothing is known here of single kinds of layers. Every tensor is taken to have the sequences
of the batch in its first dimension; a cache of another form does not come apart and together right, which the start-up comparison
notices (engine/teacher/state_check.py). All that is put together is copied: models change their caches in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

_NOT_ENTERED = (torch.nn.Module, PreTrainedConfig, type, torch.device, torch.dtype)


@dataclass(slots=True)
class Row:
    """One sequence's part of a cache behind `length` tokens. tensors: its rows, first dimension 1, in the order of a walk; form:
    the cache with their numbers in their places."""

    tensors: list[torch.Tensor]
    form: Any
    length: int

    @property
    def bytes(self) -> int:
        """Of the numbers in it."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def lean_on(self, later: Row) -> None:
        """Give up tensors with which those of a later state of the same sequence begin, such as keys and values; they become
        views of the later ones."""
        if len(self.tensors) != len(later.tensors):
            return
        for k, (mine, theirs) in enumerate(zip(self.tensors, later.tensors, strict=True)):
            at = _longer_in(mine, theirs)
            if at is not None and torch.equal(mine, start := theirs.narrow(at, 0, mine.shape[at])):
                self.tensors[k] = start


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the tensor of this number belongs."""

    number: int


def rows_of(cache: Any, length: int) -> list[Row]:
    """The sequences of a cache, in their order, as views of it. length: tokens that each of them has."""
    tensors: list[torch.Tensor] = []

    def take(tensor: torch.Tensor) -> Any:
        tensors.append(tensor)
        return _Place(len(tensors) - 1)

    form = _rebuilt(cache, torch.Tensor, take)
    count = len(tensors[0]) if tensors else 0
    return [Row([t[k : k + 1] for t in tensors], form, length) for k in range(count)]


def joined(rows: Sequence[Row]) -> tuple[Any, bool]:
    """(A cache of these rows, whether they had to be made alike). Tensors of one dimension that differ are filled with zeros
    at its beginning, so that all rows end at the same place; counts are those of the longest row. Raises ValueError where rows
    do not go together otherwise."""
    longest = max(rows, key=lambda row: row.length)
    if any(len(row.tensors) != len(longest.tensors) for row in rows):
        raise ValueError("states of a model hold different tensors behind different numbers of tokens")
    filled = any(row.form is not longest.form and not _alike(row.form, longest.form) for row in rows)
    made = []
    for parts in zip(*(row.tensors for row in rows), strict=True):
        whole = max(parts, key=torch.Tensor.numel)
        for part in parts:
            if part.shape != whole.shape and _longer_in(part, whole) is None:
                raise ValueError(f"states of shapes {tuple(part.shape)} and {tuple(whole.shape)} do not go together")
            filled |= part.shape != whole.shape
        made.append(torch.cat([_filled(part, whole) for part in parts]))
    return _rebuilt(longest.form, _Place, lambda place: made[place.number]), filled


def chosen(cache: Any, rows: Sequence[int], count: int) -> Any:
    """A cache of these rows of a cache that has `count`, perhaps one several times; the cache itself where that is all of it."""
    if list(rows) == list(range(count)):
        return cache

    def take(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_select(0, torch.tensor(rows, device=tensor.device))

    return _rebuilt(cache, torch.Tensor, take)


def _longer_in(short: torch.Tensor, long: torch.Tensor) -> int | None:
    """The one dimension in which the second tensor is longer; None where there is no such."""
    if short.ndim != long.ndim:
        return None
    differ = [d for d, (a, b) in enumerate(zip(short.shape, long.shape, strict=True)) if a != b]
    return differ[0] if len(differ) == 1 and differ[0] > 0 and short.shape[differ[0]] < long.shape[differ[0]] else None


def _filled(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    if part.shape == whole.shape:
        return part
    shape = [b - a if a != b else a for a, b in zip(part.shape, whole.shape, strict=True)]
    return torch.cat([part.new_zeros(shape), part], _longer_in(part, whole) or 0)


def _alike(a: Any, b: Any) -> bool:
    """Whether two forms have the same counts."""
    return list(_counts(a)) == list(_counts(b))


def _counts(form: Any) -> Iterator[int]:
    found: list[int] = []
    _rebuilt(form, int, lambda value: found.append(value) or value)
    yield from found


def _rebuilt(node: Any, kind: type, of: Callable[[Any], Any]) -> Any:
    """A copy of a nest in which everything of `kind` is replaced; tensors without dimensions, of which there is one for the whole
    batch, and what is not a part of the state are left as they are."""
    if isinstance(node, kind):
        return node if isinstance(node, torch.Tensor) and node.ndim == 0 else of(node)
    if isinstance(node, list | tuple):
        return type(node)([_rebuilt(part, kind, of) for part in node])
    if isinstance(node, dict):
        return {key: _rebuilt(part, kind, of) for key, part in node.items()}
    if isinstance(node, _NOT_ENTERED) or not hasattr(node, "__dict__"):
        return node
    made = copy.copy(node)
    vars(made).update({key: _rebuilt(part, kind, of) for key, part in vars(node).items()})
    return made
