"""examples/train_student.py and examples/hf_trainer.py on a small real run: the loss falls, and what is saved can be loaded."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine.losses.sparse import forward_kl
from engine.reader.row_groups import FLAG_CONTEXT
from engine.reader.targets import Targets
from tests.support.chats import chat_teacher, with_template
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

    rows = module.rows_of(targets)
    collated = module.RowCollator(begin, begin, targets.top_k)([*rows])
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


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL's own default
def test_trl_s_trainer_has_our_loss_and_lowers_it(
    finished: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SFTTrainer's first logged loss is that of the reader's batches, with batches accumulated and without; then it learns."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    module, plain = example("trl_trainer", monkeypatch), example("train_student", monkeypatch)
    torch.manual_seed(0)
    fresh, tokenizer = plain.load_student(str(student), "cpu")
    targets, begin = Targets(finished), plain.begin_id(tokenizer)
    batch = next(targets.batches(len(TEXTS)))
    assert torch.equal(batch["mask"], batch["loss_mask"])  # the two means have one denominator
    before = plain.losses(fresh, batch, begin)
    wanted = 0.7 * before[0].item() + 0.3 * before[1].item()
    for accumulated in (1, len(TEXTS)):
        model, _ = plain.load_student(str(student), "cpu")
        model.load_state_dict(fresh.state_dict())
        trainer = module.StudentSFTTrainer(
            model,
            module.settings(
                str(tmp_path / "t"), max_steps=30, learning_rate=0.02, logging_steps=1, save_strategy="no", report_to="none",
                per_device_train_batch_size=len(TEXTS) // accumulated, gradient_accumulation_steps=accumulated,
                bf16=False, dataloader_pin_memory=False,
            ),
            data_collator=module.RowCollator(begin, begin, targets.top_k),
            train_dataset=module.rows_of(targets),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.kd = 0.7
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert logged[0] == pytest.approx(wanted, rel=1e-3) and logged[-1] < logged[0] / 2
        after = plain.losses(model, batch, begin)
        assert after[0].item() < before[0].item() / 2 and after[1].item() < before[1].item() / 2


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL's own default
def test_trl_s_command_saves_what_it_trained(
    finished: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    module, saved = example("trl_trainer", monkeypatch), tmp_path / "saved"
    module.main([str(finished), str(student), "--save", str(saved), "--steps", "3", "--batch", "3", "--kd", "1"])
    trained = AutoModelForCausalLM.from_pretrained(saved)
    assert all(p.isfinite().all() for p in trained.parameters())


def test_a_trainer_without_targets_says_what_to_give_it(
    finished: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, plain = example("hf_trainer", monkeypatch), example("train_student", monkeypatch)
    model, _ = plain.load_student(str(student), "cpu")
    one = module.StudentTrainer(model, module.TrainingArguments(output_dir=str(tmp_path / "t"), report_to="none"))
    with pytest.raises(ValueError, match="no target_ids, .*data_collator=RowCollator.*remove_unused_columns=False"):
        one.compute_loss(model, {"input_ids": torch.zeros(1, 2, dtype=torch.int64)})


# ==== conversations whose template writes the begin token


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two conversations, one with a question longer than 60 tokens; its folder has the student's in `bl`."""
    folder = tmp_path_factory.mktemp("talk")
    chat_teacher(folder / "teacher", "gemma")
    with_template(ASSETS / "student_bl", folder / "bl", "gemma")
    questions = (TEXTS[0], TEXTS[0] * 4)
    lines = [
        {"chat": [{"role": "user", "content": question}, {"role": "assistant", "content": TEXTS[2]}]}
        for question in questions
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "run.toml").write_text(
        'output = "out"\n[teacher]\nmodel = "./teacher"\n[corpus]\npaths = ["chat.jsonl"]\nmessages = "chat"\n'
        '[[student]]\nname = "bl"\ntokenizer = "./bl"\n[targets]\ntop_k = 16\n',
        encoding="utf-8",
    )
    score_here(folder / "run.toml")
    config = LlamaConfig(
        vocab_size=900, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder / "bl")
    return folder


def test_a_template_s_begin_token_is_read_once(talked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reader and collator against each document alone, fed as it is stored."""
    module, plain = example("hf_trainer", monkeypatch), example("train_student", monkeypatch)
    torch.manual_seed(3)
    model, tokenizer = plain.load_student(str(talked / "bl"), "cpu")
    targets, begin = Targets(talked / "out"), plain.begin_id(tokenizer)
    nats, counted = 0.0, 0
    for document in targets.documents():
        ids = torch.tensor(document.token_ids).long()
        assert ids[0] == begin and (ids == begin).sum() == 1
        asked = torch.tensor(document.flags & FLAG_CONTEXT == 0)
        assert not asked[0]
        logits = model(input_ids=ids[None]).logits[0].float()
        nats += cross_entropy(logits[:-1][asked[1:]], ids[1:][asked[1:]], reduction="sum").item()
        counted += int(asked.sum())
    batch = next(targets.batches(2))
    divergence, ce = plain.losses(model, batch, begin)
    assert ce.item() == pytest.approx(nats / counted, rel=1e-5)

    rows = module.rows_of(targets)
    collated = module.RowCollator(begin, begin, targets.top_k)([*rows])
    assert ((collated["input_ids"] == begin) & (collated["attention_mask"] == 1)).sum() == 2
    logits = model(input_ids=collated["input_ids"], attention_mask=collated["attention_mask"]).logits[:, :-1]
    mask = collated["target_mask"]
    stored = [collated[f"target_{name}"][mask] for name in ("ids", "logps", "tail_logp")]
    torch.testing.assert_close(forward_kl(logits[mask], *stored).mean(), divergence)
    torch.testing.assert_close(
        cross_entropy(logits.flatten(0, 1), collated["labels"][:, 1:].flatten()), ce, rtol=1e-5, atol=1e-6
    )


def test_batches_with_nothing_to_learn_give_no_nan(
    talked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("train_student", monkeypatch)
    common = [str(talked / "out"), str(talked / "bl"), "--device", "cpu", "--batch", "1", "--steps", "4"]
    shorter, longer = sorted(len(document.token_ids) for document in Targets(talked / "out").documents())
    module.main(
        [*common, "--save", str(tmp_path / "a"), "--max-length", str(shorter)]
    )  # the longer one is template and question
    assert shorter < longer // 2 and "nan" not in capsys.readouterr().out
    assert all(p.isfinite().all() for p in AutoModelForCausalLM.from_pretrained(tmp_path / "a").parameters())
    with pytest.raises(SystemExit, match="2"):
        module.main([*common, "--save", str(tmp_path / "b"), "--max-length", "3"])
    assert "nothing to train on" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()

    trainer = example("hf_trainer", monkeypatch)
    model, tokenizer = module.load_student(str(talked / "bl"), "cpu")
    begin, targets = module.begin_id(tokenizer), Targets(talked / "out")
    rows = trainer.rows_of(targets)
    collated = trainer.RowCollator(begin, begin, targets.top_k, max_length=3)([*rows])
    one = trainer.StudentTrainer(model, trainer.TrainingArguments(output_dir=str(tmp_path / "t"), report_to="none"))
    for items in (None, 0, torch.tensor(0)):
        assert one.compute_loss(model, collated, num_items_in_batch=items).item() == 0.0


def test_another_tokenizer_is_refused(
    finished: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one of the same size: its ids spell other tokens."""
    module = example("train_student", monkeypatch)
    spec = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    names = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    swapped = {"Ġthe": names[-1]} if "Ġthe" in names else {names[300]: names[-1]}
    for one, other in swapped.items():
        vocab = spec["model"]["vocab"]
        vocab[one], vocab[other] = vocab[other], vocab[one]
    (student / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        module.main([str(finished), str(student), "--save", str(tmp_path / "saved"), "--steps", "1", "--device", "cpu"])
    assert "another tokenizer. Give the folder" in capsys.readouterr().err


def _nothing(folder: Path, finished: Path) -> str:
    return "no such folder; name the `output`"


def _empty(folder: Path, finished: Path) -> str:
    folder.mkdir()
    return "no output of targetsmith; name the `output`"


def _unfinished(folder: Path, finished: Path) -> str:
    shutil.copytree(finished, folder)
    (folder / "_engine" / "manifest.json").unlink()
    return "the run is not finished (3 of 3 units): finish it with `targetsmith score`"


def _damaged(folder: Path, finished: Path) -> str:
    shutil.copytree(finished, folder)
    file = next((folder / "data" / "student" / "bl").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:200])
    return "200 bytes, sealed with|a file of it is damaged; `targetsmith verify OUT` tells which"


@pytest.mark.parametrize("name", ["train_student", "hf_trainer"])
@pytest.mark.parametrize("make", [_nothing, _empty, _unfinished, _damaged])
def test_an_output_that_cannot_be_read_is_one_line(
    name: str, make: Callable[[Path, Path], str], finished: Path, student: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module, out = example(name, monkeypatch), tmp_path / "out"
    wanted = make(out, finished)
    with pytest.raises(SystemExit, match="2"):
        module.main([str(out), str(student), "--save", str(tmp_path / "saved"), "--steps", "1"])
    said = capsys.readouterr().err
    assert any(words in said.splitlines()[-1] for words in wanted.split("|")) and "Traceback" not in said
    assert not (tmp_path / "saved").exists()


def test_a_student_that_is_not_there_is_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("train_student", monkeypatch)
    with pytest.raises(SystemExit, match="2"):
        module.main([str(finished), str(tmp_path / "nobody"), "--save", str(tmp_path / "saved"), "--device", "cpu"])
    said = capsys.readouterr().err
    assert "nobody: no student; want a folder with config.json" in said and said.count("\n") == 1
