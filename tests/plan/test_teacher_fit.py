"""A teacher's size from its configuration and the heads of its files, against published and loaded models; who cannot fit is
refused with the arithmetic, before anything is started or written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from engine.plan.host_memory import available_bytes
from engine.plan.teacher_fit import GIB, AtOnce, Room, check_fits, least, needs_of
from engine.plan.teacher_size import TeacherSize, _tensors, _without_memory, size_of, teacher_size
from engine.scoring.room import at_once, check_in_this_process, check_on_this_machine
from engine.teacher.kept_states import STATE_BYTES
from jobs.run.job import score
from schemas.errors import TeacherError
from schemas.runfile import load_run
from tests.support.decoders import RECURRENT, SMALL
from tests.support.runs import ASSETS, write_run

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B: dict[str, Any] = LLAMA_8B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64
}  # fmt: skip
QWEN3_30B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}  # fmt: skip
PUBLISHED = {  # parameters as their cards give them, bytes of keys and values of a token in bfloat16 by hand
    "Llama-3.1 8B": (LlamaConfig(**LLAMA_8B), 8_030_261_248, 32 * 2 * 8 * 128 * 2),
    "Llama-3.1 70B": (LlamaConfig(**LLAMA_70B), 70_553_706_496, 80 * 2 * 8 * 128 * 2),
    "Qwen3 30B-A3B": (Qwen3MoeConfig(**QWEN3_30B), 30_532_122_624, 48 * 2 * 4 * 128 * 2),
    "DeepSeek-V3": (DeepseekV3Config(), 671_026_404_352, 61 * (512 + 64) * 2),
}
TINY: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen3 tied": Qwen3Config(**SMALL, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=6),
    "deepseek": DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=4, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_sizes(name: str) -> None:
    config, parameters, cache = PUBLISHED[name]
    size = size_of(config, _without_memory(config, False), "bfloat16")
    assert (size.parameters, size.weights_bytes, size.cache_bytes_per_token) == (parameters, 2 * parameters, cache)


@pytest.mark.parametrize("name", ["smollm2", "gemma", "qwen"])
def test_the_heads_of_real_files_say_what_the_architecture_has(name: str) -> None:
    folder = Path(os.environ.get("TARGETSMITH_MODELS", "nowhere")) / name
    if not (folder / "model.safetensors").exists():
        pytest.skip("TARGETSMITH_MODELS names no folder with real models (shared/tools/real_models.py)")
    config = AutoConfig.from_pretrained(folder)
    read = size_of(config, _tensors([folder / "model.safetensors"]), "float32")
    assert read == size_of(config, _without_memory(config, False), "float32")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sizes_are_those_of_the_loaded_model_and_its_cache(name: str, dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(TINY[name]).save_pretrained(tmp_path)
    size = size_of(TINY[name], _tensors([tmp_path / "model.safetensors"]), dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    weights = {t.data_ptr(): t for t in model.state_dict().values()}  # tied ones once
    assert size.parameters == sum(t.numel() for t in weights.values())
    real = sum(t.numel() * t.element_size() for t in weights.values())  # some models keep a few numbers in float32
    assert abs(size.weights_bytes - real) < 0.001 * real
    cache: Any = DynamicCache()
    with torch.inference_mode():
        hidden = model.base_model(input_ids=torch.arange(3, 13)[None], past_key_values=cache, use_cache=True)
    kept = [part for layer in cache.layers for part in (layer.keys, layer.values) if part is not None]
    assert size.cache_bytes_per_token * 10 == sum(part.numel() * part.element_size() for part in kept)
    assert size.state_bytes == hidden.last_hidden_state[0, 0].numel() * size.number_bytes


def test_the_number_format_is_the_one_that_will_be_loaded(tmp_path: Path) -> None:
    """auto: as saved, on a CPU float32; and weights in another format than the file's."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).to(torch.bfloat16)
    made.save_pretrained(tmp_path / "teacher")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "teacher" / name).write_bytes((ASSETS / "teacher" / name).read_bytes())
    run = with_teacher(write_run(tmp_path), tmp_path / "teacher")
    count = sum(p.numel() for p in made.parameters())
    for on_cpu, dtype, wanted in ((False, None, 2), (True, None, 4), (False, "float32", 4), (True, "float16", 2)):
        asked = load_run(run)
        if dtype is not None:
            asked = asked.model_copy(update={"teacher": asked.teacher.model_copy(update={"dtype": dtype})})
        size = teacher_size(asked, on_cpu=on_cpu)
        assert (size.parameters, size.weights_bytes) == (count, wanted * count)


def test_weights_that_tell_no_shapes_are_counted_by_the_architecture(tmp_path: Path) -> None:
    config = LlamaConfig(**SMALL)
    config.save_pretrained(tmp_path / "teacher")
    torch.save({}, tmp_path / "teacher" / "pytorch_model.bin")
    (tmp_path / "teacher" / "tokenizer.json").write_bytes((ASSETS / "teacher" / "tokenizer.json").read_bytes())
    size = teacher_size(load_run(with_teacher(write_run(tmp_path), tmp_path / "teacher")), on_cpu=True)
    assert size.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(TeacherError, match=r"model\.safetensors is no file of safetensors"):
        list(_tensors([tmp_path / "model.safetensors"]))


# ==== the arithmetic

BATCH = AtOnce(tokens=8192, rows=46, mask_bytes=1 << 26, rounds=True)


def published(name: str, dtype: str = "bfloat16") -> TeacherSize:
    config = PUBLISHED[name][0]
    return size_of(config, _without_memory(config, False), dtype)


def test_a_70b_teacher_does_not_fit_on_one_gpu_of_80_gb() -> None:
    size, room = published("Llama-3.1 70B"), Room("free on a GPU of 80 GB", 79 * GIB, "cuda")
    with pytest.raises(TeacherError) as caught:
        check_fits(size, BATCH, room, "llama-70b")
    message, needs = str(caught.value), needs_of(size, least(BATCH), "cuda")
    assert needs.weights == 141_107_412_992 and needs.total == sum(count for _, count in needs.lines())
    for told in (
        "[teacher] model = 'llama-70b' (70,553,706,496 parameters, bfloat16) does not fit", "weights 131.42 GiB",
        f"at least {needs.total / GIB:,.2f} GiB", "there are 79.00 GiB (free on a GPU of 80 GB)",
    ):  # fmt: skip
        assert told in message
    billions = float(message.rpartition("at most ")[2].split()[0])
    assert 41.5 < billions < 42.5  # 79 GiB less what is beside the weights, by two


def test_what_is_said_to_fit_fits() -> None:
    """Each way of a refusal, tried."""
    size, host = published("Llama-3.1 8B", "float32"), "memory of this machine"
    with pytest.raises(TeacherError) as caught:
        check_fits(size, BATCH, Room(host, 40 * GIB, "cpu", teachers=2), "m")
    assert "[ray] actors = 1" in str(caught.value) and 'dtype = "bfloat16"' in str(caught.value)
    check_fits(size, BATCH, Room(host, 40 * GIB, "cpu", teachers=1), "m")
    check_fits(published("Llama-3.1 8B"), BATCH, Room(host, 40 * GIB, "cpu", teachers=2), "m")
    wanted = needs_of(size, least(BATCH), "cpu").total
    check_fits(size, BATCH, Room(host, wanted, "cpu"), "m")
    with pytest.raises(TeacherError):
        check_fits(size, BATCH, Room(host, wanted - 1, "cpu"), "m")


def test_a_want_of_room_for_large_passes_is_a_hint_and_no_refusal() -> None:
    size = published("Llama-3.1 8B")
    full = needs_of(size, BATCH, "cuda").total
    assert check_fits(size, BATCH, Room("a GPU", full, "cuda"), "m") == ""
    hint = check_fits(size, BATCH, Room("a GPU", full - 1, "cuda"), "m")
    assert "batch_tokens = 8192" in hint and "batch_tokens = 4096" in hint


# ==== this machine


def test_what_control_groups_allow_counts(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:  64 kB\n")
    assert available_bytes(proc, groups) == 64 * 1024
    (proc / "self" / "cgroup").write_text("0::/jobs/one\n")
    (groups / "jobs" / "one").mkdir(parents=True)
    for folder, most, used in ((groups / "jobs", "30000", 20000), (groups / "jobs" / "one", "max", 19000)):
        (folder / "memory.max").write_text(most)
        (folder / "memory.current").write_text(str(used))
        (folder / "memory.stat").write_text("anon 9000\ninactive_file 500\nactive_file 100\n")
    assert available_bytes(proc, groups) == 30000 - 20000 + 600
    assert available_bytes(tmp_path / "none", groups) is None
    old = tmp_path / "v1"
    (proc / "self" / "cgroup").write_text("5:memory:/one\n4:cpu:/\n")
    (old / "memory" / "one").mkdir(parents=True)
    (old / "memory" / "one" / "memory.limit_in_bytes").write_text("40000")
    (old / "memory" / "one" / "memory.usage_in_bytes").write_text("1000")
    (old / "memory" / "one" / "memory.stat").write_text("rss 900\n")
    assert available_bytes(proc, old) == 39000


def with_teacher(run_file: Path, folder: Path) -> Path:
    text = run_file.read_text(encoding="utf-8")
    run_file.write_text(text.replace(json.dumps(str(ASSETS / "teacher")), json.dumps(str(folder))), encoding="utf-8")
    return run_file


def test_a_run_with_a_teacher_that_cannot_fit_starts_nothing(tmp_path: Path) -> None:
    """Files of 282 GB, all of it holes: nothing could be read of them in the time of this test."""
    folder = tmp_path / "teacher"
    LlamaConfig(**{**LLAMA_70B, "vocab_size": 512}).save_pretrained(folder)
    count = 70 * 10**9
    head = json.dumps({"w": {"dtype": "F32", "shape": [70, 10**9], "data_offsets": [0, 4 * count]}}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        stream.truncate(8 + len(head) + 4 * count)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ASSETS / "teacher" / name).read_bytes())
    run_file = with_teacher(write_run(tmp_path), folder)
    with pytest.raises(TeacherError, match=r"70,000,000,000 parameters, float32\) does not fit"):
        score(load_run(run_file), "local")
    assert not ray.is_initialized() and not (tmp_path / "out").exists()
    with pytest.raises(TeacherError, match="does not fit"):  # and on a cluster in the actor, before it reads a weight
        check_in_this_process(load_run(run_file))


def test_kept_states_are_counted_for_whoever_keeps_them(tmp_path: Path) -> None:
    """In full; when memory runs out fewer are kept, so that nobody is refused for them."""
    for name, model in (("llama", LlamaConfig(**SMALL)), ("jamba", RECURRENT["jamba"])):
        model.save_pretrained(tmp_path / name)
        torch.save({}, tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "tokenizer.json").write_bytes((ASSETS / "teacher" / "tokenizer.json").read_bytes())
        run = load_run(with_teacher(write_run(tmp_path), tmp_path / name))
        size = teacher_size(run, on_cpu=True)
        work = at_once(run, size)
        kept = needs_of(size, work, "cpu").kept_states
        assert kept == (2 * STATE_BYTES if name == "jamba" else 0)
        assert needs_of(size, least(work), "cpu").kept_states == 0
        asked = run.model_copy(update={"teacher": run.teacher.model_copy(update={"attention": "states"})})
        assert at_once(asked, size).states_bytes == 2 * STATE_BYTES


def test_the_demo_fits_here(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path))
    assert check_on_this_machine(run, 3) == ""
    assert at_once(run, teacher_size(run, on_cpu=True)).rounds
