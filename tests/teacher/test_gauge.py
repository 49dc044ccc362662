"""Teachers whose distributions hang on what else is in a batch: their noise is measured, is the limit of their trials, is stored,
and is refused where it is too large. Half precision, and weights that stay packed (bitsandbytes, torchao)."""

from __future__ import annotations

import json
import math
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from engine.dataset.layout import load_manifest
from engine.dataset.store import open_store
from engine.plan.teacher_size import teacher_size
from engine.scoring.stages import load_stages
from engine.teacher.gauge import LEAST, Gauge, Noise
from engine.teacher.loading import load_model
from engine.teacher.model import Teacher, load_teacher
from engine.teacher.packing import Window
from engine.teacher.quantised import packed
from schemas.errors import TeacherError
from schemas.manifest import NOISE_MEAN, NOISE_MOST
from schemas.runfile import load_run
from schemas.settings import TeacherConfig
from tests.support.runs import ASSETS, score_here, write_run

TEACHER = ASSETS / "teacher"
VOCAB = 2048
TEXTS = ("Anna has 3 apples and buys 4 more.", "A field is 15 m long.", "one", "Question: 9 × 9?\nAnswer: 81")
NEEDS = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "ao": "torchao"}


def settings_of(kind: str) -> Any:
    if kind == "ao":
        torchao: Any = import_module("torchao.quantization")
        return TorchAoConfig(torchao.Int8DynamicActivationInt8WeightConfig())
    return BitsAndBytesConfig(load_in_8bit=kind == "int8", load_in_4bit=kind == "nf4", bnb_4bit_quant_type="nf4")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's teacher as its users would save it; kinds whose library is missing are not there."""
    root, found = tmp_path_factory.mktemp("packed"), {}
    for kind, library in NEEDS.items():
        if find_spec(library) is None:
            continue
        model: Any = AutoModelForCausalLM.from_pretrained(
            TEACHER, dtype=torch.float32, quantization_config=settings_of(kind)
        )
        model.save_pretrained(root / kind)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (root / kind / name).write_bytes((TEACHER / name).read_bytes())
        found[kind] = root / kind
    return found


def folder_of(saved: dict[str, Path], kind: str) -> Path:
    if kind not in saved:
        pytest.skip(f"{NEEDS[kind]} is not installed: pip install -e '.[{NEEDS[kind]}]'")
    return saved[kind]


def load(folder: Path, **settings: Any) -> Teacher:
    config = TeacherConfig.model_validate({"model": str(folder), "device": "cpu"} | settings)
    return load_teacher(config, str(folder), tokenizer_end=None)


def run_with(folder: Path, model: Path, more: str = "", **given: Any) -> Path:
    run_file = write_run(folder, **given)
    line = f"model = {json.dumps(str(TEACHER))}"
    text = run_file.read_text(encoding="utf-8")
    run_file.write_text(text.replace(line, f"model = {json.dumps(str(model))}\n{more}"), encoding="utf-8")
    return run_file


def variation(teacher: Teacher, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest total variation between the distributions of two tables of hidden states, by hand."""
    p, q = (torch.softmax(teacher.logits(states), -1) for states in (ours, theirs))
    return float((p - q).abs().sum(-1).max() / 2)


def tree(seed: int) -> Window:
    """A trunk of 40 and three branches of four."""
    token = torch.randint(0, VOCAB, (52,), generator=torch.Generator().manual_seed(seed)).tolist()
    parent, depth = list(range(-1, 39)), list(range(40))
    for hang in (10, 25, 38):
        for step in range(4):
            parent.append(hang if step == 0 else len(parent) - 1)
            depth.append(hang + 1 + step)
    return Window(token, parent, depth)


@pytest.mark.parametrize("kind", NEEDS)
def test_quantised_teachers_keep_their_trees(kind: str, saved: dict[str, Path]) -> None:
    """Trees of any teacher are contexts alone, within what its kernels leave open: the noise that was measured, taken twice."""
    teacher = load(folder_of(saved, kind))
    noise = teacher.noise
    assert noise is not None and packed(teacher.model) and teacher.attention == "tree"
    assert 0 <= noise.mean <= noise.most
    if kind != "nf4":  # rounds what goes into a layer, too
        assert 1e-4 < noise.mean < 0.02 < noise.most
    allowed = max(LEAST, 2 * noise.most)
    windows = [tree(1), tree(2)]
    with torch.inference_mode():
        for ours, theirs in zip(teacher.hidden(windows), teacher._decoder.paths(windows), strict=True):
            assert variation(teacher, ours, theirs) <= allowed
        wrong = [Window(w.token, list(range(-1, 51)), list(range(52))) for w in windows]
        for ours, theirs in zip(teacher._decoder.chains(wrong), teacher._decoder.paths(windows), strict=True):
            assert variation(teacher, ours, theirs) > allowed  # branches that see each other are found out


def test_half_precision_has_noise_and_float32_none() -> None:
    half, full = load(TEACHER, dtype="bfloat16"), load(TEACHER)
    assert full.noise is None and full.gap < 1e-3 and half.attention == "tree"
    assert half.noise is not None and 0 < half.noise.mean < half.noise.most < 0.1


def test_too_much_noise_is_refused_with_the_number_the_bound_and_a_remedy(saved: dict[str, Path]) -> None:
    with pytest.raises(TeacherError) as caught:
        load(folder_of(saved, "int8"), max_noise=0.001)
    told = str(caught.value)
    assert (
        "want <= 0.001 ([teacher] max_noise)" in told and "bitsandbytes" in told and "llm_int8_threshold = 0.0" in told
    )
    number = float(told.partition("differ by ")[2].split()[0])
    offered = float(told.partition("max_noise = ")[2].split()[0])
    assert 0.001 < number < offered < 3 * number
    load(saved["int8"], max_noise=offered)
    with pytest.raises(TeacherError, match='Take dtype = "float32"'):
        load(TEACHER, dtype="bfloat16", max_noise=0.0)


def test_the_remedy_helps(saved: dict[str, Path], tmp_path: Path) -> None:
    """Without columns that are chosen by the batch, int8 is the same in all of them."""
    folder = folder_of(saved, "int8")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["llm_int8_threshold"] = 0.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    calm, first = load(tmp_path).noise, load(folder).noise
    assert calm is not None and first is not None and calm.mean < first.mean / 5


def test_noise_that_hides_a_wrong_way_leaves_paths(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where contexts with strange tokens in them would pass, trees are not proved, and each branch is read by itself."""
    monkeypatch.setattr("engine.teacher.gauge.measured", lambda *arguments: Noise(0.01, 0.6))
    teacher = load(TEACHER, dtype="bfloat16")
    assert teacher.attention == "paths" and "would hide a wrong way" in teacher.why
    with pytest.raises(TeacherError, match='attention = "tree" is not possible: noise of up to 0.6'):
        load(TEACHER, dtype="bfloat16", attention="tree")


def test_noise_is_stored(tmp_path: Path, saved: dict[str, Path]) -> None:
    folder = folder_of(saved, "int8")
    given: dict[str, Any] = {"texts": TEXTS, "students": {"bl": ASSETS / "student_bl"}}
    run_file = run_with(tmp_path, folder, **given)
    noise = load(folder).noise
    assert noise is not None
    out = score_here(run_file)
    stats = load_manifest(open_store(out)).stats
    assert stats[NOISE_MEAN] == pytest.approx(noise.mean) and stats[NOISE_MOST] == pytest.approx(noise.most)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"moves by {noise.mean:.2g} on average and {noise.most:.2g} at most (total variation" in card


def test_sizes_count_packed_weights_as_they_are(tmp_path: Path, saved: dict[str, Path]) -> None:
    for kind, folder in saved.items():
        run = load_run(run_with(tmp_path, folder))
        size = teacher_size(run, on_cpu=True)
        model = load_model(run.teacher, str(folder), torch.device("cpu"), None, "one")
        held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        if kind == "nf4":  # scales lie beside the parameters
            held += sum(
                t.numel() * t.element_size()
                for part in model.modules()
                if (state := getattr(getattr(part, "weight", None), "quant_state", None)) is not None
                for t in (state.absmax, state.code)
            )
        if kind == "ao":  # a tensor of its kind has the bytes of a float32 one, as torch counts them
            held = (folder / "model.safetensors").stat().st_size
        assert size.packed and abs(size.weights_bytes - held) < 0.03 * held, kind


def test_an_adapter_is_not_rounded_away(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"quantised \(bitsandbytes\) and stay packed.*round the adapter away"):
        load_model(
            TeacherConfig(model=str(folder_of(saved, "nf4")), device="cpu"),
            str(saved["nf4"]),
            torch.device("cpu"),
            str(tmp_path),
            "one",
        )


def test_a_packed_lm_head_is_not_stored(tmp_path: Path) -> None:
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed: pip install -e '.[bitsandbytes]'")
    bitsandbytes: Any = import_module("bitsandbytes")
    teacher = load(TEACHER)
    head = bitsandbytes.nn.Linear4bit(128, VOCAB, bias=False, quant_type="nf4").to("cpu")
    teacher.model.set_output_embeddings(head)
    with pytest.raises(TeacherError, match="the lm_head of this teacher is quantised"):
        teacher.head_weights()


def test_gaps_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    states, others = [p.log()], [q.log()]
    plain = Gauge(lambda states: states)
    noisy = Gauge(lambda states: states, noise=Noise(0.1, 0.2))
    assert noisy.gap(states, others) == pytest.approx(0.25) and noisy.unit == "in total variation"
    assert plain.gap([p[:1].log()], [q[:1].log()]) == pytest.approx(math.log(2)) and plain.unit == "nats"
    assert noisy.gap([torch.tensor([[math.nan, 0.0]])], [torch.zeros(1, 2)]) == math.inf


def test_load_stages_knows_the_noise(tmp_path: Path) -> None:
    run = load_run(run_with(tmp_path, TEACHER, 'dtype = "bfloat16"'))
    assert load_stages(run).teacher.noise is not None
