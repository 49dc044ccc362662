"""Text per second of building context trees, on one core: python -m benchmarks.contexts

For each teacher tokenizer of the shared folder (TARGETSMITH_SHARED, default ../shared), over English prose (TinyStories,
tinyshakespeare, GSM8K): MB/s of text of the tokenizer's own encode, and of trees whose wanted bytes are the boundaries of
a student (gpt2, and a subset of qwen2.5 for qwen2.5) or all bytes. `cold` is a pass with empty caches, which a job pays
once per actor; `warm` the same pass again. Times are CPU seconds of this process, so other load on the machine counts
less. Options: --teacher (repeatable), --megabytes of text, --no-fringe.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from engine.bpe.merges import build_merge_table
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.contexts.builder import ContextBuilder
from schemas.errors import BadDocument

SHARED = Path(os.environ.get("TARGETSMITH_SHARED", "../shared"))
STUDENTS = {"qwen2.5": ("gpt2", "qwen2.5-subset-8000"), "gpt2": ("llama-2",)}


def prose(size: int) -> list[str]:
    """Documents of three kinds, about `size` bytes in all, a third each as far as there is so much."""
    folder = SHARED / "text"
    stories = (folder / "tinystories_sample_2MB.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    plays = (folder / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    scenes = ["\n\n".join(plays[at : at + 8]) for at in range(0, len(plays), 8)]
    rows = [json.loads(line) for line in (folder / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [f"{row['question']}\n{row['answer']}" for row in rows]
    out: list[str] = []
    for kind in ([s.strip() for s in stories], scenes, questions):
        taken = 0
        for text in filter(None, kind):
            if taken > size / 3:
                break
            taken += len(text)
            out.append(text)
    return out


def timed(work: Callable[[], object]) -> float:
    """CPU seconds."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def wanted_of(student: Vocabulary, text: str, shift: int) -> np.ndarray:
    """int32: the student's boundaries in the teacher's byte string."""
    return np.unique(np.array([0, *student.encode(text)[1]], np.int32)) + np.int32(shift)


def build_all(
    builder: ContextBuilder,
    documents: list[tuple[bytes, np.ndarray]],
    wanted: list[np.ndarray],
    bos: tuple[int, ...],
    fringe: bool,
) -> int:
    """Number of nodes of all trees."""
    pairs = zip(documents, wanted, strict=True)
    return sum(len(builder.build(data, ids, places, bos, fringe=fringe).token) for (data, ids), places in pairs)


def measure(name: str, texts: list[str], fringe: bool) -> None:
    """Print one line for each choice of wanted bytes."""
    vocabulary = load_vocabulary(str(SHARED / "tokenizers" / name))
    encoded: list[tuple[str, list[int]]] = []
    for text in texts:
        try:
            encoded.append((text, vocabulary.encode(text)[0]))
        except BadDocument:
            continue  # a text that this tokenizer changes
    kept = [text for text, _ in encoded]
    size = sum(len(text.encode()) for text in kept) / 1e6
    encode = size / timed(lambda: [vocabulary.encode(text) for text in kept])
    merges, splitter = build_merge_table(vocabulary), build_splitter(vocabulary)
    bos = (vocabulary.bos_id or vocabulary.eos_id or 0,)
    shift = len(vocabulary.prefix_bytes)
    choices: list[tuple[str, list[np.ndarray]]] = []
    for student_name in STUDENTS.get(name, ("gpt2",)):
        student = load_vocabulary(str(SHARED / "tokenizers" / student_name))
        choices.append((student_name, [wanted_of(student, text, shift) for text in kept]))
    choices.append(("all bytes", [np.arange(len(text.encode()) + shift + 1, dtype=np.int32) for text in kept]))
    documents = [(vocabulary.prefix_bytes + text.encode(), np.array(ids, np.int32)) for text, ids in encoded]
    for wanted_name, wanted in choices:
        merges.forget()
        splitter.forget()
        builder = ContextBuilder(Segmenter(vocabulary, merges, splitter))
        trees = partial(build_all, builder, documents, wanted, bos, fringe)
        cold, warm = size / timed(trees), size / timed(trees)
        nodes = trees()
        tokens = sum(len(ids) for _, ids in documents)
        print(
            f"{name:22}{wanted_name:22}{size:7.2f}{encode:9.2f}{cold:9.2f}{warm:9.2f}{nodes / tokens:13.2f}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher", action="append", help="name of a folder in shared/tokenizers; default: all of them"
    )
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--no-fringe", action="store_true", help="leave the fringe out")
    args = parser.parse_args()
    names = args.teacher or sorted(path.name for path in (SHARED / "tokenizers").iterdir())
    texts = prose(int(args.megabytes * 1e6))
    print(f"{'teacher':22}{'wanted':22}{'MB':>7}{'encode':>9}{'cold':>9}{'warm':>9}{'nodes/token':>13}   (MB/s)")
    for name in names:
        measure(name, texts, not args.no_fringe)


if __name__ == "__main__":
    main()
