"""Running out of memory: how to recognise it, and in which ever smaller ways a document is tried before it is given up.

A group of documents that does not fit is halved (scorer.py). A document alone is tried with smaller forward passes, down to one
window at a time, then without keys and values kept between rounds. All of these give the same results but for rounding. Only
then it is quarantined as `oom`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)
"""What may be raised when memory runs out; `is_out_of_memory` tells which RuntimeError means that."""
_WORDS = (  # torch has no type of its own for a host without memory, nor for the libraries below it
    "DefaultCPUAllocator", "CUDA error: out of memory", "HIP out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "could not create a memory object",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: on a GPU, in torch on the host, or in NumPy and Arrow."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def first_line(error: BaseException) -> str:
    """What the allocator says, without the advice about its settings in the lines below; at most 300 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def release() -> None:
    """Give back what a failed attempt has left. Call it where no exception of that attempt is alive any more: its traceback
    holds all that the attempt has made."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def smaller_ways(batch_tokens: int, *, nodes: int, longest: int, keeps: bool) -> Iterator[tuple[int, bool]]:
    """(tokens of a forward pass, whether to keep keys and values) to be tried in turn, for a document that has failed.

    nodes: its contexts; longest: tokens of its longest window, below which a smaller pass is no smaller; keeps: whether it
    was tried with keys and values kept.
    """
    size = min(batch_tokens, nodes)
    while size > longest:
        size //= 2
        yield size, keeps
    if keeps:
        yield size, False
