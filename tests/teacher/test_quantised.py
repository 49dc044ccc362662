"""Teachers whose quantised weights are unpacked as they are loaded (FP8, MXFP4, compressed-tensors on a CPU) are plain ones with
the numbers of their files; what would be unpacked as other numbers, or cannot be run, is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, GptOssConfig, LlamaConfig, PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from engine.plan.teacher_size import teacher_size
from engine.teacher.gauge import Gauge
from engine.teacher.loading import load_model
from engine.teacher.model import Teacher, load_teacher
from engine.teacher.packing import Window
from engine.teacher.quantised import packed, unpacking
from engine.teacher.self_check import find_masks
from schemas.errors import TeacherError
from schemas.runfile import load_run
from schemas.settings import TeacherConfig
from tests.support.quantised_files import COMPRESSED, said_of, weights_of, write_both
from tests.support.runs import ASSETS, write_run

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 2046, "eos_token_id": 2047,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
FEW: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip


def more(settings: dict[str, Any]) -> dict[str, Any]:
    return {**SMALL, **settings}


CASES: dict[str, tuple[str, PreTrainedConfig]] = {
    "fp8 llama": ("fp8", LlamaConfig(**SMALL)),
    "fp8 qwen3_moe": ("fp8", Qwen3MoeConfig(**SMALL, **FEW)),
    "fp8 deepseek_v3": ("fp8", DeepseekV3Config(**more(LATENT))),
    "mxfp4 gpt_oss": (
        "mxfp4", GptOssConfig(**more({"num_local_experts": 4, "sliding_window": 16, "rope_parameters": ROPE}))
    ),
    **{form: (form, Qwen3Config(**SMALL)) for form in COMPRESSED},
    "pack-quantized experts": ("pack-quantized", Qwen3MoeConfig(**SMALL, **FEW)),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    form, config = CASES[request.param]
    if form in COMPRESSED and find_spec("compressed_tensors") is None:
        pytest.skip("compressed-tensors is not installed: pip install -e '.[compressed-tensors]'")
    folder = tmp_path_factory.mktemp("quantised")
    write_both(folder, config, form)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "packed" / name).write_bytes((ASSETS / "teacher" / name).read_bytes())
    return form, folder


def load(folder: Path, dtype: str = "auto") -> Teacher:
    config = TeacherConfig.model_validate({"model": str(folder), "device": "cpu", "dtype": dtype})
    return load_teacher(config, str(folder), tokenizer_end=None)


def tree() -> Window:
    """A trunk of 20 and two branches of three."""
    token = torch.randint(0, 2000, (26,), generator=torch.Generator().manual_seed(0)).tolist()
    return Window(token, [*range(-1, 19), 8, 20, 21, 15, 23, 24], [*range(20), 9, 10, 11, 16, 17, 18])


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_unpacked_teachers_are_the_plain_ones_made_by_hand(case: tuple[str, Path], dtype: str) -> None:
    _, folder = case
    found, wanted = load(folder / "packed", dtype), load(folder / "plain", dtype)
    theirs = wanted.model.state_dict()
    assert found.model.state_dict().keys() == theirs.keys()
    for name, numbers in found.model.state_dict().items():
        assert numbers.dtype == theirs[name].dtype and torch.equal(numbers, theirs[name]), name
    assert not packed(found.model) and found.noise == wanted.noise and (found.noise is None) == (dtype == "auto")
    assert found.attention == wanted.attention == "tree"
    assert torch.equal(found.hidden([tree()])[0], wanted.hidden([tree()])[0])


def test_sizes_count_what_unpacked_weights_take(case: tuple[str, Path], tmp_path: Path) -> None:
    form, folder = case
    run_file = write_run(tmp_path)
    text = run_file.read_text(encoding="utf-8")
    run_file.write_text(text.replace(str(ASSETS / "teacher"), str(folder / "packed")), encoding="utf-8")
    run = load_run(run_file)
    model = load_model(run.teacher, str(folder / "packed"), CPU, None, "one")
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    size = teacher_size(run, on_cpu=True)
    assert (size.weights_bytes, size.dtype, size.packed) == (held, "float32", False)
    half = run.model_copy(update={"teacher": run.teacher.model_copy(update={"dtype": "bfloat16"})})
    assert teacher_size(half, on_cpu=True).weights_bytes == held // 2
    there, file = teacher_size(run, on_cpu=False), (folder / "packed" / "model.safetensors").stat().st_size
    if form in COMPRESSED:  # also unpacked on a GPU
        assert (there.weights_bytes, there.dtype, there.packed) == (held // 2, "bfloat16", False)
    else:
        assert there.packed and abs(there.weights_bytes - file) < 0.03 * file


def test_packed_weights_are_not_taken_for_a_table_of_places(tmp_path: Path) -> None:
    """Kernels of GPTQ and AWQ keep them as tables, which may be as wide as the longest context; a mask says yes or no."""
    write_both(tmp_path, LlamaConfig(**more({"max_position_embeddings": 64})), "fp8")
    teacher = load(tmp_path / "plain")
    layer, decoder = teacher.model.model.layers[0], teacher._decoder
    gauge = Gauge(lambda states: torch.log_softmax(teacher.logits(states), -1))
    for table, why in (
        (torch.zeros(64, 64, dtype=torch.bfloat16), ""),
        (torch.ones(64, 64, dtype=torch.bool), "a fixed table of which of 64 places see which"),
    ):
        layer.self_attn.register_buffer("table", table)
        with torch.inference_mode():
            assert find_masks(decoder, gauge, 1000, 64).why == why


# ==== what is refused


def with_said(folder: Path, said: dict[str, Any] | None) -> str:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("quantization_config")
    file.write_text(json.dumps(config | ({} if said is None else {"quantization_config": said})), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("inner", [48, 144])  # blocks of 32 and 16: as two of 24 they would pass; five do not part 144
def test_fp8_blocks_that_are_cut_off_are_refused(inner: int, tmp_path: Path) -> None:
    write_both(tmp_path, LlamaConfig(**more({"intermediate_size": inner})), "fp8")
    with pytest.raises(
        TeacherError, match=rf"mlp\.\w+\.weight has (64 x {inner}|{inner} x 64) numbers in FP8 blocks of 32 x 32"
    ):
        load(tmp_path / "packed")


def test_blocks_are_looked_for_in_all_parts_of_a_checkpoint(tmp_path: Path) -> None:
    write_both(tmp_path, LlamaConfig(**more({"intermediate_size": 48})), "fp8")
    folder = tmp_path / "packed"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for part in set(parts.values()):
        save_file({name: t for name, t in tensors.items() if parts[name] == part}, folder / part, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}), encoding="utf-8")
    with pytest.raises(TeacherError, match="the last of which are cut off"):
        load(folder)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (None, r"14 tensor\(s\), such as model\.layers\.0\.mlp\.\w+\.weight_scale, by which weights were quantised"),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8"},
            "quantised by 'modelopt', which transformers does not know",
        ),
    ],
)
def test_scales_that_nobody_reads_are_refused(said: dict[str, Any] | None, wanted: str, tmp_path: Path) -> None:
    """transformers takes such weights for plain numbers: up to 448 where .1 is meant."""
    write_both(tmp_path, Qwen3Config(**SMALL), "fp8")
    file = tmp_path / "packed" / "model.safetensors"
    tensors = {name.replace("_scale_inv", "_scale"): t for name, t in load_file(file).items()}
    tensors |= {"mtp.x.weight": torch.ones(2), "mtp.x.weight_scale": torch.ones(1)}  # of a layer that is not run
    save_file(tensors, file, {"format": "pt"})
    with_said(tmp_path / "packed", said)
    with pytest.raises(TeacherError, match=wanted):
        load(tmp_path / "packed")


def grouped(*groups: tuple[str, list[str]]) -> dict[str, Any]:
    made = {str(i): {"targets": to, "format": form, "weights": weights_of(form)} for i, (form, to) in enumerate(groups)}
    return said_of("pack-quantized") | {"config_groups": made}


def test_layers_of_several_kinds_are_refused(tmp_path: Path) -> None:
    """transformers unpacks all layers as the first group has it; experts may have their own."""
    if find_spec("compressed_tensors") is None:
        pytest.skip("compressed-tensors is not installed: pip install -e '.[compressed-tensors]'")
    Qwen3Config(**more({"quantization_config": {}})).save_pretrained(tmp_path)
    experts = ("pack-quantized", ["re:.*experts.*"])
    for same in (
        grouped(("int-quantized", ["re:.*q_proj"]), experts),
        grouped(("int-quantized", ["re:.*q_proj"]), ("int-quantized", ["re:.*k_proj"])),
    ):
        assert unpacking("m", with_said(tmp_path, same), None, CPU)["quantization_config"].dequantize
    mixed = grouped(("int-quantized", ["re:.*q_proj"]), ("pack-quantized", ["re:.*k_proj"]), experts)
    with pytest.raises(TeacherError, match="quantised in several ways"):
        unpacking("m", with_said(tmp_path, mixed), None, CPU)


@pytest.mark.parametrize(
    ("method", "packages"),
    [("gptq", "gptqmodel optimum"), ("awq", "gptqmodel"), ("compressed-tensors", "compressed-tensors")],
)
def test_a_missing_library_is_named(
    method: str, packages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.teacher.quantised.find_spec", lambda name: None)
    LlamaConfig(**more({"quantization_config": {"quant_method": method, "bits": 4}})).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=f"quantised by {method}.*`pip install {packages}` on all nodes"):
        load(tmp_path)
