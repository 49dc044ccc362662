"""The shipped demo assets: small, loadable offline, exact, really trained, and what the script would make again."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import tokenizers
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from engine.corpus.scan import scan_corpus
from engine.dataset.store import open_store
from engine.plan.make_plan import make_plan
from jobs.demo import demo_run
from jobs.look.document_view import tokens_of

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "jobs" / "demo_assets"
BYTE_LEVEL, ALL = ("teacher", "student_bl"), ("teacher", "student_bl", "student_sp")
SIZES = {"teacher": 2048, "student_bl": 800, "student_sp": 1000}

HOSTILE = (
    " leading and trailing  ",
    "\n\n\r\n\ttabs\r and \x00 NUL \x7f \x1b[0m",
    "e\u0301 is not é; ﬁ ﬀ Å Å ²³ ①",
    "👩‍👩‍👧‍👦🏳️‍🌈 e̶̛̦ \u202e right to left \u200b\ufeff",
    "漢字仮名 العربية עברית ไทย हिन्दी \U0001f9ff\U000e0001",
    "1234567890.000,5 ١٢٣ ½ 1_000 0x1F '''s're don’t I'LL",
    "▁ Ġ Ċ <0x0A> <unk> <s> ## #### @@",
    "\ufffd\U0010ffff\ud7ff\ue000",
)


def script(name: str) -> ModuleType:
    """One of examples/*.py as a module: the folder is no package, and is not installed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load(name: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(ASSETS / name, local_files_only=True)


def plain_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a model only waits for a second thread, for seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]


def test_all_assets_fit_in_five_megabytes():
    assert 1_000_000 < sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 5_000_000


def test_the_corpus_is_what_the_script_generates(records: list[dict[str, str]]):
    corpus = script("demo_corpus")
    assert [r["text"] for r in records] == [corpus.document("held-out", i) for i in range(600)]
    assert [r["id"] for r in records] == [f"demo-{i:04d}" for i in range(600)]


def test_the_corpus_is_varied_and_held_out(records: list[dict[str, str]]):
    corpus, texts = script("demo_corpus"), [r["text"] for r in records]
    assert len(set(texts)) == 600
    assert sum("\n" in t for t in texts) > 100 and sum("#### " in t for t in texts) > 100
    assert {len(c.encode()) for t in texts for c in t} == {1, 2, 3, 4}
    # The generator tells splits apart by name alone, so a collision would be chance: rare among the first documents.
    assert not set(texts) & {corpus.document("train", i) for i in range(5_000)}


def test_every_worked_step_is_right(records: list[dict[str, str]]):
    sign = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
    ascii_signs = str.maketrans({"×": "*", "÷": "/", "−": "-"})
    steps = [m for r in records for m in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", r["text"].translate(ascii_signs))]
    assert len(steps) > 1_000
    assert all(sign[s](int(a), int(b)) == int(c) for a, s, b, c in steps)


@pytest.mark.parametrize("name", ALL)
def test_a_tokenizer_gives_the_corpus_back(name: str, records: list[dict[str, str]]):
    tokenizer = load(name)
    assert len(tokenizer) == SIZES[name] == max(tokenizer.get_vocab().values()) + 1
    for record in records:
        ids = plain_ids(tokenizer, record["text"])
        assert tokenizer.decode(ids) == record["text"]
        assert tokenizer.decode(tokenizer.encode(record["text"]), skip_special_tokens=True) == record["text"]


@pytest.mark.parametrize("name", BYTE_LEVEL)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_byte_level_tokenizer_gives_any_text_back(name: str, text: str):
    tokenizer = load(name)
    assert tokenizer.decode(plain_ids(tokenizer, text)) == text


def test_special_tokens_and_templates():
    text = "Zoë has 2 apples."
    for name, bos, eos, adds in (
        ("teacher", "<|bos|>", "<|eos|>", True),
        ("student_sp", "<s>", "</s>", True),
        ("student_bl", "<|endoftext|>", "<|endoftext|>", False),
    ):
        tokenizer = load(name)
        assert (tokenizer.bos_token, tokenizer.eos_token) == (bos, eos)
        given = [tokenizer.convert_tokens_to_ids(bos)] if adds else []
        assert tokenizer.encode(text) == [*given, *plain_ids(tokenizer, text)]


def test_the_students_are_of_two_kinds(records: list[dict[str, str]]):
    sp, bl = load("student_sp"), load("student_bl")
    pieces = [p for r in records for p in sp.tokenize(r["text"])]
    assert "<0xC2>" in pieces and "<0x0A>" in pieces and "<unk>" not in pieces, (
        "byte fallback must occur, <unk> must not"
    )
    assert sp.backend_tokenizer.pre_tokenizer is None and sp.backend_tokenizer.normalizer is not None
    assert bl.backend_tokenizer.pre_tokenizer is not None and bl.backend_tokenizer.normalizer is None
    assert [sp.convert_tokens_to_ids(f"<0x{b:02X}>") for b in range(256)] == list(range(3, 259))


def test_the_teacher_is_trained(one_thread: None, records: list[dict[str, str]]):
    tokenizer = load("teacher")
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "teacher", dtype=torch.float32, local_files_only=True)
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for record in records[:20]:
            ids = torch.tensor([[*tokenizer.encode(record["text"]), tokenizer.eos_token_id]])
            logps = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
            total -= logps.gather(-1, ids[0, 1:, None]).sum().item()
            tokens += ids.shape[1] - 1
    assert model.config.vocab_size == len(tokenizer) and model.config.max_position_embeddings == 512
    assert total / tokens < 1.2, f"{total / tokens:.3f} nats/token; uniform is {math.log(len(tokenizer)):.3f}"


def test_the_run_file_names_what_is_there():
    run = tomllib.loads((ASSETS / "run.toml").read_text(encoding="utf-8"))
    named = [run["teacher"]["model"], *run["corpus"]["paths"], *(s["tokenizer"] for s in run["student"])]
    assert all((ASSETS / n).exists() for n in named)
    assert len({s["name"] for s in run["student"]}) == len(run["student"]) == 2


def test_the_tokenizers_are_what_the_script_trains(monkeypatch: pytest.MonkeyPatch):
    """Bit for bit, with the release of `tokenizers` that the README names; another release may break ties otherwise."""
    if f"(here {tokenizers.__version__})" not in (ASSETS / "README.md").read_text(encoding="utf-8"):
        pytest.skip(f"assets were built with another release of tokenizers than {tokenizers.__version__}")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    make, corpus = script("make_demo"), script("demo_corpus")
    held_out = {corpus.document("held-out", i) for i in range(make.HELD_OUT_DOCUMENTS)}
    texts = [t for i in range(make.TOKENIZER_DOCUMENTS + 100) if (t := corpus.document("train", i)) not in held_out]
    for name, tokenizer in make.make_tokenizers(texts[: make.TOKENIZER_DOCUMENTS]).items():
        assert json.loads(tokenizer.to_str()) == json.loads((ASSETS / name / "tokenizer.json").read_text("utf-8")), name


def test_show_finds_the_tokenizers_of_the_demo_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = demo_run(Path("demo_out"))
    plan = make_plan(run, scan_corpus(run.corpus, run.base_dir))
    for product, facts in plan.products.items():  # also where an output, of before 0.7.0, has no tokens
        assert tokens_of(open_store(tmp_path / "none"), product, facts, [tmp_path]) is not None, product
