"""What scoring a unit of documents gives, and what is published of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class UnitResult:
    """A scored unit.

    products            product -> its table, a row per document, in the columns of its codec (schemas/target.py, `row_schema`)
    quarantine          a record for each document that is in no table (docs/format.md, section 5)
    stats               sums that add up over units
    calibration_sha256  of the calibration file that open mass was placed by; None: no such file took part
    """

    products: dict[str, pa.Table]
    quarantine: list[dict[str, Any]]
    stats: dict[str, float]
    calibration_sha256: str | None = None
