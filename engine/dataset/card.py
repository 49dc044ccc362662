"""README.md of an output folder: a Hugging Face dataset card, so that `load_dataset(folder, "student-small")` works."""

from __future__ import annotations

from schemas.manifest import COLUMNS, NOISE_MEAN, NOISE_MOST, REGIMES, SEMANTICS, Manifest, ProductFacts
from schemas.products import STUDENT, TEACHER
from schemas.target import Codec

_EXAMPLES: dict[Codec, str] = {
    "topk": 'logps = np.array(row["topk_logps"]).reshape(len(row["token_ids"]), -1)  # [T, K]',
    "sample": 'counts = np.split(row["sample_counts"], np.cumsum(row["sample_sizes"])[:-1])  # one array a position',
    "hidden": 'bits = np.array(row["hidden"], np.uint16).reshape(len(row["token_ids"]), -1)  # [T, D], bfloat16',
}


def config_name(product: str) -> str:
    """The dataset configuration of a product: 'teacher' or 'student-small' (a slash is not allowed in such names)."""
    return product.replace("/", "-")


def dataset_card(manifest: Manifest) -> str:
    """Markdown with a YAML head: one configuration per product that has files; the first student is the default."""
    stored = sorted(product for product, total in manifest.totals.items() if total.files)
    return f"""---
pretty_name: Teacher targets
tags:
- knowledge-distillation
- targetsmith
{_configs(stored)}---

# Teacher targets

Next-token distributions of a teacher language model, stored sparsely (top-k and tail) over the vocabularies below.
One row is one document; row i of its lists predicts token i given tokens < i. Log-probabilities are in nats.

| configuration | tokenizer | regime | vocabulary | stored | documents | positions | bytes | bytes/position |
|---|---|---|---|---|---|---|---|---|
{_table(manifest)}
{_words(manifest)}
{_notes(manifest)}Documents in the corpus: {manifest.documents:,}, of these in quarantine: {manifest.quarantined:,}.
Made by targetsmith {manifest.engine_version}; fingerprint `{manifest.fingerprint}`.

```python
import numpy as np
import pyarrow.dataset

table = pyarrow.dataset.dataset("data/{_default(stored) if stored else TEACHER}").head(1)
row = table.to_pylist()[0]
{_EXAMPLES[manifest.products[_default(stored)].codec if stored else "topk"]}
```

| column | meaning |
|---|---|
{"".join(f"| `{name}` | {text} |{chr(10)}" for name, text in COLUMNS.items() if name in _columns(manifest))}"""


def _columns(manifest: Manifest) -> set[str]:
    return {name for facts in manifest.products.values() for name in facts.schema_of_rows.names}


def _words(manifest: Manifest) -> str:
    """What the regimes and the semantics in use mean, one line each."""
    facts = manifest.products.values()
    lines = [f"* regime `{word}`: {REGIMES[word]}" for word in sorted({one.regime for one in facts})]
    lines += [f"* semantics `{word}`: {SEMANTICS[word]}" for word in sorted({one.semantics for one in facts})]
    return "\n".join(lines) + "\n"


def _notes(manifest: Manifest) -> str:
    """What was decided about begin and end tokens where the tokenizers' files disagree, and how far the teacher's own values are
    defined; "" where there is nothing to tell."""
    told = [*dict.fromkeys(note for facts in manifest.products.values() for note in facts.notes), *_noise(manifest)]
    return "".join(f"* note: {note}\n" for note in told) + ("\n" if told else "")


def _noise(manifest: Manifest) -> list[str]:
    """Of a teacher in half precision, or with quantised weights; none of others."""
    if NOISE_MOST not in manifest.stats:
        return []
    mean, most = manifest.stats[NOISE_MEAN], manifest.stats[NOISE_MOST]
    return [
        "the teacher is in half precision, or quantised: with other texts in its batch a context's distribution moves by "
        f"{mean:.2g} on average and {most:.2g} at most (total variation, measured at the start)"
    ]


def _default(products: list[str]) -> str:
    """The product that a reader without a wish gets: the first student, else the first of all."""
    return next((product for product in products if product.startswith(STUDENT)), products[0])


def _configs(products: list[str]) -> str:
    if not products:
        return ""
    default = _default(products)
    lines = ["configs:"]
    for product in products:
        lines += [f"- config_name: {config_name(product)}", "  data_files:", "  - split: train"]
        lines += [f"    path: data/{product}/*.parquet"]
        lines += ["  default: true"] if product == default else []
    return "\n".join(lines) + "\n"


def _stored(facts: ProductFacts) -> str:
    """What of a distribution is stored, in words."""
    words = {"topk": f"top {facts.top_k}", "sample": f"{facts.draws} draws", "hidden": f"{facts.hidden_size} numbers"}
    return words[facts.codec]


def _table(manifest: Manifest) -> str:
    lines = []
    for product, total in sorted(manifest.totals.items()):
        facts = manifest.products[product]
        each = f"{total.bytes / total.positions:.1f}" if total.positions else "-"
        lines.append(
            f"| {config_name(product)} | {facts.tokenizer} | {facts.regime} | {facts.vocab_size:,} | {_stored(facts)} | "
            f"{total.rows:,} | {total.positions:,} | {total.bytes:,} | {each} |\n"
        )
    return "".join(lines)
