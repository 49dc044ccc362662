"""What a trainer reads a run with: the folder or URL of an output goes in, documents as numpy arrays or batches as torch
tensors come out, in an order that depends on seed and epoch alone, shared out to ranks and workers, resumable at any batch.

This package stands alone: it needs the standard library, pyarrow, numpy, torch and fsspec, and imports nothing else of the
project. `targetsmith vendor reader DEST` copies it into a trainer, under any name.

  run_files      the sealed files of a run, on a disk or an object store: found, checked, opened
  row_groups     a row group of a file as flat arrays, and pools of row groups that batches are taken from
  collate        documents of a pool -> the tensors of a batch, padded or packed; masks and inputs for a causal student
  targets        Targets: the documents and batches of one product of a run
  torch_dataset  TargetsDataset: the same for data loaders, a share for each rank and worker, with exact resume
"""

from .collate import Batch, attention_mask, student_feed, student_inputs
from .row_groups import PAD_ID
from .run_files import TargetsError
from .targets import Document, Targets
from .torch_dataset import TargetsDataset

__all__ = [
    "PAD_ID", "Batch", "Document", "Targets", "TargetsDataset", "TargetsError", "attention_mask", "student_feed",
    "student_inputs",
]  # fmt: skip
