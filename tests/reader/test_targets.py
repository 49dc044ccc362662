"""The stand-alone reader, and the other ways to read an output: all that docs/format.md promises to a trainer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.layout import load_plan
from engine.dataset.parquet import round_rows
from engine.dataset.store import open_store
from engine.dataset.token_tables import TokenTable, token_file
from engine.reader import Targets, TargetsError, product_files
from engine.reader import row_groups as row_groups_module
from engine.reader import targets as targets_module
from schemas import target
from schemas.manifest import COLUMNS
from tests.support.tables import quarantine_record, small_plan, unit_tables

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: 3 units of 100 documents, top-8 of 262,144 ids (bytes: top-4), documents 150, 151 in quarantine."""
    out = tmp_path_factory.mktemp("reader") / "out"
    plan = small_plan(rows=100, vocab_size=262_144, with_bytes=True)
    open_output(out, plan)
    for unit in plan.units:
        without = (150, 151) if unit.index == 1 else ()
        bad = [quarantine_record(row) for row in without]
        publish_unit(out, plan, unit.index, unit_tables(plan, unit.index, without=without), bad, {})
    facts = plan.products["student/small"]
    count = facts.vocab_size
    tokens = TokenTable([b"a"] * count, ["a"] * count, ["text"] * count).to_bytes(facts.tokenizer_hash)
    open_store(out).put_if_absent(token_file("student/small"), tokens)
    finish(out, plan, engine_version="test", describe=describe)
    return out


def copy_of(out: Path, folder: Path) -> Path:
    return Path(shutil.copytree(out, folder / "copy"))


def test_constants_are_those_of_the_schema() -> None:
    assert (targets_module.SCHEMA_NAME, targets_module.PAD_ID) == (target.SCHEMA_NAME, target.PAD_ID)
    assert target.SCHEMA_VERSION in targets_module.SCHEMA_VERSIONS
    assert row_groups_module.FLAG_CONTEXT == target.FLAG_CONTEXT
    assert row_groups_module.STATISTICS == target.STATISTIC_COLUMNS
    for codec, columns in product_files._CODECS.items():
        schema = target.row_schema(codec, True)  # pyright: ignore[reportArgumentType]
        assert {*product_files._COLUMNS, *columns} <= {*schema.names}
        for column in schema:
            plain = pa.list_(column.type.value_type) if pa.types.is_list(column.type) else column.type
            assert row_groups_module._TYPES[column.name] == plain


@pytest.mark.parametrize("name", ["kd_reader", "engine"])
def test_the_folder_works_alone_under_any_name(name: str, finished: Path, tmp_path: Path) -> None:
    """Copied into an empty folder it reads a run, and no module of the project is loaded but those of the copy."""
    shutil.copytree(Path(targets_module.__file__).parent, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
import sys
from {name} import Targets, TargetsDataset, student_inputs
batches = list(TargetsDataset(Targets({str(finished)!r}), 4))
assert all(student_inputs(batch, 1).shape == batch["mask"].shape for batch in batches)
tops = {{module.partition(".")[0] for module in sys.modules}}
assert tops & {{"engine", "schemas", "jobs", "kd_reader"}} == {{{name!r}}}
assert sys.modules[{name!r}].__file__.startswith({str(tmp_path)!r})
print(sum(int(batch["lengths"].sum()) for batch in batches))
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == Targets(finished).positions


@pytest.mark.parametrize("name", ["teacher", "student/small", "bytes"])
def test_documents_are_what_was_published(finished: Path, name: str) -> None:
    plan = load_plan(finished)
    targets, facts = Targets(finished, name, verify=True), plan.products[name]
    for key in ("top_k", "vocab_size", "regime", "semantics"):
        assert getattr(targets, key) == getattr(facts, key)
    documents = iter(targets.documents())
    for unit in plan.units:
        table = round_rows(unit_tables(plan, unit.index, without=(150, 151) if unit.index == 1 else ())[name])
        for row in table.to_pylist():
            document = next(documents)
            assert (document.doc_id, document.text) == (row["doc_id"], row["text"])
            for key in (
                "token_ids", "byte_end", "scored", "tail_logp", "gold_logp", "err", "flags",
                "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass",
            ):  # fmt: skip
                assert getattr(document, key).tolist() == row[key], key
            assert document.ids.shape == (len(row["token_ids"]), facts.top_k)
            assert document.ids.ravel().tolist() == row["topk_ids"]
            assert document.logps.ravel().tolist() == row["topk_logps"]
    assert next(documents, None) is None


@pytest.mark.parametrize("max_length", [None, 7])
def test_batches_are_the_padded_documents(finished: Path, max_length: int | None) -> None:
    targets = Targets(finished)  # one student: no name needed
    documents = list(targets.documents())
    assert targets.product == "student/small" and len(documents) == targets.rows == 298
    start = 0
    for batch in targets.batches(16, max_length=max_length):
        members = documents[start : start + 16]
        start += 16
        lengths = [min(len(d.token_ids), max_length or 10**9) for d in members]
        assert batch["lengths"].tolist() == lengths
        assert batch["ids"].shape == (len(members), max(lengths), 8) == batch["logps"].shape
        assert (batch["ids"].dtype, batch["logps"].dtype, batch["mask"].dtype) == (
            torch.int64,
            torch.float32,
            torch.bool,
        )
        for row, (document, length) in enumerate(zip(members, lengths, strict=True)):
            cut = {key: tensor[row, :length].numpy() for key, tensor in batch.items() if tensor.ndim > 1}
            rest = {key: tensor[row, length:] for key, tensor in batch.items() if tensor.ndim > 1}
            assert np.array_equal(cut["token_ids"], document.token_ids[:length])
            assert np.array_equal(cut["ids"], np.where(document.ids[:length] < 0, 0, document.ids[:length]))
            assert np.array_equal(cut["mask"], document.scored[:length])
            for key in ("logps", "tail_logp", "gold_logp", "err"):
                assert np.array_equal(cut[key], getattr(document, key)[:length])
            assert not rest["mask"].any() and not rest["ids"].any() and not rest["token_ids"].any()
            assert rest["logps"].eq(-torch.inf).all() and not rest["tail_logp"].any() and not rest["err"].any()
    assert start >= 298


@pytest.mark.parametrize("limit", [0.0, 0.05, 1.0, np.inf])
def test_max_width_only_takes_positions_out_of_the_mask(finished: Path, limit: float) -> None:
    """Row by row against the stored columns: everything else stays, and what is left out is counted."""
    narrow, found, before = Targets(finished, max_width=limit), [], 0
    for document, whole in zip(narrow.documents(), Targets(finished).documents(), strict=True):
        wanted = [bool(s) and float(e) <= limit for s, e in zip(whole.scored, whole.err, strict=True)]
        assert document.scored.tolist() == wanted and whole.left_out == 0
        assert document.left_out == whole.scored.sum() - sum(wanted)
        for key in ("token_ids", "ids", "logps", "tail_logp", "gold_logp", "err", "flags", "byte_end"):
            assert np.array_equal(getattr(document, key), getattr(whole, key)), key
        found.append((wanted, document.left_out))
        before += int(whole.scored.sum())
    kept, left_out = sum(sum(wanted) for wanted, _ in found), sum(count for _, count in found)
    assert kept + left_out == before and (0 < kept < before if limit == 0.05 else kept == before * (limit > 0))
    masks = [
        (m, n) for b in narrow.batches(16) for m, n in zip(b["mask"].tolist(), b["left_out"].tolist(), strict=True)
    ]
    assert [(mask[: len(wanted)], count) for (mask, count), (wanted, _) in zip(masks, found, strict=True)] == found
    short = [int(n) for batch in narrow.batches(16, max_length=3) for n in batch["left_out"]]
    wholes = Targets(finished).documents()
    assert short == [int((d.scored[:3]).sum()) - sum(w[:3]) for d, (w, _) in zip(wholes, found, strict=True)]


def test_max_width_is_compared_without_rounding(finished: Path) -> None:
    """float32 would take a limit just below a stored width for that width."""
    widths = np.concatenate([d.err[d.scored] for d in Targets(finished).documents()])
    stored = float(np.sort(widths)[len(widths) // 2])
    for limit, inside in ((stored, True), (np.nextafter(stored, 0.0), False)):
        kept = sum(int(d.scored.sum()) for d in Targets(finished, max_width=float(limit)).documents())
        assert kept == (widths <= stored).sum() - (0 if inside else (widths == stored).sum())


@pytest.mark.parametrize("limit", [-0.1, float("nan"), -float("inf")])
def test_a_width_that_is_none_is_refused(finished: Path, limit: float) -> None:
    with pytest.raises(ValueError, match="wanted a number >= 0"):
        Targets(finished, max_width=limit)


def test_shuffle_is_a_permutation_and_repeats_by_seed(finished: Path) -> None:
    def order(seed: int | None) -> list[tuple[int, ...]]:
        targets = Targets(finished)
        return [
            tuple(row[:length].tolist())
            for batch in targets.batches(7, seed=seed)
            for row, length in zip(batch["token_ids"], batch["lengths"], strict=True)
        ]

    plain, first, second = order(None), order(1), order(2)
    assert order(1) == first and first != second and first != plain
    assert sorted(first) == sorted(second) == sorted(plain)
    where = [plain.index(document) for document in first]
    assert np.abs(np.corrcoef(where, np.arange(len(where)))[0, 1]) < 0.2


def test_wrong_questions_get_plain_answers(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match="product 'nobody'; this run has bytes, student/small, teacher"):
        Targets(finished, "nobody")
    with pytest.raises(TargetsError, match="no output of targetsmith"):
        Targets(tmp_path)
    with pytest.raises(ValueError, match="batch_size 0"):
        next(Targets(finished).batches(0))


def test_unfinished_run_only_when_asked_for(finished: Path, tmp_path: Path) -> None:
    out = copy_of(finished, tmp_path)
    (out / "_engine" / "manifest.json").unlink()
    (out / "_engine" / "shards" / "00001.json").unlink()
    with pytest.raises(TargetsError, match=r"not finished \(2 of 3 units\).*allow_partial=True"):
        Targets(out)
    assert len(list(Targets(out, allow_partial=True).documents())) == 200


def test_damage_is_found(finished: Path, tmp_path: Path) -> None:
    out = copy_of(finished, tmp_path)
    path = Targets(out).files[1]
    whole = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(7)
    broken = bytearray(whole)
    broken[column.data_page_offset + 200] ^= 1  # size and footer stay right
    path.write_bytes(bytes(broken))
    with pytest.raises(TargetsError, match="damaged or unreadable"):
        list(Targets(out).documents())
    with pytest.raises(TargetsError, match="sha256"):
        list(Targets(out, verify=True).batches(4))
    path.write_bytes(whole[:-100])
    with pytest.raises(TargetsError, match="sealed with"):
        list(Targets(out).documents())
    path.unlink()
    with pytest.raises(TargetsError, match="missing"):
        list(Targets(out).documents())
    foreign = Targets(out, "teacher").files[1].read_bytes()
    path.write_bytes(foreign)
    targets = Targets(out)
    record = next(file for file in targets._main.records if out / file["name"] == path)
    record["bytes"] = len(foreign)
    with pytest.raises(TargetsError, match="a file of another run"):
        list(targets.documents())


def test_unit_without_rows_is_skipped_by_all_readers(tmp_path: Path) -> None:
    plan, out = small_plan(units=2, rows=2), tmp_path / "out"
    open_output(out, plan)
    bad = [quarantine_record(0), quarantine_record(1)]
    publish_unit(out, plan, 0, unit_tables(plan, 0, without=(0, 1)), bad, {})
    publish_unit(out, plan, 1, unit_tables(plan, 1), [], {})
    finish(out, plan, engine_version="test", describe=describe)
    assert [document.doc_id for document in Targets(out).documents()] == ["corpus.jsonl#2", "corpus.jsonl#3"]
    assert len(list(Targets(out).batches(2, seed=3))) == 1
    assert pl.read_parquet(f"{out}/data/teacher/*.parquet").height == 2


def test_the_examples_of_the_format_page_run_as_they_stand(finished: Path) -> None:
    page = (ROOT / "docs" / "format.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 12
    card = re.findall(r"```python\n(.*?)```", (finished / "README.md").read_text(), re.DOTALL)
    code = "\n".join(blocks) + "\nimport os\nos.chdir(OUT)\n" + "\n".join(card)
    code += f"\nassert logps.shape == ({len_of_first(finished)}, 8) and positions.height and batch"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(finished.parent / "hf"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code],
        cwd=finished.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def len_of_first(out: Path) -> int:
    return len(next(Targets(out).documents()).token_ids)


def test_the_format_page_names_every_column_key_and_flag(finished: Path) -> None:
    page = (ROOT / "docs" / "format.md").read_text()
    columns = re.findall(r"^\| `(\w+)` \| (?:string|int64|list)", page, re.MULTILINE)
    assert columns == list(COLUMNS)
    for codec in ("topk", "sample", "hidden"):
        names = target.row_schema(codec, codec == "topk").names
        assert [name for name in columns if name in names] == names
    for key in pq.read_metadata(Targets(finished).files[0]).metadata:
        assert key == b"ARROW:schema" or f"`{key.decode()}`" in page
    flags = {value for name, value in vars(target).items() if name.startswith("FLAG_")}
    assert {int(bit) for bit in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == flags


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_batches_arrive_on_the_gpu(finished: Path) -> None:
    targets = Targets(finished)
    for here, there in zip(targets.batches(8, seed=0), targets.batches(8, seed=0, device="cuda"), strict=True):
        assert all(torch.equal(here[key], there[key].cpu()) and there[key].is_cuda for key in here)
