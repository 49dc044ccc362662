"""The push-forward by compiled functions, for students with large vocabularies: chunks of the teacher's next-token probabilities
and a passage's boundaries as arrays (engine/compiled) in; rows over the student's vocabulary out, or the open leaves that more
teacher evaluations could settle. The slow twin is engine/targets (beam_rows, pushforward) with engine/beam.

Files, in the order of the data:
  push_arrays     the arrays that the functions take and fill
  scratch_arrays  those that one thread works in, and the parts that it makes of boundaries
  push_tables     the states of a compiled pair as tables by teacher id
  workers         threads, and what each works in
  passage_arrays  a passage and a student's view of it as arrays
  row_kernels     compiled: a row of probabilities -> its sums by cells
  split_kernels   compiled: what a leaf gives to which token, and how an open leaf is split
  push_kernels    compiled: rows and single leaves -> the parts that boundaries are made of
  top_k_kernels   compiled: a boundary's masses -> its top-k, tail and gold (`keep`)
  sum_kernels     compiled: parts and sums of rows -> masses -> what is stored
  sums_on_host    the sums of rows in the host's memory, by compiled functions
  device_lists    columns that may not follow a token, on a device
  sums_on_device  the sums of rows on the teacher's device, by tensor operations: the twin
  compiled_push   what is kept of one student from group to group
  compiled_rows   one product of one group, chunk by chunk: rows, or open leaves
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.push.compiled_push import CompiledPush
    from engine.push.compiled_rows import CompiledRows, OpenLeaves

__all__ = ["CompiledPush", "CompiledRows", "OpenLeaves"]

_FILE_OF = {"CompiledPush": "compiled_push", "CompiledRows": "compiled_rows", "OpenLeaves": "compiled_rows"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: torch and numba take seconds."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
