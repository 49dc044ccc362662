"""What a trainer reads a run with: the folder or URL of an output goes in, documents as numpy arrays or batches as torch
tensors come out, in an order that depends on seed and epoch alone, shared out to ranks and workers, resumable at any batch.

This package stands alone: it needs the standard library, pyarrow, numpy, torch, fsspec and filelock (safetensors for the
teacher's head), and imports nothing else of the project. `targetsmith vendor reader DEST` copies it into a trainer, under any
name.

  run_files      what a run's folder or bucket holds: its records, and any file of it
  product_files  the sealed files of a product: found, checked, read by row groups
  remote_files   files of a store in whole ranges, the next ones fetched ahead
  range_cache    these ranges on a local disk: bounded, shared by processes
  row_groups     a row group of a file as flat arrays, and pools of row groups that batches are taken from
  collate        documents of a pool -> the tensors of a batch, padded or packed; masks and inputs for a causal student
  spans          parts of the order of an epoch: shares, and what is left of them
  walk           documents in the order of an epoch -> batches, from any place on
  targets        Targets: the documents and batches of one product of a run
  blend          Blend: several outputs as one, each with its weight
  torch_dataset  TargetsDataset: the same for data loaders, a share for each rank and worker, with exact resume
  row_collator   rows of the shards -> batches for Hugging Face's trainers
  teacher_head   the teacher's lm_head of an output with hidden states
"""

from .blend import Blend
from .collate import Batch, attention_mask, student_feed, student_inputs
from .range_cache import RangeCache
from .row_groups import PAD_ID
from .run_files import TargetsError
from .targets import Document, Targets
from .teacher_head import TeacherHead, teacher_head
from .torch_dataset import TargetsDataset

__all__ = [
    "PAD_ID", "Batch", "Blend", "Document", "RangeCache", "Targets", "TargetsDataset", "TargetsError", "TeacherHead",
    "attention_mask", "student_feed", "student_inputs", "teacher_head",
]  # fmt: skip
