"""Corpora for tests: settings, files of every kind and compression, and reading all of one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.corpus.document import Document
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units
from schemas.errors import CorpusError
from schemas.runfile import CorpusConfig

TEXTS = ["one", "two\n zwei", "drei é 😀", "\ufefffour", "five\x00", "six\r\nlines\r\n"]


def corpus(**settings: object) -> CorpusConfig:
    return CorpusConfig.model_validate({"paths": [] if "dataset" in settings else ["*.*"], **settings})


def read(config: CorpusConfig, folder: Path) -> list[Document]:
    scan = scan_corpus(config, folder)
    units = list(read_units(config, scan, range(scan.n_units)))
    assert [unit for unit, _ in units] == list(scan.units())
    documents = [document for _, documents in units for document in documents]
    assert [document.doc_row for document in documents] == list(range(scan.n_rows))
    assert len({document.doc_id for document in documents}) == len(documents)
    if "duplicate_id" not in problems(documents).values():  # which only reading units can see
        assert sum(file.text_bytes for file in scan.files) == sum(len(document.text.encode()) for document in documents)
    return documents


def problems(documents: list[Document]) -> dict[str, str]:
    """place -> reason; a document with a problem has no text."""
    assert all(document.text == "" for document in documents if document.problem)
    return {document.place: document.problem[0] for document in documents if document.problem}


def refused(config: CorpusConfig, folder: Path) -> str:
    with pytest.raises(CorpusError) as caught:
        read(config, folder)
    return str(caught.value)


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def as_json(texts: list[str]) -> bytes:
    return json.dumps([{"text": text} for text in texts], ensure_ascii=False).encode()


def parquet(table: pa.Table | list[str], rows: int = 2) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table({"text": table}), sink, row_group_size=rows)
    return sink.getvalue().to_pybytes()


def plain(texts: list[str]) -> bytes:
    return "<|>".join(texts).encode()


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


WRITE: dict[str, Callable[[list[str]], bytes]] = {
    "jsonl": jsonl, "ndjson": jsonl, "json": as_json, "parquet": parquet,
    "txt": plain, "md": plain, "tex": plain, "rst": plain,
}  # fmt: skip
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zst}
