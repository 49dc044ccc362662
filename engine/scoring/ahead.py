"""Prepares the next documents of a unit in a thread, while the teacher works on those before.

documents -> (document, future of its Work), in order. What preparation remembers (engine/bpe, compiled, contexts) is not
thread-safe: `guard` is held while a document is prepared, and by whoever else asks the same objects (slow boundaries,
searches). Compiled functions and the teacher leave Python to this thread while they run.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from engine.corpus.document import Document
from engine.scoring.prepare import prepare
from engine.scoring.stages import Stages
from engine.targets.tables import Work

MOST_DOCUMENTS = 64
MOST_CHARACTERS = 1 << 20
"""Documents, and characters of their texts, that wait prepared at most; the next one always is."""


def prepared_ahead(
    stages: Stages, documents: Sequence[Document]
) -> Generator[tuple[Document, Future[Work]], None, None]:
    """All documents in order, each with its Work; its `result` raises what `prepare` raises. Ends its thread when closed."""
    waiting: deque[tuple[Document, Future[Work]]] = deque()
    waiting_characters, stop = 0, threading.Event()

    def one(document: Document) -> Work:
        if stop.is_set():
            raise RuntimeError("nobody wants this document any more")
        with stages.guard:
            return prepare(stages, document)

    pool = ThreadPoolExecutor(1, thread_name_prefix="prepare")
    try:
        for document in documents:
            waiting.append((document, pool.submit(one, document)))
            waiting_characters += len(document.text)
            while len(waiting) > MOST_DOCUMENTS or (len(waiting) > 1 and waiting_characters > MOST_CHARACTERS):
                waiting_characters -= len(waiting[0][0].text)
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
