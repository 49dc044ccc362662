"""The teacher's statistics and hidden states against the model's own forward pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import PhiConfig, PhiForCausalLM

from engine.corpus.document import Document
from engine.dataset import parquet as rows
from engine.dataset.invariants import check_rows
from engine.dataset.parquet import flat, round_rows
from engine.dataset.sidecars import LM_HEAD
from engine.scoring.scorer import Scorer
from engine.targets.tables import roles_of
from engine.targets.teacher_rows import JoinedEnds
from engine.teacher.lm_head import publish_head
from engine.teacher.model import Teacher
from jobs.run.estimates import hidden_size_note
from schemas.errors import IdentityError, RunFileError
from schemas.runfile import load_run
from schemas.target import FLAG_CONTEXT, FLAG_END, ROLES, row_schema
from tests.scoring.test_scorer import ASSETS, scorer
from tests.support.runs import score_here, write_run
from tests.support.tables import facts_of
from tests.targets.test_sampling import documents

TEXTS = ("Anna has 3 apples and buys 4 more.\n3 + 4 = 7", "x", "  two spaces,\n\ttab — naïve 漢字")


@pytest.fixture(scope="module")
def made() -> Scorer:
    return scorer(ASSETS / "teacher", {}, teacher=True, teacher_stats=True, hidden=True)


def direct(made: Scorer, document: Document) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits [T, V], final hidden states [T, D]) of the rows of a text and its end, float64 and float32."""
    ids = [*made.stages.bos, *made.stages.vocabulary.encode(document.text)[0]]
    with torch.inference_mode():
        base = made.stages.teacher.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        logits = made.stages.teacher.model.get_output_embeddings()(base)
    first = len(made.stages.bos) - 1
    return logits[first:, : made.stages.vocabulary.size].double(), base[first:]


def test_statistics_are_those_of_the_model(made: Scorer) -> None:
    docs = documents(TEXTS)
    table = made.score_unit(docs).products["teacher"]
    assert table.schema.equals(row_schema("topk", True))
    check_rows(round_rows(table), facts_of(16, made.stages.vocabulary.size, statistics=True), where="teacher")
    space = torch.tensor(
        [
            i in made.stages.vocabulary.specials or (piece or b"x")[:1].isspace()
            for i, piece in enumerate(made.stages.vocabulary.token_bytes)
        ]
    )
    ends = list(made.stages.teacher.end_ids)
    for row, document in zip(table.to_pylist(), docs, strict=True):
        logits, _ = direct(made, document)
        logp = logits.log_softmax(-1)
        std = logits.std(-1, correction=0)
        wanted = {
            "logz": logits.logsumexp(-1),
            "entropy": torch.special.entr(logp.exp()).sum(-1),
            "logit_std": std,
            "logz_scaled": (logits / std[:, None]).logsumexp(-1),
            "space_logp": logp[:, space].logsumexp(-1),
            "end_logp": logp[:, ends].logsumexp(-1),
        }
        for name, values in wanted.items():
            np.testing.assert_allclose(row[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
        top = np.array(row["topk_ids"]).reshape(-1, 16)
        scores = np.array(row["topk_logps"]).reshape(-1, 16) + np.array(row["logz"])[:, None]
        np.testing.assert_allclose(scores, logits.gather(1, torch.from_numpy(top).long()), rtol=1e-4, atol=1e-3)
        share = np.exp(scores / np.array(row["logit_std"])[:, None] - np.array(row["logz_scaled"])[:, None])
        asked = (logits / std[:, None]).softmax(-1).gather(1, torch.from_numpy(top).long())
        np.testing.assert_allclose(share, asked, rtol=1e-3)
        assert row["roles"] == [ROLES["text"]] * (len(row["roles"]) - 1) + [ROLES["end"]]
        assert row["flags"][-1] & FLAG_END


def test_masked_logits_are_still_logp_plus_logz() -> None:
    made = scorer(ASSETS / "teacher", {}, teacher=True, teacher_stats=True, semantics="canonical-masked")
    docs = documents(TEXTS[:1])
    row = made.score_unit(docs).products["teacher"].to_pylist()[0]
    logits, _ = direct(made, docs[0])
    top = np.array(row["topk_ids"]).reshape(-1, 16)
    known = top >= 0
    scores = np.array(row["topk_logps"]).reshape(-1, 16) + np.array(row["logz"])[:, None]
    asked = logits.gather(1, torch.from_numpy(np.maximum(top, 0)).long()).numpy()
    np.testing.assert_allclose(scores[known], asked[known], rtol=1e-4, atol=1e-3)
    assert (np.array(row["logz"]) < logits.logsumexp(-1).numpy() + 1e-4).all()


def test_hidden_states_give_the_logits_back(made: Scorer, tmp_path: Path) -> None:
    docs = documents(TEXTS)
    table = made.score_unit(docs).products["hidden"]
    size = made.stages.teacher.model.config.hidden_size
    facts = facts_of(0, made.stages.vocabulary.size, codec="hidden", hidden_size=size)
    check_rows(round_rows(table), facts, where="hidden")
    for row, document in zip(table.to_pylist(), docs, strict=True):
        bits = np.array(row["hidden"], np.uint16).view(np.int16).reshape(-1, size)
        states = torch.from_numpy(bits).view(torch.bfloat16)
        logits, hidden = direct(made, document)
        assert states.shape == hidden.shape
        # a batch of another shape may fall on the other side of a rounding border
        torch.testing.assert_close(states.float(), hidden, rtol=2.0**-8, atol=1e-5)
    broken = flat(table, "hidden").copy()
    broken[3] = 0x7FC0  # NaN
    column = table.column("hidden").combine_chunks()
    rebuilt = pa.ListArray.from_arrays(column.offsets, pa.array(broken), type=column.type)
    with pytest.raises(IdentityError, match="not finite"):
        check_rows(
            table.set_column(table.schema.get_field_index("hidden"), table.schema.field("hidden"), rebuilt),
            facts,
            where="x",
        )


def test_a_run_with_hidden_states_has_the_head_beside_them(tmp_path: Path) -> None:
    out = score_here(write_run(tmp_path, targets="hidden = true\nteacher_stats = true\ntop_k = 16"))
    head = load_file(out / LM_HEAD)
    files = sorted((out / "data/hidden").glob("*.parquet"))
    size = int((pq.read_metadata(files[0]).metadata or {})[b"targetsmith.hidden_size"])
    assert {name: tuple(t.shape)[1] for name, t in head.items()} == {"lm_head": size, "embedding": size}
    row = pq.read_table(files[0]).to_pylist()[0]
    own = pq.read_table(out / "data/teacher" / files[0].name).to_pylist()[0]
    states = torch.from_numpy(np.array(row["hidden"], np.uint16).view(np.int16).reshape(-1, size)).view(torch.bfloat16)
    logp = (states.float() @ head["lm_head"].float().T).log_softmax(-1)
    gold = logp.gather(1, torch.tensor(own["token_ids"])[:, None])[:, 0]
    np.testing.assert_allclose(gold, own["gold_logp"], atol=0.1)  # bfloat16 states and weights


def test_the_head_has_its_bias(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=11, **shape))
    torch.nn.init.normal_(model.lm_head.bias)
    teacher = SimpleNamespace(model=model, head_weights=lambda: Teacher.head_weights(cast(Teacher, teacher)))
    publish_head(tmp_path, cast(Teacher, teacher))
    head = load_file(tmp_path / LM_HEAD)
    states = torch.randn(5, 8)
    want = states @ model.lm_head.weight.to(torch.bfloat16).float().T + model.lm_head.bias
    torch.testing.assert_close(states @ head["lm_head"].float().T + head["bias"], want)


def test_an_end_that_is_none_of_the_teachers_keeps_its_own_mass() -> None:
    prob = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    torch.testing.assert_close(JoinedEnds([1, 2], 2).joined(prob), torch.tensor([[0.4, 0.0, 0.5, 0.1]]))
    torch.testing.assert_close(JoinedEnds([1, 2], 3).joined(prob), torch.tensor([[0.4, 0.0, 0.0, 0.6]]))


def test_row_groups_are_the_same_in_all_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_GROUP_BYTES", 20_000)
    targets = "hidden = true\nbytes = true\ntop_k = 16"
    texts = tuple(f"{i} apples and {i} pears. " * (1 + 7 * (i % 2)) for i in range(6))
    run = write_run(tmp_path, texts=texts, targets=targets)
    run.write_text(run.read_text().replace("unit_documents = 2", "unit_documents = 6"))
    out = score_here(run)
    shapes = {}
    for file in sorted(out.glob("data/**/*.parquet")):
        with pq.ParquetFile(file) as opened:
            counts = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
        shapes[file.parent.name] = counts
    assert set(map(tuple, shapes.values())) == {tuple(shapes["hidden"])} and len(shapes["hidden"]) > 1, shapes


def test_the_size_note_counts_tokens(made: Scorer) -> None:
    docs = documents(TEXTS)
    tokens = sum(len(made.stages.vocabulary.encode(d.text)[0]) for d in docs)
    note = hidden_size_note(docs, 300, made.stages.vocabulary, 64)
    assert f"about {tokens * 100:,.0f} tokens" in note and "from the first 3 documents" in note


def test_statistics_without_the_teacher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="teacher_stats"):
        load_run(write_run(tmp_path, targets="teacher = false\nteacher_stats = true"))
    with pytest.raises(RunFileError, match="draws"):
        load_run(write_run(tmp_path, targets="draws = 12"))


def test_roles_of_a_conversation() -> None:
    flags = np.array([FLAG_CONTEXT, FLAG_CONTEXT, 1, 17, FLAG_CONTEXT], np.uint8)
    assert roles_of(np.array([1, 5, 6, 2, 1]), flags, 1).tolist() == [1, 3, 0, 2, 1]
    assert roles_of(np.array([1, 5, 6, 2, 1]), flags, None).tolist() == [3, 3, 0, 2, 3]
