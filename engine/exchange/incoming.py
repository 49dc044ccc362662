"""What another program stored -> an output of regime `imported`, by the house's own commit protocol: killed at any moment,
the same command goes on where it stopped.

    source ─ cut into units ─▶ plan ─▶ per unit: readings ─▶ rows, quarantine ─▶ publish ─▶ manifest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.bpe.vocabulary import Vocabulary
from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.parquet import round_rows
from engine.dataset.store import Out, open_store
from engine.dataset.token_tables import token_file
from engine.exchange.documents import Tokens, document_of, table_of
from engine.exchange.parquet_files import digest
from engine.exchange.reading import Reading
from engine.exchange.source import Source
from engine.plan.make_plan import ENGINE_VERSION
from engine.plan.token_files import token_table
from engine.verify.rows import sums_of
from schemas.errors import BadDocument, RunFileError
from schemas.manifest import Manifest, Plan, PlanUnit, ProductFacts
from schemas.products import STUDENT, TEACHER
from schemas.redact import redacted

UNIT_VALUES = 1 << 24
"""Entries of rows in a unit at most, unless one record alone has more: what memory holds is some tens of bytes of each."""
UNIT_DOCUMENTS = 4096


@dataclass(frozen=True, slots=True)
class Incoming:
    """A source with the tokenizer that its ids are of, as what will be the only product of an output."""

    form: str
    source: Source
    vocabulary: Vocabulary
    tokenizer: str  # as it was named
    product: str

    @property
    def facts(self) -> ProductFacts:
        return ProductFacts(
            tokenizer=redacted(self.tokenizer),
            tokenizer_hash=self.vocabulary.content_hash,
            vocab_size=self.vocabulary.size,
            top_k=self.source.top_k,
            bos_id=self.vocabulary.bos_id,
            eos_id=self.vocabulary.eos_id,
            regime="imported",
            semantics="canonical-context",
            notes=(
                f"imported from files of {self.form}, which say nothing of: widths (stored as 1, no certificate), shares of mass "
                "(stored as 0), texts (none); a tail that they lack is 1 - the sum of the row, a true token's log-probability "
                "that they lack is -inf",
            ),
        )


def open_incoming(form: str, source: Source, vocabulary: Vocabulary, tokenizer: str, product: str | None) -> Incoming:
    """Raises RunFileError: a tokenizer that is not the one that the files name, a product of another kind, rows
    without entries."""
    named, hash_of = source.said.get("tokenizer"), source.said.get("tokenizer_hash")
    if hash_of not in (None, vocabulary.content_hash):
        raise RunFileError(
            f"--tokenizer {tokenizer}: hash {vocabulary.content_hash[:12]}, the files are of {named}, {str(hash_of)[:12]}; name "
            "that"
        )
    chosen = product or source.said.get("product") or TEACHER
    if chosen != TEACHER and not (
        chosen.startswith(STUDENT) and chosen.removeprefix(STUDENT).replace("-", "").isalnum()
    ):
        raise RunFileError(
            f"--product {chosen}: rows over tokens are {TEACHER} or {STUDENT}NAME, with a name of letters, digits and -; give one"
        )
    if source.top_k < 1:
        raise RunFileError(f"{source.files[0].path}: no row has an entry; there is nothing to read")
    return Incoming(form, source, vocabulary, tokenizer, chosen)


def plan_of(incoming: Incoming) -> Plan:
    """The plan of the output. Reads all files once, for their checksums."""
    semantic = {
        "engine_version": ENGINE_VERSION,
        "imported": {"form": incoming.form, "files": incoming.source.digests()},
        "settings": {"targets": {"store_text": False}},
    }
    return Plan.make(semantic, list(_units(incoming.source)), {incoming.product: incoming.facts})


def import_all(incoming: Incoming, out: Out, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Make the output, or what is missing of it. progress: (units that are done, all).

    Raises CorpusError for damaged files and ids that the tokenizer does not have, OutputError for an output that cannot be
    written or is another's. What is published stays.
    """
    store, plan, facts = open_store(out), plan_of(incoming), incoming.facts
    done = set(open_output(store, plan))
    table = token_table(incoming.vocabulary, facts)
    store.put_if_absent(token_file(incoming.product), table.to_bytes(facts.tokenizer_hash))
    tokens = Tokens.of(facts, table, incoming.vocabulary.prefix_bytes)
    for number, unit in enumerate(plan.units):
        if unit.index not in done:
            _publish(store, plan, unit, incoming, tokens)
        if progress is not None:
            progress(number + 1, len(plan.units))
    return finish(store, plan, engine_version=ENGINE_VERSION, describe=describe)


def _publish(out: Out, plan: Plan, unit: PlanUnit, incoming: Incoming, tokens: Tokens) -> None:
    file = incoming.source.files[unit.file_index]
    rows, quarantine, taken = [], [], set[str]()
    records = incoming.source.read(unit.file_index, unit.first_row, unit.n_rows)
    for number, readings in enumerate(records, unit.first_row):
        doc_row, place = unit.doc_row + number - unit.first_row, f"record {number}"
        doc_id = _name(readings, file.names) or f"{file.label}#{number}"
        try:
            if doc_id in taken:
                raise BadDocument("duplicate_id", f"another record of the unit is {doc_id!r}")
            rows.append(document_of(readings, tokens, doc_id, doc_row, f"{file.path}, {place}"))
            taken.add(doc_id)
        except BadDocument as bad:
            quarantine.append(
                {
                    "doc_id": doc_id,
                    "doc_row": doc_row,
                    "source": file.label,
                    "place": place,
                    "reason": bad.reason,
                    "detail": bad.detail,
                    "text_sha256": None,
                }
            )
    facts = tokens.facts
    made = table_of(rows, facts.schema_of_rows)
    stats: dict[str, Any] = {
        "documents": unit.n_rows,
        "quarantined": len(quarantine),
        "teacher_tokens": sum(len(row["token_ids"]) for row in rows),
        "teacher_evaluations": 0,
        "text_bytes": sum(int(row["byte_end"][-1]) for row in rows),
    }
    if rows:
        sums = sums_of(round_rows(made), facts)
        stats |= {f"{incoming.product}.{name}": value for name, value in sums.items()}
    publish_unit(out, plan, unit.index, {incoming.product: made}, quarantine, stats)


def _name(readings: list[Reading], names: Mapping[str, str]) -> str:
    """Of the document: as the record says, else by its tokens, whatever the order of the records is now; "": not known."""
    if len(readings) != 1:
        return ""
    return readings[0].name or names.get(digest(readings[0].token_ids_T), "")


def _units(source: Source) -> Iterator[PlanUnit]:
    """Records of a file in a row, as many as a unit may have; the same cut for the same files."""
    index = doc_row = 0
    for number, file in enumerate(source.files):
        first = values = 0
        for row, tokens in enumerate(file.tokens.tolist()):
            size = tokens * source.top_k
            if row > first and (values + size > UNIT_VALUES or row - first >= UNIT_DOCUMENTS):
                yield PlanUnit(index=index, file_index=number, first_row=first, n_rows=row - first, doc_row=doc_row)
                index, doc_row, first, values = index + 1, doc_row + row - first, row, 0
            values += size
        if (left := len(file.tokens) - first) > 0:
            yield PlanUnit(index=index, file_index=number, first_row=first, n_rows=left, doc_row=doc_row)
            index, doc_row = index + 1, doc_row + left
