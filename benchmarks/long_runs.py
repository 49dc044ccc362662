"""What long unbroken runs cost, seconds for 10,000 characters: python -m benchmarks.long_runs

Ten real tokenizers as students of one teacher whose forward is free (benchmarks/free_teacher.py). Documents of `=`, spaces,
newlines, zeros, letters, CJK and Thai without spaces of two lengths are prepared (tokens, contexts, canonical tokens, boundaries:
all that is made of a text before the teacher is asked). The first document of a kind is not timed: it finds what is new.
Prints seconds for 10,000 characters at both lengths (equal: time is linear in the run), for each tokenizer and kind.
"""

from __future__ import annotations

import argparse
import random
import time
from itertools import islice
from pathlib import Path
from typing import cast

import torch

from benchmarks.free_teacher import FreeTeacher
from benchmarks.fresh import SHARED, texts_of
from benchmarks.host import folder_of
from benchmarks.real_pair import Settings, run_of
from engine.corpus.document import Document
from engine.kernels.jit import compile_all
from engine.plan.regimes import regimes_of
from engine.plan.vocabularies import load_vocabularies
from engine.scoring.prepare import prepare
from engine.scoring.stages import derive_stages
from engine.teacher.model import Teacher
from schemas.errors import BadDocument

STUDENTS = (
    "deepseek-llm-7b", "qwen2.5", "llama-3", "gpt2", "gpt-neox-20b", "o200k_base", "starcoder2", "llama-2", "mistral-v0.3",
    "jamba-v0.1",
)  # fmt: skip
KINDS = {
    "=": "=", "spaces": " ", "newlines": "\n", "zeros": "0", "letters": "abcdefghijklmnopqrstuvwxyz",
    "base64": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", "minified": "(){}[];,.=+-*/<>!&|ab1",
    "white": " \t\n",
    "cjk": "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生", "thai": "กขคงจชดตถทนบปผพมยรลวสหอา",
}  # fmt: skip


def document(kind: str, size: int, number: int) -> Document:
    """One line with a run."""
    run = "".join(random.Random(size + number).choices(KINDS[kind], k=size))
    return Document(f"{kind}{size}", number, f"Title\n{run}\nend.", "runs.jsonl", f"line {number}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", default=",".join(STUDENTS))
    parser.add_argument("--teacher", default="smollm2")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--sizes", default="2000,10000", help="characters of a run, comma between")
    args = parser.parse_args()
    torch.set_num_threads(1)
    compile_all()
    sizes = [int(size) for size in args.sizes.split(",")]
    for name in args.students.split(","):
        run = run_of(Settings(name="runs", teacher=folder_of(args.teacher), students=(folder_of(name),)))
        known = load_vocabularies(run)
        texts = islice(texts_of(Path(SHARED) / "text/gsm8k/test.jsonl"), 50)
        free = cast(Teacher, FreeTeacher(known.teacher, texts))
        stages = derive_stages(run, known, free, regimes_of(run, known.teacher, known.students))
        for kind in args.kinds.split(","):
            told = []
            try:
                prepare(stages, document(kind, 5000, 0))
                for number, size in enumerate(sizes):
                    begin = time.process_time()
                    prepare(stages, document(kind, size, number))
                    told.append(f"{(time.process_time() - begin) * 10_000 / size:8.2f}")
            except BadDocument as error:
                told.append(error.reason)
            print(f"{name:18}{kind:10}{''.join(told)}", flush=True)


if __name__ == "__main__":
    main()
