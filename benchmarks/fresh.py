"""Documents that a benchmark has not scored before: a corpus is always new text, and what is remembered of old text flatters.

A folder or file of text -> `Fresh`, which hands out each document once. GSM8K has 8,792 documents (train, then test).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from engine.corpus.document import Document

SHARED = Path(os.environ.get("TARGETSMITH_SHARED", "../shared"))


class Fresh:
    """Documents of some files, in order, each handed out once; a text that stands there twice is handed out once, too."""

    def __init__(self, paths: list[Path]) -> None:
        self.given = 0
        self._texts = _distinct(paths)
        self._names = ", ".join(str(path) for path in paths)

    def take(self, count: int) -> list[Document]:
        """The next `count` documents. Raises SystemExit when there are not so many left."""
        texts = list(islice(self._texts, count))
        if len(texts) < count:
            raise SystemExit(
                f"{self._names}: {self.given} documents were used up and {len(texts)} are left, {count} are wanted: "
                "ask for fewer documents or seconds, or name a larger corpus"
            )
        first, self.given = self.given, self.given + count
        return [Document(str(first + i), first + i, text, "fresh", f"text {first + i}") for i, text in enumerate(texts)]


def gsm8k() -> Fresh:
    """All of GSM8K under TARGETSMITH_SHARED. Raises SystemExit where it is not."""
    paths = [SHARED / "text/gsm8k" / name for name in ("train.jsonl", "test.jsonl")]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise SystemExit(f"no {' and no '.join(missing)}: set TARGETSMITH_SHARED to the folder that has text/gsm8k")
    return Fresh(paths)


def _distinct(paths: list[Path]) -> Iterator[str]:
    seen: set[str] = set()
    for path in paths:
        for text in texts_of(path):
            if text and text not in seen:
                seen.add(text)
                yield text


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a jsonl file (text, or question and answer) or of a text file with <|endoftext|> between documents."""
    if path.suffix != ".jsonl":
        yield from (text.strip() for text in path.read_text(encoding="utf-8").split("<|endoftext|>"))
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield row["text"] if "text" in row else f"{row['question']}\n{row['answer']}"
