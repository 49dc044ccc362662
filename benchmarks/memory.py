"""Peak extra memory of lm_head, log-softmax, push-forward and top-k at 8192 positions x 152k ids.

python benchmarks/memory.py   prints the growth of the process's peak resident memory while 8192 hidden states are turned
into rows of the teacher's own product, next to what one dense [8192, V] fp32 tensor takes.
"""

from __future__ import annotations

import resource

import numpy as np
import torch

from engine.alignment.passage import Passage, ProductView
from engine.contexts.tree import ContextTree
from engine.scoring.emit import Emitter

POSITIONS, VOCABULARY, HIDDEN, TOP_K = 8192, 151_936, 64, 64


def peak_gib() -> float:
    """Peak resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    torch.manual_seed(0)
    head = torch.randn(VOCABULARY, HIDDEN) * 0.1
    hidden = torch.randn(POSITIONS + 1, HIDDEN)
    spine, nothing, start = np.arange(POSITIONS + 1, dtype=np.int32), np.empty(0, np.int32), np.zeros(1, np.int32)
    tree = ContextTree(spine, spine - 1, spine, spine, spine[1:], 0, nothing, start, nothing, start, nothing, nothing)
    tokens = np.arange(1, POSITIONS + 1) % VOCABULARY
    doc = Passage(tree, b"", {"teacher": ProductView(tokens, tokens)})
    emitter = Emitter({"teacher": TOP_K}, torch.ones(VOCABULARY, dtype=torch.bool), {}, {})
    torch.topk(torch.log_softmax((hidden[:4] @ head.T).double(), -1), TOP_K)  # buffers that any use of torch takes
    before = peak_gib()
    rows = emitter.emit([doc], hidden, lambda h: h @ head.T)["teacher"]
    grown = peak_gib() - before
    dense = POSITIONS * VOCABULARY * 4 / 2**30
    print(f"peak extra memory {grown:.3f} GiB for {POSITIONS} positions x {VOCABULARY} ids (top_k {TOP_K})")
    print(
        f"one dense fp32 tensor of that size: {dense:.2f} GiB; ratio {grown / dense:.3f}; all scored: {bool(rows.scored.all())}"
    )


if __name__ == "__main__":
    main()
