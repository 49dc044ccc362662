"""Export and import of what they cannot take: one line with the next step, and nothing left where there was nothing."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.layout import read_quarantine
from engine.exchange.formats import FORMS
from engine.plan.make_plan import ENGINE_VERSION
from engine.reader import Targets
from engine.verify import verify
from jobs.look.options import Form
from schemas.errors import FingerprintMismatch
from tests.support.exchanged import TOKENIZER, exported, imported, random_output, vocabulary
from tests.support.faults import Call, contents
from tests.support.runs import ASSETS
from tests.support.tables import publish_all, quarantine_record, small_plan, unit_tables


@pytest.fixture
def out(tmp_path: Path) -> Path:
    random_output(tmp_path / "out")
    return tmp_path / "out"


def refused(call: Call, code: int, words: str, *arguments: object) -> None:
    got, said, err = call(*arguments)
    assert got == code and not said, (got, said, err)
    assert words in err and err.count("\n") == 1, err


def one_row(
    folder: Path, logps: list[list[float]], ids: list[list[int]] | None = None, tokens: list[int] | None = None
) -> Path:
    """A TRL dataset with these rows behind a begin token, a record each."""
    folder.mkdir(exist_ok=True)
    ids = ids or [list(range(10, 10 + len(row))) for row in logps]
    tokens = tokens or [20] * len(logps)
    table = pa.table(
        {
            "input_ids": [[1, token] for token in tokens],
            "topk_token_ids": [[[0], row] for row in ids],
            "topk_logprobs": [[[-np.inf], row] for row in logps],
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    return folder


# ---- export


def test_exports_that_are_refused(out: Path, tmp_path: Path, call: Call) -> None:
    dest = tmp_path / "dest"
    assert set(get_args(Form)) == set(FORMS)  # the command line lists them without loading them
    for given in ((), ("--to", "nemo")):
        code, _, err = call("export", out, dest, *given)
        assert code == 2 and "'--to'" in err and all(form in err for form in FORMS), err
    refused(call, 1, "so not an output of targetsmith; name", "export", tmp_path, dest, "--to", "trl")
    refused(
        call, 2, "no product 'other'; this run has student/sp", "export", out, dest, "--to", "trl", "--product", "other"
    )
    refused(call, 2, "leave it out (distillkit, megatron have it)", "export", out, dest, "--to", "trl", "--length", 8)
    refused(call, 1, "name a folder, and copy it there", "export", out, "s3://bucket/dest", "--to", "trl")
    refused(call, 1, "make it first", "export", out, tmp_path / "no" / "dest", "--to", "trl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    refused(call, 1, "something lies there already", "export", out, tmp_path / "full", "--to", "trl")
    (out / "_engine/manifest.json").unlink()
    refused(call, 1, "the run is not finished: 2 of 2 units", "export", out, dest, "--to", "trl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "out"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_output_leaves_no_folder(form: str, out: Path, tmp_path: Path, call: Call) -> None:
    shard = sorted((out / "data/student/sp").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[300] ^= 1
    shard.write_bytes(bytes(data))
    refused(call, 1, f"{shard}: damaged", "export", out, tmp_path / "dest", "--to", form)
    shard.unlink()
    refused(call, 1, f"{shard}: missing", "export", out, tmp_path / "dest", "--to", form)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_several_products_want_a_name_and_some_cannot_be_written(tmp_path: Path, call: Call) -> None:
    plan = small_plan(units=1, with_bytes=True, vocab_size=2**17 + 1)
    open_output(tmp_path / "out", plan)
    publish_all(tmp_path / "out", plan)
    finish(tmp_path / "out", plan, engine_version=ENGINE_VERSION, describe=describe)
    dest = tmp_path / "dest"
    code, said, _ = call("export", tmp_path / "out", dest, "--to", "axolotl")
    assert code == 0 and "student/small for Axolotl" in said and "lost: the tail" in said  # the only student
    refused(call, 1, "17 bits", "export", tmp_path / "out", tmp_path / "m", "--to", "megatron", "--product", "teacher")


def test_an_output_without_a_document(tmp_path: Path, call: Call) -> None:
    plan = small_plan(units=1, rows=2)
    open_output(tmp_path / "out", plan)
    tables = unit_tables(plan, 0, without=(0, 1))
    publish_unit(tmp_path / "out", plan, 0, tables, [quarantine_record(0), quarantine_record(1)], {"documents": 2})
    finish(tmp_path / "out", plan, engine_version=ENGINE_VERSION, describe=describe)
    refused(call, 1, "all 2 are in quarantine", "export", tmp_path / "out", tmp_path / "dest", "--to", "trl")


# ---- import


def test_imports_that_are_refused(out: Path, tmp_path: Path, call: Call) -> None:
    dest, back, given = tmp_path / "dest", tmp_path / "back", ("--tokenizer", TOKENIZER)
    exported(out, "axolotl", dest)
    code, _, err = call("import", "nemo", dest, back, *given)
    assert code == 2 and all(form in err for form in FORMS), err
    refused(call, 2, "nothing that is there", "import", "axolotl", tmp_path / "nowhere", back, *given)
    refused(call, 2, "no columns topk_token_ids, topk_logprobs", "import", "trl", dest, back, *given)
    refused(call, 2, "no columns compressed_logprobs", "import", "distillkit", dest, back, *given)
    refused(call, 2, "wanted files *.tar", "import", "megatron", dest, back, *given)
    refused(call, 2, "name that", "import", "axolotl", dest, back, "--tokenizer", ASSETS / "student_bl")
    refused(call, 2, "give one", "import", "axolotl", dest, back, *given, "--product", "hidden")
    assert not back.exists()
    refused(call, 1, "holds another run's output; an import takes another OUT", "import", "axolotl", dest, out, *given)
    file = sorted(dest.glob("*.parquet"))[0]
    file.write_bytes(file.read_bytes()[:-20])
    refused(call, 2, f"{file}: cannot be read as Parquet", "import", "axolotl", dest, back, *given)


def test_files_without_what_they_need_beside_them(out: Path, tmp_path: Path, call: Call) -> None:
    given = (tmp_path / "back", "--tokenizer", TOKENIZER)
    exported(out, "distillkit", tmp_path / "kit")
    (tmp_path / "kit/compression_config.yaml").write_text("k: 3\n")
    refused(
        call, 2, "not a configuration of DistillKit's compression", "import", "distillkit", tmp_path / "kit", *given
    )
    (tmp_path / "kit/compression_config.yaml").unlink()
    refused(call, 2, "put the configuration there", "import", "distillkit", tmp_path / "kit", *given)
    exported(out, "megatron", tmp_path / "tars")
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    tars[1].rename(tmp_path / "gone.tar")
    code, _, err = call("import", "megatron", tmp_path / "tars", *given)
    assert code == 2 and "no rows of sample 3" in err
    tars[0].rename(tars[0].with_name("cp1_dp0__2.tar"))
    refused(call, 2, "a part of a sequence", "import", "megatron", tmp_path / "tars", *given)
    (tmp_path / "tars/samples.parquet").unlink()
    refused(call, 2, "the tars hold no token ids", "import", "megatron", tmp_path / "tars", *given)


def test_ids_of_another_tokenizer(tmp_path: Path, call: Call) -> None:
    src = one_row(tmp_path / "src", [[-0.5]], tokens=[vocabulary().size])
    code, _, err = call("import", "trl", src, tmp_path / "back", "--tokenizer", TOKENIZER)
    assert code == 2 and "has 1,000 ids; name the tokenizer of these files" in err


def test_rows_that_are_no_distributions_go_to_quarantine(tmp_path: Path) -> None:
    """Nothing is clamped or renormalised: a document with such a row is left out, with the numbers."""
    bad = {
        "sum": ([-0.1, -0.2], [10, 11]),
        "above": ([0.5, -3.0], [10, 11]),
        "twice": ([-1.0, -2.0], [10, 10]),
        "nan": ([float("nan"), -1.0], [10, 11]),
    }
    rows = [([-0.7, -0.75], [10, 11]), *bad.values(), ([-1.0, -1.5], [11, 10])]
    src = one_row(tmp_path / "src", [row for row, _ in rows], [ids for _, ids in rows])
    manifest = imported("trl", src, tmp_path / "back")
    records = read_quarantine(tmp_path / "back", 0)
    assert manifest.quarantined == len(bad) and [record["doc_row"] for record in records] == [1, 2, 3, 4]
    assert [record["reason"] for record in records] == ["identity"] * 3 + ["nonfinite_logprob"]
    for record, words in zip(records, ("sum to 1.72", "log-probability of 0.5", "twice in a row", "NaN"), strict=True):
        assert words in record["detail"]
    assert [document.doc_row for document in Targets(tmp_path / "back").documents()] == [0, 5]
    assert verify(tmp_path / "back", complete=True).findings == []


def test_what_is_said_of_an_import_can_be_done(out: Path, tmp_path: Path, call: Call) -> None:
    """No run file made it, and its folder stands in none: `targetsmith import` is what goes on, and OUT what is taken anew."""
    dest, back = tmp_path / "dest", tmp_path / "back"
    exported(out, "axolotl", dest)
    again = ("import", "axolotl", dest, back, "--tokenizer", TOKENIZER)
    assert call(*again)[0] == 0
    whole = contents(back)
    shard = next(back.glob("data/student/sp/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    refused(call, 1, "for an import, the same `targetsmith import`", "stats", back)
    shard.unlink()
    assert call(*again)[0] == 0 and contents(back) == whole  # as the message says
    code, _, err = call("show", back, "--doc", "my-4")
    assert code == 2 and "no document is called 'my-4'" in err and "[corpus]" not in err
    code, _, err = call(*again, "--product", "student/other")
    assert code == 1 and "Take another OUT for this" in err and "output`" not in err
    with pytest.raises(
        FingerprintMismatch, match="holds an import; set `output` to a new folder, nothing was changed$"
    ):
        open_output(back, small_plan())
    (back / "_engine/manifest.json").unlink()
    refused(
        call, 1, "give the same `targetsmith import` command again", "export", back, tmp_path / "new", "--to", "trl"
    )
    assert "a finished run: give the same `targetsmith import` command again" in call("verify", back, "--complete")[1]
    for seal in (back / "_engine/shards").iterdir():
        seal.unlink()
    for verb in ("stats", "show", "cat"):
        refused(call, 1, "no unit is ready yet; give the same `targetsmith import` command again", verb, back)
    assert call(*again)[0] == 0 and contents(back) == whole
