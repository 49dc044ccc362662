"""The corpus that a run file names, against the plan of an output, and document by document against what is stored.

    corpus files ─ scan ─▶ names, sha256, records, units: those of the plan?  ─▶ per sealed unit: every record, stored or in
    quarantine, under its own name and with its own text?

The teacher is not needed. Where the output stores no texts, their lengths are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from engine.corpus.document import Document, refusal
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units
from engine.dataset.layout import claim_name, load_plan, read_quarantine
from engine.dataset.parquet import open_shard
from engine.dataset.store import Out, Store, open_store
from engine.plan.retry import read_retried
from engine.verify.findings import Finding, short
from engine.verify.records import sound_seals
from schemas.counts import counted
from schemas.manifest import PlanUnit, Seal
from schemas.plan_inputs import PlannedFile
from schemas.runfile import RunConfig

_COLUMNS = ["doc_id", "doc_row", "text", "byte_end"]


def compare_corpus(out: Out, run: RunConfig, *, damaged: Collection[str]) -> tuple[str, list[Finding]]:
    """(what was compared, findings). damaged: files of the output that are not to be read. Raises CorpusError where the corpus
    cannot be read, and OutputError."""
    store, plan = open_store(out), load_plan(out)
    scan = scan_corpus(run.corpus, run.base_dir)
    wrong = list(_files(scan.planned(), plan.corpus_files))
    told = f"corpus: {counted(len(scan.files), 'file')}, {counted(scan.n_rows, 'record')}"
    if wrong:
        return f"{told}: not those of the plan, so no document was compared", wrong
    seals = sound_seals(store, plan, damaged)
    if plan.retry is not None:
        units = read_retried(run.corpus, scan, plan.retry.rows, seals)
    else:
        units = read_units(run.corpus, scan, seals)
    count = 0
    for unit, documents in units:
        count += len(documents)
        wrong += _unit(store, plan.units[unit.index], seals[unit.index], documents, bool(plan.stores_text))
    return f"{told}, as in the plan; {counted(count, 'document')} compared with what is stored of them", wrong


def _files(found: Sequence[PlannedFile], wanted: Sequence[PlannedFile]) -> Iterator[Finding]:
    mine, theirs = {file.label: file for file in found}, {file.label: file for file in wanted}
    for label in sorted(theirs.keys() - mine.keys()):
        yield Finding(_named(label), "missing", f"the corpus file with sha256 {theirs[label].sha256[:12]}… of the plan")
    for label in sorted(mine.keys() - theirs.keys()):
        yield Finding(_named(label), "a file that the run does not have", f"{counted(len(theirs), 'file')} of the plan")
    for label in sorted(mine.keys() & theirs.keys()):
        here, there = asdict(mine[label]), asdict(theirs[label])
        names = ["sha256"] if here["sha256"] != there["sha256"] else ["text_bytes", "unit_rows"]
        names = ["n_rows", *names]
        if any(here[name] != there[name] for name in names):
            told = [", ".join(f"{name} {_shown(file[name])}" for name in names) for file in (here, there)]
            yield Finding(_named(label), told[0], f"{told[1]}, as in the plan")


def _shown(value: Any) -> str:
    return short(list(value) if isinstance(value, tuple) else value, 20)


def _named(label: str) -> str:
    return f"corpus file {label!r}"


def _unit(
    store: Store, unit: PlanUnit, seal: Seal, documents: Sequence[Document], text_stored: bool
) -> Iterator[Finding]:
    """Every document of a unit. Those that are in neither place are a finding of engine/verify/output.py."""
    name = next((file.name for file in seal.files.values() if file is not None), "")
    stored = {row["doc_row"]: row for row in _rows(store, name)} if name else {}
    refused = {record["doc_row"]: record for record in read_quarantine(store, unit.index)}
    for doc_row, document in enumerate(documents, unit.doc_row):
        if doc_row in stored:
            yield from _stored(name, stored[doc_row], document, text_stored)
        elif doc_row in refused:
            yield from _refused(claim_name(unit.index), refused[doc_row], document)


def _stored(file: str, row: dict[str, Any], document: Document, text_stored: bool) -> Iterator[Finding]:
    place = f"{document.source}, {document.place}"
    if document.problem is not None:
        reason, detail = document.problem
        yield Finding(file, "scored", f"in quarantine: {reason}: {short(detail)} ({place})", row["doc_id"])
        return
    if row["doc_id"] != document.doc_id:
        found, wanted = f"doc_id {row['doc_id']!r}", f"{document.doc_id!r} ({place})"
        yield Finding(file, found, wanted, row["doc_id"], column="doc_id")
    if document.is_written_by_template:
        if text_stored and not _stand_in_order([message.content for message in document.messages], row["text"]):
            found = "a text without some of the messages, or in another order"
            yield Finding(file, found, f"all of them ({place})", row["doc_id"], column="text")
        return
    size, ends = len(document.text.encode()), row["byte_end"]
    if text_stored and row["text"] != document.text:
        pairs = enumerate(zip(row["text"], document.text, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(row["text"]), len(document.text)))
        found, wanted = (repr(text[at : at + 20]) for text in (row["text"], document.text))
        yield Finding(file, f"{found} from character {at} on", f"{wanted} ({place})", row["doc_id"], column="text")
    elif ends and ends[-1] != size:
        yield Finding(file, f"{ends[-1]} bytes of text", f"{size} ({place})", row["doc_id"], column="byte_end")


def _stand_in_order(contents: list[str], text: str) -> bool:
    at = 0
    for content in (content.strip() for content in contents):  # a template may strip what it writes with calls
        found = text.find(content, at)
        if found < 0:
            return False
        at = found + len(content)
    return True


def _refused(file: str, record: dict[str, Any], document: Document) -> Iterator[Finding]:
    said = (record["reason"], record["detail"])
    wanted = refusal(document, *(document.problem or said))
    for key in ("doc_id", "source", "place", "text_sha256", "reason", "detail"):
        if record[key] != wanted[key]:
            found, told = short(record[key], 80), short(wanted[key], 80)
            yield Finding(file, found, f"{told}, as the corpus has it", record["doc_id"], column=key)


def _rows(store: Store, name: str) -> list[dict[str, Any]]:
    with store.open(name) as data, open_shard(data, store.place(name)) as shard:
        return shard.read(_COLUMNS).to_pylist()
