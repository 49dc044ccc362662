"""The JSON beside the shards: plan, seal and manifest. Normative text: docs/format.md.

Plan       what the run is: everything that changes bytes or meaning, how the corpus is cut into units, which
           products there are. Its fingerprint names the run; a folder holds one fingerprint and no other.
Seal       one unit is done: its files (or none), their sizes and sha256. The commit point of the unit.
Manifest   the run is done: every seal in one list, totals, versions. Absent means not finished.

All models are frozen, refuse unknown keys and are written as canonical JSON (sorted keys, no spaces, UTF-8, no NaN).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from schemas.differences import differences
from schemas.plan_inputs import PlannedFile, Retry, corpus_files_of, retry_of, setting
from schemas.products import STUDENT
from schemas.target import MANTISSA_BITS, SCHEMA_NAME, SCHEMA_VERSION, Codec, row_schema

COLUMNS: dict[str, str] = {
    "doc_id": "name of the document, unique in the corpus",
    "doc_row": "position of the document in the corpus, counted over all input files",
    "source": "name of the [[corpus]] table that the document is of",
    "text": "the text; empty when the run stores none",
    "token_ids": "[T] the document's tokens, end token included",
    "byte_end": "[T] byte offset in the text's UTF-8 at which the token ends",
    "scored": "[T] false: the position has no distribution (all of it is tail)",
    "topk_ids": "[T*K] row-major, falling log-probability; -1 fills where fewer than K tokens have mass",
    "topk_logps": "[T*K] nats, beside topk_ids; -inf beside -1",
    "tail_logp": "[T] nats, log of the mass outside the top-k",
    "sample_sizes": "[T] different tokens drawn at the position; 0 where unscored",
    "sample_ids": "[sum of sample_sizes] the tokens drawn, per position by falling count, then rising id",
    "sample_counts": "[sum of sample_sizes] how often each was drawn; their sum per position is the number of draws",
    "hidden": "[T*D] row-major, bfloat16 bits of the state (after the final norm) that predicts the token; 0 where unscored",
    "gold_logp": "[T] nats, log-probability of the token itself; -inf where unscored",
    "err": "[T] width of the certified interval, probability, rounded up",
    "open_mass": "[T] share of live mass whose first token is not yet certain",
    "excluded_mass": "[T] share of mass with no token boundary here, or on tokens that are no text",
    "pruned_mass": "[T] upper bound of the share in contexts not evaluated, rounded up",
    "noncanonical_mass": "[T] share of the mass after this row's contexts on tokens that no text has there",
    "flags": "[T] bits: 1 exact, 2 bounded, 4 budget spent, 8 given (unscored), 16 end token, 32 no mass (unscored), "
    "64 not asked for (unscored: chat template, other roles)",
    "logz": "[T] log of the sum of exp(logit): logit of a token = its log-probability + logz",
    "entropy": "[T] nats, of the row's distribution",
    "logit_std": "[T] standard deviation of the logits over all tokens",
    "logz_scaled": "[T] log of the sum of exp(logit / logit_std) over all tokens",
    "space_logp": "[T] nats, log of the row's mass on tokens that begin with white space, and on specials",
    "end_logp": "[T] nats, log of the row's mass on tokens that end a text or turn",
    "roles": "[T] what the token is: 0 text, 1 begin, 2 end, 3 template",
}
"""One line per column; a footer has those of its product. Row i predicts token i given tokens < i."""

Regime = Literal["own", "same", "subset", "bytes", "fast", "beam", "imported"]
Semantics = Literal["canonical-context", "canonical-masked"]

REGIMES: dict[str, str] = {
    "own": "the teacher's own distributions over its own tokens; exact",
    "same": "the student has the teacher's tokenizer: the teacher's own distributions; exact",
    "subset": "the student's merges are the beginning of the teacher's: exact, all contexts summed up (but those below eps)",
    "bytes": "the next byte at every byte: exact, all contexts summed up (but those below eps)",
    "fast": "any other tokenizer: one step behind each context, open mass closed and bounded by err",
    "beam": "any other tokenizer: open mass split by more teacher evaluations until err is small or they are spent",
    "imported": "rows of another program, as they were: nothing is certified, every width is 1",
}
"""How a product is made: the words of `regime` in the facts of a product."""

SEMANTICS: dict[str, str] = {
    "canonical-context": "contexts are canonical, the next token is as the model gives it",
    "canonical-masked": "each step renormalised over the tokens that keep the text canonical",
}
"""Which probability is meant: the words of `semantics`."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, no NaN; equal values, equal text. ValueError/TypeError on other types."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """Canonical JSON, UTF-8, one final newline: the content of the file."""
        return canonical_json(self.model_dump(mode="json")).encode() + b"\n"


class PlanUnit(_Frozen):
    """A slice of the corpus: documents `doc_row .. doc_row + n_rows`. One unit gives one shard per product."""

    index: int = Field(ge=0, description="0-based; the number in the file names")
    file_index: int = Field(ge=0, description="position of the corpus file in the sorted list of files")
    first_row: int = Field(ge=0, description="first record within that file")
    n_rows: int = Field(ge=1, description="records in the unit")
    doc_row: int = Field(ge=0, description="first record, counted over all files")


class ProductFacts(_Frozen):
    """What a reader must know of one product (the teacher's view, a student, or bytes)."""

    tokenizer: str = Field(description="as named in the run file; for people, not part of the fingerprint")
    tokenizer_hash: str = Field(description="content hash of the vocabulary that the ids belong to")
    vocab_size: int = Field(ge=1, description="ids are in [0, vocab_size)")
    codec: Codec = Field(default="topk", description="what is kept of a distribution: topk, sample, hidden")
    top_k: int = Field(ge=0, description="K: ids and log-probabilities stored per position; 0 unless codec is topk")
    draws: int = Field(default=0, description="codec sample: tokens drawn per position")
    hidden_size: int = Field(default=0, description="codec hidden: numbers per state")
    statistics: bool = Field(default=False, description="the teacher's statistics stand beside its rows")
    sources: bool = Field(
        default=False, description="a mixture: the column `source` is there; without one there is no such key"
    )
    bos_id: int | None = Field(default=None, description="begin token, if the vocabulary has one")
    eos_id: int | None = Field(default=None, description="token that closes a document, if one is appended")
    regime: Regime = Field(description="a word of REGIMES")
    semantics: Semantics = Field(description="a word of SEMANTICS")
    notes: tuple[str, ...] = Field(
        default=(),
        description="where the tokenizers' files disagree about begin and end tokens, and what was done; for people, not part "
        "of the fingerprint; without any there is no such key",
    )

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = dump(self)
        for key in ("notes", "sources"):
            if not getattr(self, key):
                content.pop(key, None)
        return content

    @property
    def schema_of_rows(self) -> pa.Schema:
        """The columns of the product's files."""
        return row_schema(self.codec, self.statistics, self.sources)


class Plan(_Frozen):
    """The whole run as data. Build it with `Plan.make`; equal fingerprints mean the same run."""

    schema_name: str = SCHEMA_NAME
    schema_version: int = SCHEMA_VERSION
    mantissa_bits: int = MANTISSA_BITS
    fingerprint: str = Field(description="sha256 (hex) of the canonical JSON of all other fields")
    semantic: dict[str, Any] = Field(description="everything that changes bytes or meaning, as given by the caller")
    products: dict[str, ProductFacts] = Field(description="keys: teacher, student/<name>, bytes")
    units: tuple[PlanUnit, ...]

    @classmethod
    def make(cls, semantic: Mapping[str, Any], units: Sequence[PlanUnit], products: Mapping[str, ProductFacts]) -> Plan:
        """A plan with its fingerprint.

        `semantic` must be made of JSON values only (nested dict, list, str, int, finite float, bool, None): a Path or a
        model object raises TypeError, so that nothing enters the fingerprint by its `repr`.
        Units must be numbered 0, 1, 2 ... and follow each other without a hole, else ValueError.
        """
        next_row = 0
        for position, unit in enumerate(units):
            if (unit.index, unit.doc_row) != (position, next_row):
                raise ValueError(
                    f"unit {position} of the plan: got index {unit.index}, doc_row {unit.doc_row}; "
                    f"wanted index {position}, doc_row {next_row}: number the units in corpus order, without holes"
                )
            next_row += unit.n_rows
        plain = json.loads(canonical_json(semantic))  # tuples become lists, so a plan equals its reloaded self
        draft = cls(fingerprint="", semantic=plain, products=dict(products), units=tuple(units))
        return draft.model_copy(update={"fingerprint": draft.recompute()})

    @property
    def retry(self) -> Retry | None:
        """The documents that are scored again; None unless this is the plan of a retry. OutputError: damaged."""
        return retry_of(self.semantic)

    @property
    def is_import(self) -> bool:
        """Whether `targetsmith import` made it, and no run file."""
        return "imported" in self.semantic

    @property
    def again(self) -> str:
        """What a person does so that the output gets what it lacks, as part of a message."""
        same = "give the same `targetsmith import` command again"
        return same if self.is_import else "run `targetsmith score` with its run file"

    @property
    def regimes(self) -> dict[str, Regime]:
        """How each student's product is made."""
        return {name: facts.regime for name, facts in self.products.items() if name.startswith(STUDENT)}

    @property
    def has_corpus(self) -> bool:
        """Whether the plan says what its corpus is; one that `verify` makes of a manifest does not."""
        return self.semantic.get("corpus") is not None

    @property
    def corpus_files(self) -> tuple[PlannedFile, ...]:
        """The files of the corpus, in order, as they were when the plan was made. OutputError: absent or damaged."""
        return corpus_files_of(self.semantic)

    def source_of(self, unit: PlanUnit) -> str:
        """The [[corpus]] table that the documents of a unit are of; "" where there is no mixture."""
        files = setting(self.semantic, "corpus", "files")
        return str(files[unit.file_index].get("source", "")) if isinstance(files, list) else ""

    @property
    def engine_version(self) -> str | None:
        """The version of this program that made the plan; None where the plan does not say."""
        return setting(self.semantic, "engine_version")

    @property
    def stores_text(self) -> bool | None:
        """Whether the texts are in the shards, [targets] store_text; None where the plan does not say."""
        stored = setting(self.semantic, "settings", "targets", "store_text")
        return stored if isinstance(stored, bool) else None

    @property
    def calibration_documents(self) -> int | None:
        """[targets] calibration_documents; None where the plan does not say."""
        count = setting(self.semantic, "settings", "targets", "calibration_documents")
        return count if isinstance(count, int) else None

    @property
    def target_error(self) -> float | None:
        """[targets] target_error, where it counts: in a run with a product that compiled functions make in the regime beam."""
        aim = setting(self.semantic, "compiled", "target_error")
        return aim if isinstance(aim, float) else None

    @property
    def compiled_products(self) -> list[str]:
        """Products that compiled functions make; they place no open mass by a calibration."""
        named = setting(self.semantic, "compiled", "products")
        return named if isinstance(named, list) else []

    def recompute(self) -> str:
        """The fingerprint that the content has (a damaged or edited plan.json differs from its `fingerprint` field)."""
        return hashlib.sha256(canonical_json(self._identity()).encode()).hexdigest()

    def _identity(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", exclude={"fingerprint"})
        for facts in content["products"].values():
            del facts["tokenizer"]
            facts.pop("notes", None)
        return content

    def difference(self, other: Plan) -> list[str]:
        """What differs, one line each: `dotted.key: value here -> value in other`. Empty when the runs are the same.

        Long hashes are shortened; a changed cutting into units is one line; at most MAX_DIFFERENCES lines.
        """
        return differences(self._identity(), other._identity())


class ShardFile(_Frozen):
    """One published Parquet file."""

    name: str = Field(description="path relative to the output folder, with /")
    rows: int = Field(ge=1, description="documents")
    positions: int = Field(ge=1, description="token positions, sum of T over the documents")
    bytes: int = Field(ge=1, description="size of the file")
    sha256: str = Field(description="hex digest of the file")


class Seal(_Frozen):
    """One unit is published. `files` has every product of the plan; null where the unit has no good document."""

    schema_name: str = SCHEMA_NAME
    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    unit: int = Field(ge=0)
    quarantined: int = Field(ge=0, description="documents of the unit that are in quarantine instead")
    files: dict[str, ShardFile | None]
    stats: dict[str, float] = Field(
        description="sums over the unit, as counted by the scorer; maxima where the name says so"
    )
    continuations: str | None = Field(
        default=None,
        description="sha256 of the calibration file that open mass was placed by; without one there is no such key",
    )

    @model_serializer(mode="wrap")
    def _without_null(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _dropped(dump(self), "continuations")


class ProductTotal(_Frozen):
    """Sums over all shards of one product."""

    files: int
    rows: int
    positions: int
    bytes: int


class ShardRecord(_Frozen):
    """A seal inside the manifest (without what is the same for all)."""

    unit: int
    quarantined: int
    files: dict[str, ShardFile | None]


class Sidecar(_Frozen):
    """A file of the whole run beside its shards."""

    name: str = Field(description="path relative to the output folder, with /")
    bytes: int = Field(ge=1, description="size of the file")
    sha256: str = Field(description="hex digest of the file")

    @classmethod
    def of(cls, name: str, data: bytes) -> Sidecar:
        """The record of a file with this content."""
        return cls(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


class Manifest(_Frozen):
    """The finished run."""

    schema_name: str = SCHEMA_NAME
    schema_version: int = SCHEMA_VERSION
    mantissa_bits: int = MANTISSA_BITS
    fingerprint: str
    engine_version: str
    versions: dict[str, str] = Field(description="libraries that made the run: name -> version")
    products: dict[str, ProductFacts]
    documents: int = Field(description="documents of the corpus = rows of each product + quarantined")
    quarantined: int
    totals: dict[str, ProductTotal]
    stats: dict[str, float] = Field(description="sums of the statistics of all units")
    shards: tuple[ShardRecord, ...]
    head: Sidecar | None = Field(
        default=None,
        description="lm_head and embedding, only where hidden states are stored; else there is no such key",
    )
    continuations: Sidecar | None = Field(
        default=None, description="the calibration file, only where there is one; else there is no such key"
    )
    vocabularies: dict[str, Sidecar] | None = Field(
        default=None, description="product -> the file of its tokens; before 0.7.0 there is no such key"
    )

    @model_serializer(mode="wrap")
    def _without_null(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _dropped(dump(self), "head", "continuations", "vocabularies")


def _dropped(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Without those of these keys that are null, as files were before there was such a key."""
    return {key: value for key, value in content.items() if value is not None or key not in keys}


MAXIMUM = "_max"
"""Statistics whose names end so are the largest value, not a sum."""

NOISE_MEAN, NOISE_MOST = "teacher_noise_mean_max", "teacher_noise_max"
"""Of a teacher whose distributions hang on what else is in a batch: total variation between two batches, the mean over the
contexts of the trial at the start of an actor, and the largest; of the noisiest actor."""


def add_stats(into: dict[str, float], stats: Mapping[str, float]) -> None:
    """Put one unit's statistics to those of others."""
    for name, value in stats.items():
        if name.endswith(MAXIMUM):
            into[name] = max(into.get(name, value), value)
        else:
            into[name] = into.get(name, 0.0) + value
