"""What is published of a unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class UnitResult:
    """products: "teacher" and "student/<name>" -> table of ROW_SCHEMA. stats: sums that add up over units."""

    products: dict[str, pa.Table]
    quarantine: list[dict[str, Any]]
    stats: dict[str, float]
    continuations: str | None = (
        None  # sha256 of the means that rows were closed by, where they are a file of the output
    )
