"""croissant.json of an output: its files with sizes and sha256, and the columns of each product, for catalogues and for loaders
that read Croissant 1.1 (JSON-LD). Made of the manifest; nothing is read.

Parquet files are named one by one, up to MOST_FILES of them; of a larger run by patterns alone, since a list of that length is
`_engine/manifest.json` once more.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from engine.card.loading import config_name
from schemas.manifest import COLUMNS, Manifest, canonical_json
from schemas.redact import redacted
from schemas.settings_card import CardConfig

MOST_FILES = 10_000
PARQUET = "application/x-parquet"
_CONTEXT: dict[str, Any] = {  # that of the standard
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_TYPES = {
    pa.string(): "sc:Text",
    pa.bool_(): "sc:Boolean",
    pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64",
    pa.uint8(): "cr:UInt8",
    pa.uint16(): "cr:UInt16",
    pa.float32(): "cr:Float32",
}


def croissant(manifest: Manifest, said: CardConfig, title: str) -> str:
    """JSON with a final newline. said: the run file's [card]."""
    stored = sorted(product for product, total in manifest.totals.items() if total.files)
    described = f"{redacted(said.description).strip()}\n\n" if said.description else ""
    content: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": title,
        "description": f"{described}Next-token distributions of a teacher language model over the vocabularies of students. "
        f"Made by targetsmith {manifest.engine_version}; fingerprint {manifest.fingerprint}. See README.md.",
        "distribution": [*_files(manifest), *(_file_set(product) for product in stored)],
        "recordSet": [_record_set(manifest, product) for product in stored],
    }
    if said.license:
        content["license"] = said.license
    if said.language:
        content["inLanguage"] = list(said.language)
    if said.authors:
        content["creator"] = [{"@type": "sc:Person", "name": name} for name in said.authors]
    return canonical_json(content) + "\n"


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    shards = [file for shard in manifest.shards for file in shard.files.values() if file is not None]
    sidecars = [*(manifest.vocabularies or {}).values(), manifest.head, manifest.continuations]
    records = [(file.name, file.bytes, file.sha256) for file in shards] if len(shards) <= MOST_FILES else []
    records += sorted((file.name, file.bytes, file.sha256) for file in sidecars if file is not None)
    return [_file(*record) for record in dict.fromkeys(records)]  # a vocabulary is named once for each of its products


def _file(name: str, size: int, sha256: str) -> dict[str, Any]:
    kind = PARQUET if name.endswith(".parquet") else "application/octet-stream"
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _file_set(product: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"files-{config_name(product)}",
        "name": f"files of {product}",
        "encodingFormat": PARQUET,
        "includes": f"data/{product}/*.parquet",
    }


def _record_set(manifest: Manifest, product: str) -> dict[str, Any]:
    name, facts = config_name(product), manifest.products[product]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"One record is one document, its tokens those of {facts.tokenizer}. Regime {facts.regime}, "
        f"{facts.semantics}.",
        "key": {"@id": f"{name}/doc_id"},
        "field": [_field(name, column) for column in facts.schema_of_rows],
    }


def _field(record_set: str, column: pa.Field) -> dict[str, Any]:
    is_list = pa.types.is_list(column.type)
    found = {
        "@type": "cr:Field",
        "@id": f"{record_set}/{column.name}",
        "name": column.name,
        "description": COLUMNS[column.name],
        "dataType": _TYPES[column.type.value_type if is_list else column.type],
        "source": {"fileSet": {"@id": f"files-{record_set}"}, "extract": {"column": column.name}},
    }
    return found | ({"isArray": True, "arrayShape": "-1"} if is_list else {})
