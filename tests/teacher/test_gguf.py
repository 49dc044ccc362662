"""[teacher] model = "x.gguf": the numbers of the unpacked weights, the tokenizer that is in the file or none, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.bpe.trial_texts import TRIAL_TEXTS
from engine.bpe.vocabulary import load_vocabulary
from engine.corpus.scan import scan_corpus
from engine.dataset.layout import load_plan
from engine.plan.make_plan import make_plan
from engine.plan.pin import pin
from engine.plan.teacher_size import teacher_size
from engine.scoring.stages import load_stages
from engine.teacher.model import load_teacher
from schemas.address import gguf_parts
from schemas.errors import TeacherError, TokenizerError
from schemas.runfile import RunConfig, load_run
from schemas.settings import TeacherConfig
from tests.support.runs import score_here, write_run

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[gguf]'")
from tests.support.gguf_files import TEACHER, write_gguf  # noqa: E402  (imports gguf)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "demo.Q8_0.gguf")


def run_with(folder: Path, model: str, more: str = "") -> RunConfig:
    return load_run(run_file_with(folder, model, more))


def run_file_with(folder: Path, model: str, more: str = "") -> Path:
    run_file = write_run(folder)
    line = f"model = {json.dumps(str(TEACHER))}"
    text = run_file.read_text(encoding="utf-8")
    assert line in text
    run_file.write_text(text.replace(line, f"model = {json.dumps(model)}\n{more}"), encoding="utf-8")
    return run_file


def fingerprint(run: RunConfig) -> str:
    return make_plan(run, scan_corpus(run.corpus, run.base_dir)).fingerprint


@torch.inference_mode()
def test_the_weights_are_those_of_the_file(whole: Path, tmp_path: Path) -> None:
    """Every matrix is what the gguf library unpacks, and the logits are the unquantised model's but for what 8 bits lose."""
    run = pin(run_with(tmp_path, os.path.relpath(whole, tmp_path)))
    assert run.teacher.model == str(whole)
    teacher = load_stages(run).teacher
    assert teacher.attention == "tree" and teacher.noise is None
    plain: Any = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    theirs = dict(teacher.model.named_parameters())
    for name, tensor in plain.named_parameters():
        wanted = tensor.detach().numpy()
        if wanted.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            wanted = gguf.quants.dequantize(gguf.quants.quantize(wanted, q8), q8)
        np.testing.assert_array_equal(theirs[name].detach().numpy(), wanted)
    ids = torch.tensor([[2046, 40, 50, 60, 70, 80, 90, 100]])
    found, wanted = (model(input_ids=ids).logits.log_softmax(-1).exp() for model in (teacher.model, plain))
    assert 1e-6 < (found - wanted).abs().sum(-1).max() / 2 < 0.05


def test_the_tokenizer_of_the_file_is_the_models_own(whole: Path) -> None:
    made, own = load_vocabulary(str(whole)), load_vocabulary(str(TEACHER))
    assert (made.bos_ids, made.eos_id, made.specials) == (own.bos_ids, own.eos_id, own.specials)
    assert (made.token_bytes, made.merges) == (own.token_bytes, own.merges)
    for text in TRIAL_TEXTS:
        assert made.encode(text) == own.encode(text)


def test_a_run_from_end_to_end(whole: Path, tmp_path: Path) -> None:
    out = score_here(run_file_with(tmp_path, str(whole)))
    plan = load_plan(out)
    assert plan.semantic["teacher_files"].keys() == {"model.gguf"}
    assert any("made of a GGUF file" in note for note in plan.products["teacher"].notes)


def test_the_fingerprint_knows_the_content_and_no_name(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    shutil.copy(whole, tmp_path / "b" / "other.gguf")
    half = write_gguf(tmp_path / "half.gguf", kind="F16")
    prints = [fingerprint(run_with(tmp_path, str(file))) for file in (whole, tmp_path / "b" / "other.gguf", half)]
    assert prints[0] == prints[1] != prints[2]


def test_sizes_are_those_of_unpacked_weights(whole: Path, tmp_path: Path) -> None:
    count = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(TEACHER).parameters())
    for more, number in (("", 4), ('dtype = "bfloat16"', 2)):
        for on_cpu in (True, False):
            size = teacher_size(run_with(tmp_path, str(whole), more), on_cpu=on_cpu)
            assert (size.parameters, size.weights_bytes) == (count, number * count)


def test_a_file_whose_way_of_cutting_is_only_a_name(tmp_path: Path) -> None:
    """transformers takes `smollm` for GPT-2's and leaves its digits together: refused, until a tokenizer is named."""
    file = write_gguf(tmp_path / "smollm.gguf", pre="smollm")
    assert AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)("a 12").input_ids  # without a word
    with pytest.raises(TokenizerError, match=r"'smollm', which transformers does not know.*tokenizer = \.\.\."):
        fingerprint(run_with(tmp_path, str(file)))
    named = run_with(tmp_path, str(file), f"tokenizer = {json.dumps(str(TEACHER))}")
    plan = make_plan(named, scan_corpus(named.corpus, named.base_dir))
    assert plan.semantic["teacher_files"].keys() == {"model.gguf", "tokenizer.json", "tokenizer_config.json"}


def scaled(writer: Any) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)


def unscaled(writer: Any) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_rope_scaling_finetuned(False)


def frequencies(writer: Any) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(16, np.float32))


def split(writer: Any) -> None:
    writer.add_uint16("split.count", 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (scaled, r"the file has llama.rope.scaling.type = 'yarn'.*safetensors"),
        (frequencies, r"some are passed over \(perhaps rope_freqs.weight\).*safetensors"),
        (split, r"one of 2 parts.*--merge"),
    ],
)
def test_what_would_get_lost_is_refused(change: Callable[[Any], None], told: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", change=change)
    with pytest.raises(TeacherError, match=told):
        load_stages(pin(checked(run_with(tmp_path, str(file)))))


def test_what_says_that_nothing_is_stretched_is_taken(tmp_path: Path) -> None:
    fingerprint(run_with(tmp_path, str(write_gguf(tmp_path / "x.gguf", change=unscaled))))


def checked(run: RunConfig) -> RunConfig:
    fingerprint(run)
    return run


def test_what_is_no_model_is_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("./gone.gguf", "gone.gguf", "models/gone.gguf"):
        with pytest.raises(TeacherError, match=r"there is no file .*gone\.gguf"):
            fingerprint(run_with(tmp_path, name))
    (tmp_path / "text.gguf").write_text("a text")
    with pytest.raises(TeacherError, match=r"text\.gguf cannot be read as GGUF"):
        fingerprint(run_with(tmp_path, "text.gguf"))
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(TeacherError, match=r"cut\.gguf cannot be read as GGUF"):
        fingerprint(run_with(tmp_path, "cut.gguf"))
    writer = gguf.GGUFWriter(str(tmp_path / "strange.gguf"), "wavtokenizer-dec")
    writer.add_name("strange")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(TeacherError, match=r"architecture 'wavtokenizer-dec' \(.*not supported"):
        fingerprint(run_with(tmp_path, "strange.gguf"))


def test_without_the_library(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import engine.plan.teacher_config as teacher_config

    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda: False)
    monkeypatch.setattr(teacher_config, "find_spec", lambda name: None)
    shutil.copy(whole, tmp_path / "unseen.gguf")
    with pytest.raises(TeacherError, match=r"'llama' is not installed; run `pip install 'targetsmith\[gguf\]'`"):
        fingerprint(run_with(tmp_path, "unseen.gguf"))


def test_names(tmp_path: Path) -> None:
    assert gguf_parts("owner/name/a/x.gguf") == ("owner/name", "a/x.gguf")
    assert gguf_parts("/models/llama/a/x.GGUF") == ("/models/llama/a", "x.GGUF")
    assert gguf_parts("x.gguf") == (".", "x.gguf") and gguf_parts("/x.gguf") == ("/", "x.gguf")
    assert gguf_parts("owner/name") == ("owner/name", None)


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_real_files(name: str) -> None:
    """Of whoever keeps the GGUF files that shared/tools/real_models.py unpacks, beside the folders that it makes of them."""
    file = Path(os.environ.get("TARGETSMITH_MODELS", "nowhere")) / f"{name}.gguf"
    if not file.exists():
        pytest.skip("TARGETSMITH_MODELS names no folder with GGUF files of real models")
    teacher = load_teacher(TeacherConfig(model=str(file), device="cpu"), str(file), tokenizer_end=None)
    assert teacher.attention == "tree" and teacher.gap < 1e-3
