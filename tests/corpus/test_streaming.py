"""Hugging Face datasets read where they lie, file by file: in a folder, and on a server that speaks as the Hub does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import datasets.config
import fsspec
import huggingface_hub
import pytest

from engine.corpus import remote
from engine.corpus.scan import scan_corpus
from engine.corpus.units import UnreadUnit, read_units
from schemas.errors import CorpusError
from tests.support.corpora import TEXTS, corpus, parquet, read, refused
from tests.support.hub import COMMIT, hub

CARD = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n"
CARD += b"  - split: test\n    path: more.parquet\n---\n"


def test_a_folder_is_read_as_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_bytes(CARD)
    (folder / "data" / "b.parquet").write_bytes(parquet(TEXTS))
    (folder / "data" / "a.parquet").write_bytes(parquet(["x", "y"]))
    (folder / "more.parquet").write_bytes(parquet(["test"]))
    config = corpus(dataset="set", streaming=True, unit_documents=2)
    loaded = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert [d.text for d in read(config, tmp_path)] == [row["text"] for row in loaded] == ["x", "y", *TEXTS]
    assert [file.label for file in scan_corpus(config, tmp_path).files] == ["set/data/a.parquet", "set/data/b.parquet"]
    assert [d.text for d in read(corpus(dataset="set", streaming=True, split="test"), tmp_path)] == ["test"]
    assert [d.text for d in read(corpus(dataset="set", streaming=True, limit=3), tmp_path)] == ["x", "y", TEXTS[0]]
    told = refused(corpus(dataset="set", streaming=True, split="train[:1]"), tmp_path)
    assert "got the splits train, test" in told and "limit takes less" in told
    assert "cannot be listed" in refused(corpus(dataset="./none", streaming=True), tmp_path)
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    assert "Remove [corpus] streaming" in refused(corpus(dataset="saved", streaming=True), tmp_path)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[dict[str, bytes], list[str]]]:
    """The files of `org/name`, and what is read of them."""
    files: dict[str, bytes] = {"README.md": CARD}
    log: list[str] = []
    with hub(files, log) as url:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template[1] + template[2])
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(remote, "WAITS_S", (0.0,))
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        remote._system.cache_clear()
        yield files, log
        remote._system.cache_clear()
        fsspec.get_filesystem_class("hf").clear_instance_cache()


def test_a_dataset_of_the_hub_is_not_downloaded(served: tuple[dict[str, bytes], list[str]], tmp_path: Path) -> None:
    files, log = served
    many = [f"{i} " + os.urandom(2000).hex() for i in range(300)]
    files["data/a.parquet"], files["data/b.parquet"] = parquet(many, rows=20), parquet(["last"])
    files["more.parquet"] = parquet(["test"])
    config = corpus(dataset="org/name", streaming=True, unit_documents=10)
    scan = scan_corpus(config, tmp_path)
    assert [file.path for file in scan.files] == [
        f"hf://datasets/org/name@{COMMIT}/data/{name}.parquet" for name in "ab"
    ]
    assert scan.files[0].sha256 == hashlib.sha256(files["data/a.parquet"]).hexdigest()
    log.clear()
    again = scan_corpus(config, tmp_path, scan.planned())  # as for a run that goes on
    assert again == scan and not any(line.startswith("data/") for line in log)
    [(_, unit)] = read_units(config, again, [17], unread=True)
    assert isinstance(unit, UnreadUnit) and [document.text for document in unit] == many[170:180]
    assert sum(int(line.split()[1]) for line in log) < 0.4 * len(files["data/a.parquet"])  # most of it footers
    assert [d.text for d in read(corpus(paths=["hf://datasets/org/name/data/*.parquet"]), tmp_path)] == [*many, "last"]
    files["data/a.parquet"] = parquet(many[1:], rows=20)
    with pytest.raises(CorpusError, match=r"data/a\.parquet: changed since the corpus was scanned"):
        list(next(read_units(config, again, [3], unread=True))[1])
