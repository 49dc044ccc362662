"""Every causal language model that transformers knows, tiny: one of the ways, or a TeacherError that says why; nothing else.

Where a teacher comes of it, its numbers are those of each context scored quite alone by the model's own forward.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.teacher.model import load_teacher
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig
from tests.support.architectures import NAMES, build, tiny
from tests.support.decoders import alone, logps, random_window
from tests.support.tiers import one_of
from tests.support.vocabularies import EFFORT

TOLERANCE = 1e-3  # nats, fp32
EXPECTED = {  # of some that are well known, or that once ended otherwise
    "llama": "tree", "gemma3": "tree", "gemma4_text": "tree", "qwen3_moe": "tree", "gpt_oss": "tree", "deepseek_v3": "tree",
    "mllama": "tree",
    "llama4": "states", "llama4_text": "states", "mamba2": "states", "qwen3_next": "states", "bloom": "states",
    "deepseek_v4": "states", "rwkv": "states", "recurrent_gemma": "states", "openai-gpt": "paths",
    "bert": "refused", "bert-generation": "refused", "cpmant": "refused", "xlm": "refused",
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # of models with odd configurations, about themselves


@pytest.mark.parametrize("name", one_of(8, list(NAMES)))
def test_a_way_or_a_reason(name: str, tmp_path: Path) -> None:
    made = tiny(name)
    if made.config is None:
        pytest.skip(f"no small configuration: {made.why}")
    model = build(made.config)
    model.save_pretrained(tmp_path)
    if type(model.config) is not type(made.config):  # of several parts, of which this model is the text's
        made.config.save_pretrained(tmp_path)
    try:
        teacher = load_teacher(TeacherConfig(model=str(tmp_path), device="cpu"), str(tmp_path), tokenizer_end=2)
    except TeacherError as error:
        assert EXPECTED.get(name, "refused") == "refused", error
        assert str(error).startswith(f"[teacher] {tmp_path.name} ({type(model).__name__}): "), error
        assert str(error).count(". ") >= 1 and len(str(error)) < 700, error  # what was found, and what to do next
        assert made.runs or "cannot be scored" in str(error), error
        return
    assert EXPECTED.get(name, teacher.attention) == teacher.attention
    assert (teacher.attention != "tree") == bool(teacher.why)
    window = random_window(3, 14)
    gap = float((logps(teacher, [window])[0] - alone(model, window)).abs().max())
    assert gap <= TOLERANCE, (teacher.attention, gap)


def test_most_architectures_can_be_tried() -> None:
    """A change of transformers that leaves little to be tried is noticed."""
    names = NAMES if EFFORT > 1 else NAMES[::3]
    made = [tiny(name) for name in names]
    assert sum(m.config is not None for m in made) >= 0.9 * len(names)
    assert sum(m.runs for m in made) >= 0.8 * len(names)
    assert set(EXPECTED) <= set(NAMES) and all(tiny(name).config for name in EXPECTED)
