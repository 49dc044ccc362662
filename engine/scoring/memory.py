"""Want of memory: how it shows, and the ever smaller ways in which one document is tried before it is given up.

A group of documents that does not fit is halved (scoring/scorer.py). A document alone is tried with smaller forward passes,
down to one window at a time, then without keys and values kept between rounds. The results of all of these are the same but
for rounding. Only then it is quarantined as `oom`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)
"""What want of memory may be raised as; ask `is_out_of_memory` about a RuntimeError."""
_WORDS = (  # torch has no type of its own for a host without memory, nor for the libraries below it
    "DefaultCPUAllocator", "CUDA error: out of memory", "HIP out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "could not create a memory object",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: on a GPU, in torch on the host, or in NumPy and Arrow."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def told(error: BaseException) -> str:
    """The first line of what the allocator says; the rest is advice about its settings."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def free() -> None:
    """Give back what a failed attempt has left. Call it where no exception of that attempt is alive any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def smaller(batch_tokens: int, *, nodes: int, longest: int, keeps: bool) -> Iterator[tuple[int, bool]]:
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
