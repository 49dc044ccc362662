"""[teacher] adapter: peft's own numbers from a plain model; what does not fit is refused, and the fingerprint knows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.corpus.scan import scan_corpus
from engine.plan.make_plan import make_plan
from engine.plan.pin import pin
from engine.scoring.stages import load_stages
from engine.teacher.adapter import with_adapter
from schemas.errors import RunFileError, TeacherError
from schemas.runfile import load_run
from tests.support.runs import ASSETS, write_run

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[adapters]'")
TEACHER = str(ASSETS / "teacher")


def write_adapter(folder: Path, seed: int, width: int | None = None) -> Path:
    """A LoRA of all linear layers with random numbers in both factors. width: of another model's layers."""
    model = AutoModelForCausalLM.from_pretrained(TEACHER)
    if width is not None:
        config = model.config
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = width, width, 1
        model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(seed)
    lora = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    lora.save_pretrained(str(folder))
    return folder


def run_with(folder: Path, adapter: str, more: str = "") -> Path:
    run_file = write_run(folder)
    line = f"model = {json.dumps(TEACHER)}"
    text = run_file.read_text(encoding="utf-8")
    assert line in text
    run_file.write_text(text.replace(line, f"{line}\nadapter = {json.dumps(adapter)}{more}"), encoding="utf-8")
    return run_file


def fingerprint(run_file: Path) -> str:
    run = load_run(run_file)
    return make_plan(run, scan_corpus(run.corpus, run.base_dir)).fingerprint


def test_the_teacher_answers_as_peft_does(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", 1)
    run = pin(load_run(run_with(tmp_path, "lora")))
    assert run.teacher.adapter == str(adapter)
    teacher = load_stages(run).teacher
    plain = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 40, 50, 60, 70, 80, 90, 100]])
    with torch.inference_mode():
        alone = plain(input_ids=ids).logits.log_softmax(-1)
        wanted = peft.PeftModel.from_pretrained(plain, str(adapter)).eval()(input_ids=ids).logits.log_softmax(-1)
        found = teacher.model(input_ids=ids).logits.log_softmax(-1)
    assert (wanted - alone).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert not any("lora" in name for name, _ in teacher.model.named_parameters())


def test_the_fingerprint_knows_the_adapter(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_adapter(tmp_path / name, seed)
    write_adapter(tmp_path / "elsewhere" / "a", 1)
    plain = fingerprint(write_run(tmp_path))
    one, other = fingerprint(run_with(tmp_path, "a")), fingerprint(run_with(tmp_path, "b"))
    assert len({plain, one, other}) == 3
    assert fingerprint(run_with(tmp_path, "elsewhere/a")) == one


def test_what_is_no_adapter_of_this_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="adapter = 'gone/adapter'.*Hub"):
        fingerprint(run_with(tmp_path, "gone/adapter"))
    with pytest.raises(TeacherError, match="there is no folder.*adapter_config.json"):
        fingerprint(run_with(tmp_path, str(tmp_path / "gone")))
    folder = write_adapter(tmp_path / "lora", 1)
    (folder / "adapter_model.safetensors").rename(folder / "kept")
    with pytest.raises(TeacherError, match="adapter_model.safetensors is missing"):
        fingerprint(run_with(tmp_path, "lora"))
    (folder / "kept").rename(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PREFIX_TUNING"}))
    with pytest.raises(TeacherError, match="'PREFIX_TUNING'; want LORA"):
        fingerprint(run_with(tmp_path, "lora"))
    run_file = run_with(tmp_path, "lora", '\nadapter_revision = "main"')
    run_file.write_text(run_file.read_text(encoding="utf-8").replace('adapter = "lora"\n', ""), encoding="utf-8")
    with pytest.raises(RunFileError, match=r"adapter_revision\s+got: .*without adapter"):
        load_run(run_file)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", 1, width=64)
    with pytest.raises(TeacherError, match="does not fit the model.*trained on this very model"):
        with_adapter(AutoModelForCausalLM.from_pretrained(TEACHER), str(other), None)
