"""The two files of a whole run that lie beside its shards: their names, which runs have them, and whether they are undamaged.

Who makes and reads them: engine/teacher/lm_head.py, engine/beam/calibration_file.py. Their form: docs/format.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from engine.dataset.layout import seal_name
from engine.dataset.store import Store
from schemas.errors import OutputError
from schemas.manifest import Plan, Seal
from schemas.products import HIDDEN

CALIBRATION = "_engine/continuations.parquet"
"""How the teacher usually goes on behind each of its tokens, from the calibration sample: what open mass is placed by."""
LM_HEAD = "_engine/teacher_head.safetensors"
"""The teacher's lm_head and embedding, beside its hidden states."""
DIGEST = "sha256"
"""Key of the metadata of LM_HEAD: of the tensors in the file."""


def sidecars_of(plan: Plan) -> list[str]:
    """The sidecars that this run has; its actors write them when they start."""
    return [LM_HEAD] * (HIDDEN in plan.products) + [CALIBRATION] * has_calibration(plan)


def has_calibration(plan: Plan) -> bool:
    """Whether the run has open mass to be placed, and a calibration sample to place it by."""
    return bool(plan.units and calibrated_products(plan)) and (plan.calibration_documents or 0) > 0


def calibrated_products(plan: Plan) -> list[str]:
    """Products with open mass that is placed by the calibration: the regimes fast and beam, but for compiled products."""
    made = {product for product, facts in plan.products.items() if facts.regime in ("fast", "beam")}
    return sorted(made - {*plan.compiled_products})


def check_calibration(store: Store, seals: Iterable[Seal], sha256: str) -> None:
    """All units of a run are scored with one calibration file: OutputError when the one there is not that of the seals.

    sha256: of the file that is there.
    """
    for seal in seals:
        if seal.continuations not in (None, sha256):
            raise OutputError(
                f"{store.place(CALIBRATION)}: not the file that {seal_name(seal.unit)} names: one of the two is damaged, or this "
                "one is of another run; remove that one and run `targetsmith score` again: it is made anew, if the same comes out"
            )


def lm_head_fault(data: bytes) -> str | None:
    """Why the bytes of LM_HEAD cannot be what was written; None when they can. Up to 0.5.0 the file had no digest."""
    try:
        header, tensors = header_and_tensors(data)
        wanted = json.loads(header)["__metadata__"].get(DIGEST)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"not readable: {type(error).__name__}: {error}"
    found = hashlib.sha256(tensors).hexdigest()
    if wanted in (None, found):
        return None
    return f"its numbers have the sha256 {found[:12]}…, it says {str(wanted)[:12]}…"


def header_and_tensors(data: bytes) -> tuple[bytes, bytes]:
    """The two parts of a safetensors file: 8 bytes of length, JSON of that length, and the numbers of all tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]
