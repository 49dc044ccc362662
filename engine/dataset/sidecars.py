"""Files of the whole run: lm_head, calibration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from engine.dataset.layout import seal_name
from engine.dataset.store import Store
from schemas.errors import OutputError
from schemas.manifest import Plan, Seal

MEANS = "_engine/continuations.parquet"
HEAD = "_engine/teacher_head.safetensors"
DIGEST = "sha256"
"""Key of the metadata: of the numbers in the file."""


def learns(plan: Plan) -> bool:
    """Whether the run has open mass to be closed, and a calibration sample for it."""
    return bool(plan.units and heads_of(plan)) and (plan.calibration_documents or 0) > 0


def heads_of(plan: Plan) -> list[str]:
    """Products whose rows are closed by means."""
    return sorted(product for product, facts in plan.products.items() if facts.regime in ("fast", "beam"))


def check_means(store: Store, seals: Iterable[Seal], sha256: str) -> None:
    """All units of a run are closed by the same means. OutputError when these are not those of the seals."""
    for seal in seals:
        if seal.continuations not in (None, sha256):
            raise OutputError(
                f"{store.place(MEANS)}: not the file that {seal_name(seal.unit)} names: one of the two is damaged, or this one "
                "is of another run; remove that one and run `targetsmith score` again: it is made anew, if the same comes out"
            )


def damage(data: bytes) -> str | None:
    """Why the bytes of such a file cannot be what was written; None when they can. Up to 0.5.0 they had no digest."""
    try:
        head, body = _parts(data)
        wanted = json.loads(head)["__metadata__"].get(DIGEST)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"not readable: {type(error).__name__}: {error}"
    found = hashlib.sha256(body).hexdigest()
    return (
        None if wanted in (None, found) else f"its numbers have the sha256 {found[:12]}…, it says {str(wanted)[:12]}…"
    )


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """(JSON, numbers) of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]
