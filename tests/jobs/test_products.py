"""Every product and codec from the run file to a batch, through the real writer, `cat`, `show` and the reader."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.card.loading import loading
from engine.dataset.layout import load_manifest, load_plan
from engine.dataset.store import open_store
from engine.losses.chunked_head import chunked
from engine.losses.full_vocabulary import full_kl
from engine.losses.sampled import sampled_ce
from engine.losses.sparse import forward_kl
from engine.reader import teacher_head
from engine.reader.collate import student_inputs
from engine.reader.targets import Targets
from jobs.look.json_lines import write_documents
from jobs.look.options import View
from jobs.look.side_by_side import show_document
from jobs.run.progress import Counts
from jobs.run.summary import Outcome, as_json, print_summary
from schemas.errors import OutputError
from tests.support.runs import score_here, write_run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "train.md"
EVERYTHING = "top_k = 16\nbytes = true\nhidden = true\nteacher_stats = true"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_here(write_run(tmp_path_factory.mktemp("all"), targets=EVERYTHING))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_here(write_run(tmp_path_factory.mktemp("drawn"), targets='codec = "sample"\ndraws = 20'))


def lines(out: Path, *, student: str | None = None, view: View | None = None) -> list[dict]:
    stream = io.StringIO()
    write_documents(out, student=student, view=view, limit=None, max_width=None, stream=stream, notes=io.StringIO())
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def rows(out: Path, product: str) -> list[dict]:
    return [
        row for file in sorted((out / "data" / product).glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def test_cat_prints_hidden_states_and_statistics(everything: Path) -> None:
    for line, row in zip(lines(everything, view="hidden"), rows(everything, "hidden"), strict=True):
        assert line.keys() == {"doc_id", "text", "token_ids", "byte_end", "scored", "hidden", "flags"}
        bits = np.array(row["hidden"], np.uint16).astype(np.uint32) << 16
        assert line["hidden"] == bits.view(np.float32).reshape(len(line["token_ids"]), -1).tolist()
    for line, row in zip(lines(everything, view="teacher"), rows(everything, "teacher"), strict=True):
        names = ("logz", "entropy", "logit_std", "logz_scaled", "space_logp", "end_logp", "roles")
        assert list(line)[-7:] == list(names)
        for name in names:
            assert line[name] == [None if value == -np.inf else value for value in row[name]]


def test_cat_prints_draws(drawn: Path) -> None:
    for line, row in zip(lines(drawn, student="sp"), rows(drawn, "student/sp"), strict=True):
        assert "logps" not in line and "tail_logp" not in line
        assert [n for counts in line["counts"] for n in counts] == row["sample_counts"]
        assert [i for ids in line["ids"] for i in ids] == row["sample_ids"]
        assert all(sum(counts) == 20 * scored for counts, scored in zip(line["counts"], row["scored"], strict=True))


def test_show_draws_and_refuses_hidden_states(everything: Path, drawn: Path) -> None:
    text = io.StringIO()
    show_document(drawn, doc=None, rows="0:3", top=3, student="bl", view=None, stream=text)
    assert "20 draws" in text.getvalue() and "drawn (share)" in text.getvalue()
    with pytest.raises(OutputError, match="cat --view hidden"):
        show_document(everything, doc=None, rows="0:3", top=3, student=None, view="hidden", stream=text)


def test_the_summary_and_the_card_name_every_product(everything: Path, drawn: Path) -> None:
    for out, words in ((everything, ("hidden", "bytes", "128 numbers", "top 16")), (drawn, ("sample", "20 draws"))):
        stream = io.StringIO()
        outcome = Outcome(open_store(out), load_manifest(out), Counts(3, 3), load_plan(out))
        print_summary(outcome, stream)
        told = json.loads(as_json(outcome))
        assert told["products"].keys() == outcome.manifest.products.keys() and told["documents"] == 5
        card = (out / "README.md").read_text(encoding="utf-8")
        for word in words:
            assert word in stream.getvalue() or word in card
    assert "sample_counts" not in (everything / "README.md").read_text(encoding="utf-8")


def test_every_block_of_the_cards_runs(everything: Path, drawn: Path) -> None:
    """In the folder of the output; of all codecs."""
    code = ""
    for out, products in ((everything, ("teacher", "student/sp", "bytes", "hidden")), (drawn, ("student/sp",))):
        manifest, card = load_manifest(out), (out / "README.md").read_text(encoding="utf-8")
        assert loading("student/bl", manifest.products["student/bl"]) in card  # the first student's is on the card
        for product in (*products, "student/bl"):
            blocks = re.findall(r"```python\n(.*?)```", loading(product, manifest.products[product]), re.DOTALL)
            assert len(blocks) == 3 and all(block.count("\n") <= 7 for block in blocks)
            positions = int(
                pl.scan_parquet(out / "data" / product / "*.parquet")
                .select(pl.col("scored").explode().sum())
                .collect()
                .item()
            )
            code += f"os.chdir({str(out)!r})\n" + "\n".join(blocks)
            code += f"assert positions.height == {positions} and batch['mask'].sum() <= {positions}\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import os\n{code}"],
        env={
            **os.environ,
            "PYTHONPATH": str(PAGE.parents[1]),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(drawn.parent / "hf"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_products_beside_each_other_are_the_same_documents(everything: Path) -> None:
    targets = Targets(everything, "sp", beside=("teacher", "bytes", "hidden"))
    for batch in targets.batches(3, seed=1):
        own = {row["doc_row"]: row for row in rows(everything, "teacher")}
        for b, doc_row in enumerate(batch["doc_row"].tolist()):
            n, row = int(batch["teacher"]["lengths"][b]), own[doc_row]
            assert (
                batch["teacher"]["token_ids"][b, :n].tolist()
                == row["token_ids"]
                == (batch["hidden"]["token_ids"][b, :n].tolist())
            )
            np.testing.assert_array_equal(batch["teacher"]["logz"][b, :n], np.array(row["logz"], np.float32))
            assert batch["bytes"]["byte_end"][b].max() == batch["byte_end"][b].max()
        assert batch["hidden"]["hidden"].dtype == torch.bfloat16


def test_draws_train_a_student(drawn: Path) -> None:
    targets = Targets(drawn, "sp")
    torch.manual_seed(0)
    head = torch.nn.Embedding(targets.vocab_size, targets.vocab_size)  # a bigram model: the next token by the last
    optimizer, losses = torch.optim.Adam(head.parameters(), 0.1), []
    for _ in range(12):
        total = torch.zeros(())
        for batch in targets.batches(4):
            mask = batch["mask"]
            logits = head(student_inputs(batch, 1))[mask]
            total = total + sampled_ce(logits, batch["ids"][mask], batch["counts"][mask], targets.draws or 0).mean()
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_the_examples_of_the_training_page(everything: Path) -> None:
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    student: Any = LlamaForCausalLM(LlamaConfig(vocab_size=Targets(everything, "sp").vocab_size, **small))
    found = []
    for code in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]:
        code = code.partition("```")[0].replace('Targets("out", "small")', f"Targets({str(everything)!r}, 'sp')")
        code = code.replace('Targets("out", "hidden")', f"Targets({str(everything)!r}, 'hidden')")
        code = code.replace('teacher_head("out").to("cuda")', f"teacher_head({str(everything)!r})")
        found.append(code.replace(', device="cuda"', ""))
    names = {"student": student, "bos_id": 1}
    exec(found[0], names)
    exec(found[1], names)
    batch, mask = names["batch"], names["rows"]
    logits = student(input_ids=student_inputs(batch, 1)).logits[mask]
    stored = (batch[key][mask] for key in ("ids", "logps", "tail_logp"))
    torch.testing.assert_close(names["loss"], forward_kl(logits, *stored).mean(), rtol=1e-4, atol=1e-5)
    assert names["chunked"] is chunked

    own: Any = LlamaForCausalLM(LlamaConfig(vocab_size=Targets(everything, "hidden").vocab_size, **small))
    names = {"student": own, "bos_id": 1}
    exec(found[2], names)
    batch, mask = names["batch"], names["rows"]
    logits = own(input_ids=student_inputs(batch, 1)).logits[mask]
    whole = full_kl(logits, teacher_head(everything)(batch["hidden"][mask])).mean()
    torch.testing.assert_close(names["loss"], whole, rtol=1e-4, atol=1e-5)
