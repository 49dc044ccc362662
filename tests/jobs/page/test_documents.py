"""The documents of a page are those of the reader: tokens, widths, likeliest tokens; cut to a window, as many as fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.dataset.token_tables import read_tokens
from engine.figures import collect, open_published
from engine.reader import Targets
from jobs.page.documents import SHOWN_TOKENS, WINDOW_BYTES, documents_of
from tests.support.runs import TEXTS, score_here, write_run

LONG = " ".join(f"{n} + {n} = {2 * n} — is." for n in range(90))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_here(
        write_run(
            tmp_path_factory.mktemp("run"),
            texts=(*TEXTS, LONG),
            targets="top_k = 16\nbytes = true\ncalibration_documents = 2\nmax_nodes_per_token = 1",
        )
    )


def made(out: Path, **options: Any) -> dict[str, Any]:
    output = open_published(out)
    return documents_of(
        output,
        collect(output),
        lambda product: read_tokens(output.store, product, output.plan.products[product]),
        most_positions=10**6,
        **options,
    )


@pytest.mark.parametrize("product", ["student/sp", "student/bl", "teacher", "bytes"])
def test_tokens_are_the_readers(out: Path, product: str) -> None:
    found = made(out)
    assert [document["id"] for document in found["documents"]] == ["t0", "t1", "t2", "t3", "t4", "t5"]
    output = open_published(out)
    tokens = read_tokens(output.store, product, output.plan.products[product])
    assert tokens is not None
    read = {document.doc_id: document for document in Targets(out, product.removeprefix("student/")).documents()}
    for shown in found["documents"]:
        document, part = read[shown["id"]], shown["products"][product]
        assert document.text.encode()[shown["from"] :].startswith(shown["text"].encode())
        for i, n in enumerate(part["n"]):
            assert part["e"][i] + shown["from"] == document.byte_end[n]
            assert part["s"][i] + shown["from"] == (document.byte_end[n - 1] if n else 0)
            assert found["strings"][part["t"][i]] == tokens.names[int(document.token_ids[n])]
            assert part["w"][i] == pytest.approx(float(document.err[n]), rel=1e-2)
            best = document.ids[n][:SHOWN_TOKENS]
            assert [found["strings"][t] for t in part["p"][i][::2]] == [
                tokens.names[t] for t in best.tolist() if t >= 0
            ]
            probs = np.exp(document.logps[n][:SHOWN_TOKENS])[best >= 0] * 1e6
            assert part["p"][i][1::2] == pytest.approx(probs.tolist(), abs=1)
        assert part["d"][0] == pytest.approx(float(document.err[document.scored].mean()), rel=1e-3, abs=1e-9)


def test_of_a_long_document_a_window(out: Path) -> None:
    shown = made(out)["documents"][5]
    size = len(shown["text"].encode())
    assert WINDOW_BYTES - 4 < size <= WINDOW_BYTES and shown["bytes"] == len(LONG.encode())
    for part in shown["products"].values():
        assert min(part["s"]) >= 0 and max(part["e"]) <= size


def test_as_many_as_there_is_room_for(out: Path) -> None:
    assert len(made(out, room_bytes=1)["documents"]) == 1
    assert 1 < len(made(out, room_bytes=60_000)["documents"]) < 6


def test_without_stored_texts_they_are_made_of_tokens(tmp_path: Path) -> None:
    out = score_here(write_run(tmp_path, targets="top_k = 16\nstore_text = false"))
    assert [document["text"] for document in made(out)["documents"]] == list(TEXTS)
