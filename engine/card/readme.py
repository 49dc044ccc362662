"""README.md of an output: a page for people, and a Hugging Face dataset card: `load_dataset(folder, "student-small")` works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import DatasetCardData

from engine.card.headline import Headline, figures_table, sample_note
from engine.card.inputs import Input, checksums
from engine.card.limits import limits
from engine.card.loading import config_name, default_product, loading
from engine.card.markdown import block, code, plain, table
from schemas.manifest import COLUMNS, Manifest, Plan, ProductFacts
from schemas.redact import redacted
from schemas.settings_card import CardConfig

_INTRODUCTION = (
    "Next-token distributions of a teacher language model over the vocabularies below, for distillation without the teacher. "
    "One row is one document; row i of its lists predicts token i given tokens < i. Log-probabilities are in nats."
)


def readme(
    plan: Plan,
    manifest: Manifest,
    said: CardConfig,
    title: str,
    inputs: Sequence[Input],
    run_file: str,
    found: Headline,
) -> str:
    """Markdown with a YAML head: one configuration per product that has files; the first student is the default.

    said: the run file's [card]; run_file: TOML without secrets, "" where it is not known.
    """
    stored = sorted(product for product, total in manifest.totals.items() if total.files)
    names = {product: config_name(product) for product in manifest.products}
    parts = [
        f"---\n{_head(said, title, stored)}\n---\n",
        f"# {plain(title)}\n",
        f"{redacted(said.description).strip()}\n" if said.description else "",
        f"{_INTRODUCTION}\n",
        _products_table(manifest, names),
        f"## Figures\n\n{figures_table(found, names)}",
        sample_note(found)
        + "Width: how far the stored distribution can be from the definition; stored mass: what the stored "
        "tokens hold; top-1 true: how often the likeliest token is the true one.\n",
        f"## Loading\n\n{loading(default_product(stored), manifest.products[default_product(stored)])}"
        if stored
        else "",
        f"## Made from\n\n{_inputs_table(inputs)}",
        block(checksums(plan), "text") if checksums(plan) else "",
        _licences(said),
        _made_by(plan, manifest),
        f"The run file, without the keys that change no result:\n\n{block(run_file, 'toml')}" if run_file else "",
        "## Known limits\n",
        "".join(f"* {line}\n" for line in limits(plan, manifest, found, names)) + _notes(manifest),
        "## Columns\n",
        table(("column", "meaning"), [(code(name), text) for name, text in _columns(manifest)]),
    ]
    return "\n".join(part for part in parts if part)


def _head(said: CardConfig, title: str, stored: Sequence[str]) -> str:
    """YAML by the library."""
    configs = [
        {"config_name": config_name(product), "data_files": [{"split": "train", "path": f"data/{product}/*.parquet"}]}
        | ({"default": True} if product == default_product(list(stored)) else {})
        for product in stored
    ]
    more: dict[str, Any] = {"configs": configs} if configs else {}
    tags = ["knowledge-distillation", "targetsmith"]
    data = DatasetCardData(
        pretty_name=title, license=said.license, language=list(said.language) or None, tags=tags, **more
    )
    return data.to_yaml()


def _products_table(manifest: Manifest, names: dict[str, str]) -> str:
    head = (
        "configuration",
        "tokenizer",
        "regime",
        "vocabulary",
        "stored",
        "documents",
        "positions",
        "bytes",
        "bytes/position",
    )
    rows = []
    for product, total in sorted(manifest.totals.items()):
        facts = manifest.products[product]
        each = f"{total.bytes / total.positions:.1f}" if total.positions else "-"
        numbers = (f"{total.rows:,}", f"{total.positions:,}", f"{total.bytes:,}", each)
        told = (code(names[product]), code(facts.tokenizer), facts.regime, f"{facts.vocab_size:,}", _stored(facts))
        rows.append((*told, *numbers))
    return table(head, rows)


def _stored(facts: ProductFacts) -> str:
    words = {"topk": f"top {facts.top_k}", "sample": f"{facts.draws} draws", "hidden": f"{facts.hidden_size} numbers"}
    return words[facts.codec]


def _inputs_table(inputs: Sequence[Input]) -> str:
    rows = [(plain(one.what), code(one.name), plain(one.revision or "-"), plain(one.content)) for one in inputs]
    return table(("what", "name", "revision", "content"), rows)


def _licences(said: CardConfig) -> str:
    given = {"this dataset": said.license, "the teacher": said.teacher_license, "the corpus": said.corpus_license}
    told = "; ".join(f"of {what}: {plain(text) if text else 'not stated'}" for what, text in given.items())
    authors = f"Authors: {', '.join(plain(name) for name in said.authors)}.\n\n" if said.authors else ""
    return f"{authors}Licence {told}. What may be done with the targets may depend on all three.\n"


def _made_by(plan: Plan, manifest: Manifest) -> str:
    versions = ", ".join(f"{plain(name)} {plain(version)}" for name, version in sorted(manifest.versions.items()))
    retry = plan.retry
    again = f" It scores documents again that the run {code(retry.of)} has in quarantine." if retry else ""
    return (
        f"Documents in the corpus: {manifest.documents:,}, of these in quarantine: {manifest.quarantined:,}.{again} Made by "
        f"targetsmith {plain(manifest.engine_version)} with {versions}; fingerprint {code(manifest.fingerprint)}.\n"
    )


def _notes(manifest: Manifest) -> str:
    """What was decided about begin and end tokens where the tokenizers' files disagree; "" where they agree."""
    told = dict.fromkeys(note for facts in manifest.products.values() for note in facts.notes)
    return "".join(f"* note: {plain(note)}\n" for note in told)


def _columns(manifest: Manifest) -> list[tuple[str, str]]:
    there = {name for facts in manifest.products.values() for name in facts.schema_of_rows.names}
    return [(name, text) for name, text in COLUMNS.items() if name in there]
