"""Other readers of the same files: datasets (streaming), polars and ray.data give what engine/reader/targets.py gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.reader.targets import Targets
from tests.support.codecs import TOP_K, write_output


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interop") / "out"
    write_output(out)
    return out


@pytest.fixture(scope="module")
def documents(out: Path) -> dict[str, list[Any]]:
    names = ("student/small", "student/drawn", "teacher", "hidden")
    return {name: list(Targets(out, name).documents()) for name in names}


def test_datasets_streaming(
    out: Path, documents: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, wanted in documents.items():
        files = f"{out}/data/{name}/*.parquet"
        stream = load_dataset(
            "parquet", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path)
        ).with_format("numpy")
        seen = list(stream)
        assert [row["doc_id"] for row in seen] == [document.doc_id for document in wanted]
        for row, document in zip(seen, wanted, strict=True):
            assert np.array_equal(row["token_ids"], document.token_ids)
            if name in ("student/small", "teacher"):
                assert np.array_equal(row["topk_logps"].reshape(-1, TOP_K), document.logps)
                assert np.array_equal(row["topk_ids"].reshape(-1, TOP_K), document.ids)
            for column, values in document.extra.items():
                assert np.array_equal(row[column], values.ravel()), column


def test_polars_scan(out: Path, documents: dict[str, list[Any]]) -> None:
    for name, wanted in documents.items():
        frame = pl.scan_parquet(f"{out}/data/{name}/*.parquet").collect()
        assert frame["doc_row"].to_list() == [document.doc_row for document in wanted]
        for column in ("token_ids", "scored", "flags", "gold_logp", "err"):
            if column in frame.columns:
                joined = np.concatenate([getattr(document, column) for document in wanted])
                assert np.array_equal(frame[column].explode().to_numpy(), joined), column
    drawn = pl.scan_parquet(f"{out}/data/student/drawn/*.parquet")
    per_document = drawn.select(pl.col("sample_sizes").list.sum(), pl.col("sample_ids").list.len()).collect()
    assert (per_document["sample_sizes"] == per_document["sample_ids"]).all()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    from jobs.pool.ray_pool import connect
    from schemas.runfile import RayConfig

    with connect(RayConfig(actors=2)):
        yield


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_data(out: Path, documents: dict[str, list[Any]]) -> None:
    """The example of docs/format.md, and its batches against the documents."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    page = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"OUT": str(out), "TOP_K": TOP_K}
    exec(example, names)
    seen = []
    for batch in names["data"].iter_torch_batches(batch_size=5, collate_fn=names["Padded"]()):
        for row, length, tokens, logps in zip(*(batch[key] for key in batch), strict=True):
            document = documents["student/small"][int(row)]
            assert np.array_equal(tokens[:length].numpy(), document.token_ids)
            assert np.array_equal(logps[:length].numpy(), document.logps)
            seen.append(int(row))
    assert sorted(seen) == list(range(33))
