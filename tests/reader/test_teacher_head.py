"""The teacher's head out of an output: its distributions are the stored ones of the same documents, and losses learn from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.losses.full_vocabulary import full_kl, full_kl_of_states
from engine.losses.sparse import cells, forward_kl
from engine.reader import Targets, TargetsError, TeacherHead, teacher_head
from engine.reader.teacher_head import HEAD_FILE, TOKENS_FILE
from tests.support.codecs import write_output
from tests.support.runs import ASSETS, score_here, write_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hidden states, the teacher's own top-16, and a student with the teacher's tokens."""
    folder = tmp_path_factory.mktemp("head")
    run = write_run(folder, targets="hidden = true\nteacher = true\ntop_k = 16", students={"own": ASSETS / "teacher"})
    return score_here(run)


def test_the_whole_distribution_is_the_stored_one(out: Path) -> None:
    """What is left between them is the rounding of states and weights to bfloat16."""
    head = teacher_head(out)
    for product in ("teacher", "student/own"):
        batch = next(Targets(out, product, beside=("hidden",)).batches(8))
        beside, mask = batch["hidden"], batch["mask"]
        assert torch.equal(mask, beside["mask"]) and torch.equal(batch["token_ids"], beside["token_ids"])
        logp = head(beside["hidden"][mask]).log_softmax(1)
        stored = torch.cat([batch["logps"], batch["tail_logp"][..., None]], 2)[mask]
        found = cells(logp, batch["ids"][mask], batch["logps"][mask] > -torch.inf)
        distance = (found.exp() - stored.exp()).abs().sum(1) / 2
        assert len(distance) > 80 and distance.max() < 0.02 and distance.mean() < 0.004
        gold = logp.gather(1, batch["token_ids"][mask][:, None])[:, 0]
        assert (gold - batch["gold_logp"][mask]).abs().mean() < 0.02
        # and not those of the row beside it
        assert (found.exp()[1:] - stored.exp()[:-1]).abs().sum(1).mean() / 2 > 0.3


def test_the_whole_divergence_is_the_stored_one_and_what_the_tail_hides(out: Path) -> None:
    batch = next(Targets(out, "teacher", beside=("hidden",)).batches(8))
    mask, head = batch["mask"], teacher_head(out)
    logits = torch.randn(int(mask.sum()), head.real_V.numel(), generator=torch.Generator().manual_seed(0))
    whole = full_kl(logits, head(batch["hidden"]["hidden"][mask]))
    part = forward_kl(logits, *(batch[key][mask] for key in ("ids", "logps", "tail_logp")))
    assert (part <= whole + 0.06).all()
    sharp = batch["tail_logp"][mask].exp() < 1e-3
    assert sharp.sum() > 20 and (whole - part).abs()[sharp].max() < 0.1


def test_a_student_learns_from_states_alone(out: Path) -> None:
    """Of the product hidden and the head nothing else is needed: a student head over the teacher's own states finds the head."""
    batch = next(Targets(out, "hidden").batches(8))
    head, states = teacher_head(out), batch["hidden"][batch["mask"]]
    own = torch.nn.Linear(states.shape[1], head.real_V.numel())
    optimizer = torch.optim.Adam(own.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = full_kl_of_states(states.float(), own, states, head, rows_per_chunk=32).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_ids_without_a_token_have_no_mass(out: Path) -> None:
    states = torch.randn(3, 4)
    weight, bias = torch.randn(5, 4), torch.randn(5)
    real = torch.tensor([True, True, False, True, False])
    head = TeacherHead(weight, bias, scale=0.5, softcap=3.0, real_V=real)
    logits = head(states)
    want = 3 * torch.tanh((states @ weight.T + bias) * 0.5 / 3)
    torch.testing.assert_close(logits[:, real], want[:, real])
    assert (logits[:, ~real] == -torch.inf).all()
    assert not list(head.parameters()) and head.to(torch.float64).weight_VD.dtype == torch.float64


def test_the_head_is_that_of_the_vocabulary_table(out: Path, tmp_path: Path) -> None:
    """More rows than tokens are cut; an output from before the tables has all ids for tokens; bfloat16 is half as large."""
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    head = teacher_head(copy)
    assert head.real_V.all() and head.weight_VD.dtype == torch.float32
    (copy / TOKENS_FILE).unlink()
    assert torch.equal(teacher_head(copy).weight_VD, head.weight_VD)
    assert teacher_head(copy, dtype=torch.bfloat16).weight_VD.dtype == torch.bfloat16


def test_what_is_no_head_of_this_run_is_refused(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    file = copy / HEAD_FILE
    whole = file.read_bytes()
    tensors = load_file(file)
    for damage, text in (
        (lambda: file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])), "not the numbers that were written"),
        (lambda: save_file(tensors, file, {"scale": "1.0", "softcap": "0.0"}), "not the numbers that were written"),
        (lambda: file.write_bytes(whole[:100]), "cannot be read|not the numbers"),
        (lambda: file.unlink(), "missing; copy the folder whole"),
    ):
        damage()
        with pytest.raises(TargetsError, match=text):
            teacher_head(copy)
    shutil.rmtree(copy)
    with pytest.raises(TargetsError, match="no such folder; name the `output` of a run"):
        teacher_head(copy)


def test_an_output_without_states_says_what_to_write(tmp_path: Path) -> None:
    write_output(tmp_path / "out", units=1, products=("student/small", "teacher"))
    with pytest.raises(TargetsError, match=r"no hidden states here \(student/small, teacher\).*hidden = true"):
        teacher_head(tmp_path / "out")
