"""Whether an output is what docs/format.md says: an output goes in, and with a run file its corpus and the live teacher beside
it; findings come out, each with file, document, position, what was found and what was wanted. Nothing is written. A damaged
file is a finding and stops nothing else.

  findings    a finding, and the report of a whole output
  records     plan, manifest and quarantine, each against the others
  rows        the rows of one row group: invariants, precision, flags, texts
  shard_file  one Parquet file against its seal, its unit and its product
  sidecars    the calibration file and the teacher's lm_head
  tokens      the files of the products' tokens
  catalogue   croissant.json against the manifest
  output      a whole output, from the plan down to every row
  corpus      every stored or quarantined document against the corpus files
  compare     stored rows beside rows that were made again, in numbers
  rescore     documents scored once more by the live teacher, or without tolerance (loads the teacher: import it from its file)
"""

from engine.verify.findings import Finding, Report
from engine.verify.output import verify

__all__ = ["Finding", "Report", "verify"]
