"""How a product is loaded, in five lines each: datasets, polars, and batches for torch. Each block runs as it stands in the
output's folder."""

from __future__ import annotations

from engine.card.markdown import block
from schemas.manifest import ProductFacts
from schemas.products import STUDENT

_ROW = {
    "topk": 'logps = row["topk_logps"].reshape(-1, {k})  # [T, K] nats, beside topk_ids',
    "sample": 'counts = np.split(row["sample_counts"], np.cumsum(row["sample_sizes"])[:-1])  # an array a position',
    "hidden": 'bits = row["hidden"].reshape(-1, {d})  # [T, D] of uint16: bfloat16 without its type',
}
_LISTS = {
    "topk": '"token_ids", "byte_end", "scored", "gold_logp", "tail_logp", "err"',
    "sample": '"token_ids", "byte_end", "scored", "gold_logp", "sample_sizes", "err"',
    "hidden": '"token_ids", "byte_end", "scored"',
}
_BATCH = {
    "topk": 'batch["ids"], batch["logps"], batch["tail_logp"]  # [B, L, K], [B, L, K], [B, L]',
    "sample": 'batch["ids"], batch["counts"]  # [B, L, most tokens of a position]',
    "hidden": 'batch["hidden"]  # [B, L, D], bfloat16',
}


def config_name(product: str) -> str:
    """The dataset configuration of a product: 'teacher' or 'student-small' (a slash is not allowed in such names)."""
    return product.replace("/", "-")


def default_product(products: list[str]) -> str:
    """The product that a reader without a wish gets: the first student, else the first of all."""
    return next((product for product in products if product.startswith(STUDENT)), products[0])


def loading(product: str, facts: ProductFacts) -> str:
    """Markdown: three blocks of code."""
    numbers = {"k": facts.top_k, "d": facts.hidden_size}
    with_datasets = f"""
from datasets import load_dataset{"" if facts.codec != "sample" else chr(10) + "import numpy as np"}

rows = load_dataset("parquet", data_files="data/{product}/*.parquet", split="train").with_format("numpy")
row = rows[0]  # a document; published: load_dataset("ORG/NAME", "{config_name(product)}", split="train")
{_ROW[facts.codec].format(**numbers)}"""
    with_polars = f"""
import polars as pl

columns = [{_LISTS[facts.codec]}]
rows = pl.scan_parquet("data/{product}/*.parquet")  # published: "hf://datasets/ORG/NAME/data/{product}/*.parquet"
positions = rows.select("doc_id", *columns).explode(columns).filter("scored").collect()"""
    with_torch = f"""
from engine.reader import Targets  # or a copy: targetsmith vendor reader kd_reader

for batch in Targets(".", "{product}").batches(4, seed=0):  # published: "hf://datasets/ORG/NAME"
    batch["token_ids"], batch["mask"]  # [B, L]; row i predicts token i
    {_BATCH[facts.codec]}"""
    return "\n".join(block(text.lstrip("\n"), "python") for text in (with_datasets, with_polars, with_torch))
