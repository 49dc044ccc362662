"""The data of benchmarks/real_distill.py: two texts as prompts and completions, scored by a real teacher in several ways.

gsm8k: problems in English, which the tokenizers of all students here cut nearly as the teacher's does. udhr: the articles of
the Universal Declaration of Human Rights in six other languages of Western Europe, a document for each article in each
language; there nearly half of SmolLM2's tokens begin or end inside one of Qwen's.

gsm8k's five splits share no problem. train: what a student is trained on, the first of GSM8K's train file. valid: by which
the learning rates are chosen, from the end of that file; before it tuning: what the teacher is trained on. held: held-out
bits per byte and KL to the teacher; solve: problems for greedy generation; both from GSM8K's test file. Calculator marks
(<<48/2=24>>) are taken out: no model but those trained on this file writes them. udhr's three splits (train, valid, held)
share no article, in any language.

`RUNS` are the scoring runs, each an output folder of its own: name -> keys of [targets].
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.distill_data import Problem
from benchmarks.distill_measure import begin_id, end_id
from benchmarks.fresh import SHARED
from engine.alignment.expansion import subset_gap
from engine.bpe.vocabulary import load_vocabulary
from jobs.run.job import score
from schemas.runfile import load_run

HAS_BFLOAT16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""On processors without AVX-512 torch multiplies bfloat16 fifty times slower than float32."""


def training_precision() -> torch.autocast:
    """A context: bfloat16 where that is the faster one, else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=HAS_BFLOAT16)


RUNS = {
    "beam": "top_k = 64\nteacher_stats = true",
    "fast": 'regime = "fast"\ntop_k = 64\nteacher = false',
    "draws": 'codec = "sample"\ndraws = 50\nteacher = false',
    **{
        f"budget{budget}": f"top_k = 64\nteacher = false\ntarget_error = 0.0\nmax_nodes_per_token = {budget}.0"
        for budget in (1, 2, 6)
    },
}
"""Budget 0 is `fast`. `budgetN` spends all that it may, whatever error is expected."""


@dataclass(frozen=True, slots=True)
class Example:
    prompt: str
    completion: str

    @property
    def text(self) -> str:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Splits:
    train: list[Example]
    valid: list[Example]
    held: list[Example]
    solve: tuple[Problem, ...]
    tuning: list[Example]  # of the teacher


def gsm8k_splits(train: int, valid: int, held: int, solve: int, tuning: int) -> Splits:
    """Sizes in problems. Raises SystemExit where the files are not, or too short."""
    first, last = (_examples(SHARED / "text/gsm8k" / f"{name}.jsonl") for name in ("train", "test"))
    if train + tuning + valid > len(first) or held + solve > len(last):
        raise SystemExit(f"GSM8K has {len(first)} and {len(last)} problems; wanted {train + valid} and {held + solve}")
    problems = tuple(
        Problem(example.prompt, "#### ", int(answer.replace(",", "")))
        for example in last[held:]
        if re.fullmatch(r"-?[\d,]+", answer := example.completion.rpartition("#### ")[2])
    )
    return Splits(first[:train], first[-valid:], last[:held], problems[:solve], first[-valid - tuning : -valid])


LANGUAGES = {
    "fra": "French",
    "deu_1996": "German",
    "spa": "Spanish",
    "ita": "Italian",
    "por_PT": "Portuguese",
    "nld": "Dutch",
}


def udhr_splits(train: int, valid: int, held: int) -> Splits:
    """Sizes in documents; train from the first articles, valid from the last, held before them."""
    path = SHARED / "text/udhr.jsonl"
    if not path.is_file():
        raise SystemExit(f"no {path}: set TARGETSMITH_SHARED to the folder that has text/")
    rows = {row["code"]: row["text"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    articles = [
        _articles(rows[code], f"Universal Declaration of Human Rights, in {name}.\n")
        for code, name in LANGUAGES.items()
    ]
    documents = [article for same in zip(*articles, strict=True) for article in same]
    if any(size % len(LANGUAGES) for size in (train, valid, held)) or train + valid + held > len(documents):
        raise SystemExit(
            f"udhr: {train}, {valid} and {held} documents; wanted multiples of {len(LANGUAGES)}, at most {len(documents)}"
        )
    return Splits(documents[:train], documents[-valid:], documents[-valid - held : -valid], (), [])


def _articles(text: str, prompt: str) -> list[Example]:
    """Articles 2 to 30; a heading is a short line that ends with a number."""
    parts = re.split(r"\n(?=\w{1,10} \d+\D{0,2}\n)", text)
    return [Example(prompt, part) for part in parts[-29:]]


def _examples(path: Path) -> list[Example]:
    if not path.is_file():
        raise SystemExit(f"no {path}: set TARGETSMITH_SHARED to the folder that has text/gsm8k")
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        Example(f"Question: {row['question']}\nAnswer:", " " + re.sub(r"<<.*?>>", "", row["answer"])) for row in rows
    ]


def answer_batch(tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels [B, L]: row i of the logits predicts labels[i]; -100 where nothing counts (prompts, padding)."""
    begin, end = begin_id(tokenizer), end_id(tokenizer)
    rows: list[tuple[list[int], int]] = []
    for example in examples:
        parts = [
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (example.prompt, example.completion)
        ]
        rows.append(([begin, *parts[0], *parts[1], end], 1 + len(parts[0])))  # pyright: ignore[reportArgumentType]
    width = max(len(ids) for ids, _ in rows)
    ids_BL = torch.tensor([[*ids, *[end] * (width - len(ids))] for ids, _ in rows])
    labels_BL = torch.full_like(ids_BL, -100)
    for b, (ids, given) in enumerate(rows):
        labels_BL[b, given - 1 : len(ids) - 1] = ids_BL[b, given : len(ids)]
    return ids_BL, labels_BL


def scored(
    folder: Path, name: str, examples: list[Example], teacher: Path, students: dict[str, Path], targets: str
) -> Path:
    """Score what is not scored yet; the output folder, `folder/<name>`. Raises what `targetsmith score` raises."""
    if (folder / name / "_engine" / "manifest.json").is_file():
        return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"prompt": e.prompt, "completion": e.completion}) + "\n" for e in examples)
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    tables = "".join(
        f"[[student]]\nname = {json.dumps(student)}\ntokenizer = {json.dumps(str(place.resolve()))}\n"
        for student, place in students.items()
    )
    run_file = folder / f"{name}.toml"
    run_file.write_text(
        f"""output = {json.dumps(name)}
[teacher]
model = {json.dumps(str(teacher.resolve()))}
dtype = "float32"
[corpus]
paths = ["{name}.jsonl"]
prompt = "prompt"
completion = "completion"
unit_documents = 32
{tables}[targets]
{targets}
""",
        encoding="utf-8",
    )
    outcome = score(load_run(run_file))
    if outcome.manifest.quarantined:
        raise SystemExit(f"{outcome.store}: {outcome.manifest.quarantined} documents in quarantine, wanted none")
    return Path(str(outcome.store))


def with_published_tokenizer(teacher: Path, place: Path) -> Path:
    """The teacher's weights beside the tokenizer as Qwen publishes it; the folder. TARGETSMITH_MODELS has one that was rebuilt
    from GGUF: same ids and merges, but without NFC and some added tokens, so that no published subset is its beginning."""
    place.mkdir(parents=True, exist_ok=True)
    for file in (*teacher.glob("*.safetensors"), teacher / "config.json", teacher / "generation_config.json"):
        if not (place / file.name).exists():
            (place / file.name).symlink_to(file.resolve())
    for file in _tokenizer("qwen2.5").iterdir():
        copyfile(file, place / file.name)
    return place


def _tokenizer(name: str) -> Path:
    found = SHARED / "tokenizers" / name
    if not found.is_dir():
        raise SystemExit(f"no {found}: set TARGETSMITH_SHARED to the folder that has tokenizers/")
    return found


def subset_student(teacher: Path, place: Path) -> Path:
    """The teacher with the rows of its embedding and lm_head that the tokenizer qwen2.5-subset-32000 keeps; the folder. Raises
    SystemExit where the tokenizer is no beginning of the teacher's: targets would not be exact."""
    small = _tokenizer("qwen2.5-subset-32000")
    if gap := subset_gap(load_vocabulary(str(teacher)), load_vocabulary(str(small))):
        raise SystemExit(f"{small}: no beginning of the tokenizer of {teacher}: {gap}")
    if (place / "config.json").is_file():
        return place
    tokenizer, whole = AutoTokenizer.from_pretrained(small), AutoTokenizer.from_pretrained(teacher)
    ids, old = tokenizer.get_vocab(), whole.get_vocab()
    row_of_V = torch.empty(len(ids), dtype=torch.int64)
    for piece, i in ids.items():
        row_of_V[i] = old[piece]
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    kept = {
        name: weight[row_of_V]
        for name, weight in model.state_dict().items()
        if name.endswith(("embed_tokens.weight", "lm_head.weight"))
    }
    model.resize_token_embeddings(len(ids), mean_resizing=False)
    model.load_state_dict(kept, strict=False)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        piece = whole.convert_ids_to_tokens(getattr(model.config, name))
        setattr(model.config, name, ids[piece])
        setattr(model.generation_config, name, ids[piece])
    model.save_pretrained(place)
    for file in small.iterdir():
        copyfile(file, place / file.name)
    return place
