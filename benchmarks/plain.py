"""What a cache of the teacher's own top-k costs: the floor that all regimes are measured against.

Documents -> token ids -> one forward pass of the teacher (batched by length, no mask) -> lm_head -> float32 log-softmax ->
top-k. No contexts beside the text's own tokens, no student, nothing written.
"""

from __future__ import annotations

import numpy as np
import torch

from engine.bpe.vocabulary import Vocabulary
from engine.corpus.document import Document
from engine.teacher.model import Teacher
from engine.teacher.packing import Window
from engine.teacher.windows import OwnedWindow, batches

ROWS_BYTES = 24_000_000
"""Of one table of logits, as the engine makes them: a larger one leaves the processor's caches."""


@torch.inference_mode()
def plain(teacher: Teacher, vocabulary: Vocabulary, documents: list[Document], *, top_k: int, batch_tokens: int) -> int:
    """Tokenize, evaluate and take the top-k of every token; returns how many tokens there were."""
    encoded = vocabulary.tokenizer.encode_batch([document.text for document in documents], add_special_tokens=False)
    windows = []
    for one in encoded:
        ids = np.array(one.ids, np.int32)
        at = np.arange(len(ids), dtype=np.int32)
        windows.append(OwnedWindow(Window(ids, at - 1, at), at.astype(np.int64), np.ones(len(ids), bool)))
    rows = max(1, ROWS_BYTES // 4 // teacher.vocab_rows)
    for batch in batches(windows, batch_tokens):
        for hidden_nD in teacher.hidden([windows[i].window for i in batch]):
            for part_RD in hidden_nD.split(rows):
                torch.topk(torch.log_softmax(teacher.logits(part_RD), -1), min(top_k, teacher.vocab_rows))
    return sum(len(one.ids) for one in encoded)
