"""A dict for answers that can be made again. Text brings new keys without end, and an actor may see terabytes."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(dict[K, V]):
    """Forgets everything when it holds `most` keys."""

    def __init__(self, most: int = 100_000) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= self.most:
            self.clear()
        super().__setitem__(key, value)
