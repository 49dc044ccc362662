"""A dict for answers that can be made again: when it is full it forgets all of them and goes on.

Text brings new keys without end and one process may see terabytes of it, so whatever is remembered about text is kept in one of
these. Forgetting changes no answer, only the time until it is known again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(dict[K, V]):
    """Holds at most `most` keys or, with `weight`, values that weigh at most `most` together; one heavier value is held alone.

    together: other caches that hold what this one holds, or depend on it; they are emptied with it when it is full.
    size: what is held now. cleared: how often it was full.
    """

    def __init__(
        self,
        most: int = 100_000,
        *,
        weight: Callable[[V], int] | None = None,
        together: tuple[dict[Any, Any], ...] = (),
    ) -> None:
        super().__init__()
        self.most, self.weight, self.together = most, weight, together
        self.size = self.cleared = 0

    def __setitem__(self, key: K, value: V) -> None:
        if self.weight is None:
            if len(self) >= self.most:
                self._give_up()
            self.size = len(self) + 1
        else:
            size = self.weight(value)
            if self.size + size > self.most:
                self._give_up()
            self.size += size
        super().__setitem__(key, value)

    def charge(self, weight: int) -> None:
        """Count what was hung on a value after it was stored."""
        self.size += weight

    def clear(self) -> None:
        """Forget everything here, and nothing elsewhere."""
        super().clear()
        self.size = 0

    def _give_up(self) -> None:
        self.clear()
        for other in self.together:
            other.clear()
        self.cleared += 1
