"""examples/train_student.py and examples/hf_trainer.py on a small real run: the loss falls, and what is saved can be loaded."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine.losses.sparse import forward_kl
from engine.reader.targets import Targets
from tests.support.runs import ASSETS, TEXTS, score_here, write_run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    return score_here(write_run(folder, students={"bl": ASSETS / "student_bl"}))


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A folder with a small configuration and a tokenizer, no weights."""
    folder = tmp_path / "student"
    shutil.copytree(ASSETS / "student_bl", folder)
    config = LlamaConfig(
        vocab_size=800, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def test_the_loss_falls_and_the_saved_student_is_the_trained_one(
    finished: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, saved, held = example("train_student", monkeypatch), tmp_path / "saved", tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    module.main(
        [str(finished), str(student), "--save", str(saved), "--held-out", str(held), "--steps", "60", "--batch", "3"]
        + ["--rate", "0.01", "--device", "cpu"]
    )
    printed = capsys.readouterr().out
    losses = [float(found) for found in re.findall(r"loss ([\d.]+) nats/token", printed)]
    assert len(losses) == 3 and losses[-1] < losses[0] / 2
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    said = re.search(r"held-out: ([\d.]+) bits per byte", printed)
    assert said is not None and float(said[1]) == pytest.approx(module.bits_per_byte(model, tokenizer, TEXTS), abs=1e-4)
    # a checkpoint is gone on with, not begun anew
    again, _ = module.load_student(str(saved), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_bits_per_byte_is_the_text_s_own_probability(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a sum token by token, each from a forward pass of its own over what stands before it."""
    module = example("train_student", monkeypatch)
    torch.manual_seed(1)
    model, tokenizer = module.load_student(str(student), "cpu")
    text, bits = TEXTS[1], 0.0
    ids = [799, *tokenizer(text, add_special_tokens=False).input_ids, 799]
    for i in range(1, len(ids)):
        logits = model(input_ids=torch.tensor([ids[:i]])).logits[0, -1].double()
        bits -= (logits[ids[i]] - logits.logsumexp(0)).item() / math.log(2)
    assert module.bits_per_byte(model.eval(), tokenizer, [text]) == pytest.approx(bits / len(text.encode()), rel=1e-5)


def test_the_collator_and_the_reader_give_the_same_loss(
    finished: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the shards through the collator, and the reader's batch: one loss, and the model's own where kd is 0."""
    module, plain = example("hf_trainer", monkeypatch), example("train_student", monkeypatch)
    torch.manual_seed(2)
    model, tokenizer = plain.load_student(str(student), "cpu")
    targets = Targets(finished)
    begin = plain.begin_id(tokenizer)
    batch = next(targets.batches(len(TEXTS)))
    divergence, ce = plain.losses(model, batch, begin)

    files = [str(file) for file in targets.files]
    rows = module.datasets.load_dataset("parquet", data_files=files, columns=module.COLUMNS, split="train")
    collated = module.Collator(begin, begin, targets.top_k)([dict(row) for row in rows])
    mask = collated["target_mask"]
    assert torch.equal(mask, batch["mask"])
    logits = model(input_ids=collated["input_ids"], attention_mask=collated["attention_mask"]).logits[:, :-1][mask]
    stored = [collated[f"target_{name}"][mask] for name in ("ids", "logps", "tail_logp")]
    torch.testing.assert_close(forward_kl(logits, *stored).mean(), divergence)
    torch.testing.assert_close(cross_entropy(logits, collated["labels"][:, 1:][mask]), ce)
    own = LlamaForCausalLM.forward(
        model,
        input_ids=collated["input_ids"],
        attention_mask=collated["attention_mask"],
        labels=collated["labels"],  # type: ignore[arg-type]
    )
    torch.testing.assert_close(own.loss, ce)


def test_trainer_lowers_the_loss_and_saves(
    finished: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, saved = example("hf_trainer", monkeypatch), tmp_path / "saved"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    module.main([str(finished), str(student), "--save", str(saved), "--steps", "40", "--batch", "3", "--rate", "0.01"])
    plain = example("train_student", monkeypatch)
    torch.manual_seed(0)
    fresh, tokenizer = plain.load_student(str(student), "cpu")
    trained, _ = plain.load_student(str(saved), "cpu")
    batch = next(Targets(finished).batches(len(TEXTS)))
    before, after = (plain.losses(m, batch, plain.begin_id(tokenizer)) for m in (fresh, trained))
    assert after[0].item() < before[0].item() / 2 and after[1].item() < before[1].item() / 2
