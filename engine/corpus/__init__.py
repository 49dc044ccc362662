"""The documents of a run: files or a Hugging Face dataset go in, as the table [corpus] names them; out come work units and their
documents, each a text or a conversation with its name, or the problem why it cannot be scored. Files are read as
streams, from disks and stores; the same corpus is cut into the same units on every machine.

Files, in the order of the data:
  document      a document, a unit of documents, and the quarantine record of a refused one
  remote        files of object stores, the Hub and web servers: what tells their versions apart, and streams
  compressed    the bytes of a file, plain, .gz, .zst, .xz, .bz2; one that is cut off is an error
  source        a file as its name tells: where it lies, its format and compression
  files         globs -> paths and URLs, the names that doc ids give them, their sizes and hashes
  encodings     texts in other encodings than UTF-8 -> UTF-8
  tables        rows of .csv, .tsv, Parquet and Arrow files
  archives      samples of .tar archives
  values        a value of a column in words, and the problem with one that cannot be used
  thinking      how many characters of an assistant's content are its thoughts
  messages      a conversation in any of the forms of data sets -> messages
  pretokenized  ids of tokens, maybe with labels -> their text, and which of it is scored
  columns       one record -> text or conversation, and its name, or a problem
  json_files    objects of JSON files: lines, objects over several lines, lists
  records       the records of one file, one after another, of any of the formats
  huggingface   a Hugging Face dataset as a corpus file, or as the files that it consists of
  mixture       several sources: which records of each are taken
  cut           the sizes of records -> work units
  scan          the whole corpus, read once -> its files and units
  units         units -> documents; the first documents as a sample
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.corpus.document import Document, Message, Unit, refusal
    from engine.corpus.scan import CorpusScan, scan_corpus
    from engine.corpus.units import read_units, sample

__all__ = ["CorpusScan", "Document", "Message", "Unit", "read_units", "refusal", "sample", "scan_corpus"]

_FILE_OF = {
    "CorpusScan": "scan",
    "Document": "document",
    "Message": "document",
    "Unit": "document",
    "read_units": "units",
    "refusal": "document",
    "sample": "units",
    "scan_corpus": "scan",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: pyarrow takes a moment."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
