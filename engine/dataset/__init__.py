"""The output of a run: tables of a unit go in, files that appear whole or not at all come out, in a folder or on an object
store; and what lies there is read back as typed values. Begun, resumed, published and finished by any number of processes at
once; what is lost is named and made again. Normative text: docs/format.md. No torch, no Ray.

  unit_result   what is published of a unit: tables, quarantine, sums
  posix         a file appears whole under its name, or not at all: by a hard link
  store         where an output lies: a folder, or a prefix of a bucket
  layout        the names of all files; plan, seals, quarantine and manifest read back
  parquet       rows rounded and encoded as a Parquet file, and the one way to open such a file
  sealed        a file as its seal says it is, open for reading
  invariants    what the rows of a product must keep before they are published
  token_tables  the tokens of each product, so that an output can be read anywhere
  sidecars      the two files of a whole run: the calibration, and the teacher's lm_head
  repair        which units lack files, and whether a lost plan may be put back
  commit        begin or resume an output, publish a unit
  finish        all units sealed -> what describes them (engine/card), and the manifest
"""

from engine.dataset.commit import open_output, publish_unit
from engine.dataset.layout import load_manifest, load_plan
from engine.dataset.parquet import open_shard
from engine.dataset.store import Out, Store, open_store
from engine.dataset.unit_result import UnitResult

__all__ = [
    "Out", "Store", "UnitResult", "load_manifest", "load_plan", "open_output", "open_shard", "open_store", "publish_unit",
]  # fmt: skip
