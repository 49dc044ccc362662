"""The tokens of each product inside an output, so that it can be read anywhere: a small Parquet file a vocabulary.

    _engine/vocabulary/student/small.parquet     id, bytes, text, role: a row for each id

Written when a run begins (engine/plan/token_files.py), listed in the manifest. Outputs of before 0.7.0 have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from engine.dataset.parquet import open_shard
from engine.dataset.store import Store
from schemas.errors import OutputError
from schemas.manifest import Manifest, Plan, ProductFacts, Sidecar
from schemas.products import BYTES, BYTES_END, HIDDEN, TEACHER
from schemas.target import SCHEMA_NAME, SCHEMA_VERSION

FOLDER = "_engine/vocabulary"
TOKEN_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int32(), nullable=False),
        pa.field("bytes", pa.binary()),  # null: the token stands for no text
        pa.field("text", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
    ]
)
HASH = "targetsmith.tokenizer_hash"
"""Key of the metadata: content hash of the vocabulary, as in the facts of its product."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The tokens of a vocabulary, by id. pieces: what each stands for in a text, None for specials and ids of no token. names:
    for people. roles: text, begin, end, special, none."""

    pieces: Sequence[bytes | None]
    names: Sequence[str]
    roles: Sequence[str]

    @classmethod
    def of_bytes(cls) -> TokenTable:
        """That of the byte product."""
        pieces: list[bytes | None] = [bytes([byte]) for byte in range(BYTES_END)]
        names = [readable(bytes([byte])) for byte in range(BYTES_END)]
        return cls([*pieces, None], [*names, "<end>"], [*["text"] * BYTES_END, "end"])

    def to_bytes(self, tokenizer_hash: str) -> bytes:
        """The file. Equal tables give equal bytes with the same pyarrow."""
        columns = [list(range(len(self.pieces))), list(self.pieces), list(self.names), list(self.roles)]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, TOKEN_SCHEMA, strict=True)]
        metadata = {
            "targetsmith.schema": SCHEMA_NAME,
            "targetsmith.schema_version": str(SCHEMA_VERSION),
            HASH: tokenizer_hash,
        }
        sink = pa.BufferOutputStream()
        writer = pq.ParquetWriter(
            sink,
            TOKEN_SCHEMA,
            compression="zstd",
            use_dictionary=["role"],  # pyright: ignore[reportArgumentType] - names of columns, too, as pyarrow documents
            write_page_checksum=True,
        )
        writer.write_table(pa.table(arrays, schema=TOKEN_SCHEMA))
        writer.add_key_value_metadata(metadata)
        writer.close()
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, data: bytes, place: str, facts: ProductFacts) -> TokenTable:
        """Read back. Raises OutputError for a file that is damaged or of another vocabulary. place: its name, for messages."""
        with open_shard(data, place) as shard:
            table, found = shard.read(), shard.footer.get(HASH)
        size = (table.num_rows, facts.vocab_size)
        if found != facts.tokenizer_hash or table.schema.names != TOKEN_SCHEMA.names or size[0] != size[1]:
            raise OutputError(
                f"{place}: got {size[0]:,} tokens with the hash {str(found)[:12]}; wanted {size[1]:,} with "
                f"{facts.tokenizer_hash[:12]}, as the product has. Remove it and run the same command again"
            )
        if table.column("id").to_pylist() != list(range(table.num_rows)):
            raise OutputError(f"{place}: its ids are not 0, 1, 2 ...; remove it and run the same command again")
        return cls(*(table.column(name).to_pylist() for name in ("bytes", "text", "role")))


def readable(piece: bytes) -> str:
    """Bytes as text, those that are no UTF-8 as \\xNN."""
    return piece.decode("utf-8", errors="backslashreplace")


def owner_of(product: str) -> str:
    """The product whose tokens a product has: hidden states lie at the teacher's."""
    return TEACHER if product == HIDDEN else product


def token_file(product: str) -> str:
    """'_engine/vocabulary/student/small.parquet': the name of a vocabulary in the output."""
    return f"{FOLDER}/{owner_of(product)}.parquet"


def facts_by_owner(products: Mapping[str, ProductFacts]) -> dict[str, ProductFacts]:
    """Each vocabulary of a run once, by the product that it is named after."""
    return {owner_of(product): facts for product, facts in products.items()}


def read_tokens(store: Store, product: str, facts: ProductFacts) -> TokenTable | None:
    """The tokens of a product as the output has them; None where it was made without. Raises OutputError for a damaged file."""
    if product == BYTES:
        return TokenTable.of_bytes()
    name = token_file(product)
    return TokenTable.from_bytes(store.read(name), store.place(name), facts) if store.exists(name) else None


def token_records(store: Store, plan: Plan, manifest: Manifest | None) -> dict[str, Sidecar] | None:
    """The record of each vocabulary for the manifest; None where there is none, or a manifest from before there were any."""
    if manifest is not None and manifest.vocabularies is None:
        return None
    names = {product: token_file(product) for product in facts_by_owner(plan.products)}
    found = {product: Sidecar.of(name, store.read(name)) for product, name in names.items() if store.exists(name)}
    return found or None
