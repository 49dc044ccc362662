"""`show --widest` counts what the reader reads: positions by width, documents by mean width."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from engine.dataset.layout import load_plan
from engine.dataset.store import open_store
from engine.reader import Targets
from jobs.look.options import View
from jobs.look.widest import WIDTHS, show_widest, widths_of
from schemas.errors import OutputError
from tests.support.runs import score_here, write_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_file = write_run(
        tmp_path_factory.mktemp("run"),
        lines='{"id": "bad", "text": ""}\n',
        targets="top_k = 16\nhidden = true\neps = 1e-3\nmax_nodes_per_token = 1",
    )
    return score_here(run_file)


def shown(out: Path, count: int, student: str | None, view: View | None = None) -> str:
    stream = io.StringIO()
    show_widest(out, count=count, student=student, view=view, stream=stream)
    return stream.getvalue()


@pytest.mark.parametrize("product", ["sp", "bl", "teacher"])
def test_the_tables_are_what_the_reader_reads(out: Path, product: str) -> None:
    store = open_store(out)
    below, documents = widths_of(store, load_plan(store), product if product == "teacher" else f"student/{product}")
    read = {document.doc_row: document for document in Targets(out, product).documents()}
    err = np.concatenate([document.err[document.scored] for document in read.values()])
    assert below == {width: int((err <= width).sum()) for width in WIDTHS}
    assert below[1.0] == len(err) == documents["scored"].sum()
    assert product == "teacher" or 0 < below[0.01] < len(err)
    assert documents["doc_row"].sort().to_list() == sorted(read)
    for row in documents.iter_rows(named=True):
        document = read[row["doc_row"]]
        wanted = [getattr(document, name)[document.scored] for name in ("err", "open_mass", "pruned_mass")]
        assert row["doc_id"] == document.doc_id and row["largest"] == wanted[0].max()
        np.testing.assert_allclose([row["width"], row["open"], row["pruned"]], [w.mean() for w in wanted], rtol=1e-5)


def test_the_widest_come_first(out: Path) -> None:
    store = open_store(out)
    _, documents = widths_of(store, load_plan(store), "student/sp")
    widest = documents.sort("width", descending=True)["doc_id"].to_list()
    lines = [line.split() for line in shown(out, 2, "sp").splitlines()]
    assert [words[1] for words in lines if len(words) == 7 and words[0].isdecimal()] == widest[:2]


def test_hidden_states_have_no_width(out: Path) -> None:
    with pytest.raises(OutputError, match="no width"):
        shown(out, 1, None, "hidden")
