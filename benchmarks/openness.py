"""How much is open at depth 0, by cuts alone and with engine/alignment/openness.py: python benchmarks/openness.py

First table: share of teacher tokens whose leaf behind a certain cut, with nothing of the text in it, is open (each token
counts once), and the CPU seconds of that one rule. Second table: share of live mass that is open, and the certified
width, in the mean over all rows of a few documents that a teacher scores. "cuts" counts a leaf as decided only where the
pre-token surely ends inside the teacher's token; "all" is what the engine does (docs/design.md, lemma 15).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.fresh import SHARED, Fresh
from benchmarks.throughput import DEMO, make_scorer
from engine.alignment.openness import Openness
from engine.alignment.rules import Rule, RuleBook, TeacherTokens
from engine.bpe.merges import build_merge_table
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter
from engine.bpe.vocabulary import load_vocabulary
from engine.corpus.document import Document

TEACHERS = ("qwen2.5", "llama-3", "gpt2")
STUDENTS = ("gpt2", "llama-2", "llama-3", "mistral-v0.3", "smollm2")


def by_cuts_alone(*args: object) -> np.ndarray:
    """Stands for `Openness.settle`: leaves the flags as they come."""
    open_ = args[-1]
    assert isinstance(open_, np.ndarray)
    return open_


def token_shares(teacher: str, student: str) -> None:
    tokens = TeacherTokens(load_vocabulary(str(SHARED / "tokenizers" / teacher)))
    vocabulary = load_vocabulary(str(SHARED / "tokenizers" / student))
    merges, splitter = build_merge_table(vocabulary), build_splitter(vocabulary)

    def timed() -> tuple[Rule, float]:
        begin = time.process_time()
        return RuleBook(tokens, Segmenter(vocabulary, merges, splitter)).rule(
            b"", b"", b"", ""
        ), time.process_time() - begin

    with patch.object(Openness, "settle", staticmethod(by_cuts_alone)):
        before, seconds_before = timed()
    after, seconds = timed()
    assert (before.first == after.first).all() and (before.action == after.action).all()
    shares = f"{before.open.mean():8.3f}{after.open.mean():8.3f}"
    print(f"{teacher:14}{student:16}{shares}{seconds_before:10.1f}{seconds:8.1f}", flush=True)


def mass_shares(teacher: Path, students: list[Path], documents: list[Document]) -> None:
    for student in students:
        stats = []
        for name in ("cuts", "all"):
            scorer = make_scorer(str(teacher), [str(student)], 64)
            if name == "cuts":
                with patch.object(Openness, "settle", staticmethod(by_cuts_alone)):
                    stats.append(scorer.score_unit(documents).stats)
            else:
                stats.append(scorer.score_unit(documents).stats)
        shares = [[s[f"student/s0.{k}_sum"] / s["student/s0.scored"] for s in stats] for k in ("open_mass", "err")]
        cells = "".join(f"{before:10.3f}{after:8.3f}" for before, after in shares)
        print(f"{teacher.name:14}{student.name:16}{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--skip-tokens", action="store_true", help="the second table only")
    args = parser.parse_args()
    shared = (SHARED / "models").is_dir()
    if shared and not args.skip_tokens:
        print("share of tokens   student             cuts     all    s cuts   s all")
        for teacher in TEACHERS:
            for student in STUDENTS:
                if teacher != student:
                    token_shares(teacher, student)
    print("share of mass     student             open: cuts  all   err: cuts  all")
    mass_shares(DEMO / "teacher", [DEMO / "student_sp", DEMO / "student_bl"], Fresh([DEMO / "corpus.jsonl"]).take(40))
    if shared:
        documents = Fresh([SHARED / "text/tinystories_sample_2MB.txt"]).take(args.documents)
        mass_shares(SHARED / "models/stories260K", [SHARED / "tokenizers" / s for s in STUDENTS], documents)


if __name__ == "__main__":
    main()
