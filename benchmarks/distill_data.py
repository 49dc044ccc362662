"""The data of benchmarks/distill.py: texts, problems with known answers, and what the teacher says of the texts.

Two settings. `arithmetic`: word problems of the demo's generator with the demo's teacher; training documents, held-out ones
of the same kinds, and longer ones (six events; teacher and students saw four at most), each from a seed of its own.
`stories`: TinyStories; the teacher is the shared model with the fewest bits per byte there (stories260K: 1.101 on the stories
held out here, vachan-gpt2-280K 1.104). Both leave out what would only cost time: worksheets, and long stories.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.reader.targets import Targets
from jobs.run.job import score
from schemas.runfile import load_run

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "jobs" / "demo_assets"
SHARED = Path(os.environ.get("TARGETSMITH_SHARED", "../shared"))
STORY_END = "<|endoftext|>"
EVENTS = 6  # of a longer problem


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt, and the number that a right continuation has behind the first `mark` ("": at its beginning)."""

    prompt: str
    mark: str
    answer: int


@dataclass(frozen=True, slots=True)
class Setting:
    """Texts and tokenizers of one comparison. `longer` and the problems may be empty."""

    name: str
    teacher: Path
    tokenizer: Path  # the student's; the ceiling has the teacher's
    train: tuple[str, ...]
    held: tuple[str, ...]
    longer: tuple[str, ...] = ()
    problems: dict[str, tuple[Problem, ...]] = field(default_factory=dict)
    batch: int = 16  # documents of a training step


def arithmetic(documents: int, _folder: Path, held: int = 300, problems: int = 300) -> Setting:
    """documents: of training. The generator's families and layouts as they come, without worksheets.

    Three kinds of problems. `solve`: the prompt is the question, the answer behind '#### ' counts. `step`: the worked steps
    are there up to the last '=', the result counts. `long`: as `step`, for stories of EVENTS events.
    """
    corpus = _generator()

    def single(split: str) -> Iterator[str]:
        return (text for i in count() if not (text := corpus.document(split, i)).startswith("Worksheet"))

    def drawn(split: str, number: int, events: int = 0) -> Iterator[tuple[Any, random.Random]]:
        for i in range(number):
            rng = random.Random(f"{corpus.SEED}/{split}/{i}")
            yield corpus.inventory(rng, events) if events else rng.choice(corpus.FAMILIES)(rng), rng

    def asked(kind: str, events: int = 0) -> tuple[Problem, ...]:
        made = []
        for p, _ in drawn(f"distill-{kind}", problems, events):
            question, steps = f"Question: {p.story} {p.question}\nAnswer:", ", then ".join(p.steps)
            worked = f"{question} {steps.rpartition('=')[0]}="
            result = int(p.steps[-1].rpartition(" ")[2])
            made.append(Problem(question, "#### ", p.answer) if kind == "solve" else Problem(worked, "", result))
        return tuple(made)

    train = tuple(islice(single("distill"), documents))
    seen = set(train)
    return Setting(
        name="arithmetic",
        teacher=ASSETS / "teacher",
        tokenizer=ASSETS / "student_bl",
        train=train,
        held=tuple(islice((text for text in single("distill-held-out") if text not in seen), held)),
        longer=tuple(corpus.render(p, rng) for p, rng in drawn("distill-longer-text", held // 2, EVENTS)),
        problems={"solve": asked("solve"), "step": asked("step"), "long": asked("long", EVENTS)},
    )


def stories(documents: int, folder: Path, held: int = 200, longest: int = 700) -> Setting:
    """The first `documents` stories of at most `longest` bytes for training, the next `held` held out. The tokenizers of the
    shared models are one (stories260K, vachan-gpt2-280K) or single characters (babyllama): the student's own is learnt here
    from its training texts, byte-level, 1,000 tokens."""
    text = (SHARED / "text" / "tinystories_sample_2MB.txt").read_text(encoding="utf-8")
    whole = [part.strip() for part in text.split(STORY_END)[:-1]]  # the last one is cut off
    short = [story for story in whole if story and len(story.encode()) <= longest]
    if len(short) < documents + held:
        raise SystemExit(f"{len(short)} stories of at most {longest} bytes, wanted {documents} + {held}")
    train = tuple(short[:documents])
    return Setting(
        name="stories",
        teacher=SHARED / "models" / "stories260K",
        tokenizer=train_tokenizer(train, 1000, folder / f"tokenizer-{documents}"),
        train=train,
        held=tuple(short[documents : documents + held]),
        batch=8,
    )


def train_tokenizer(texts: Sequence[str], size: int, folder: Path) -> Path:
    """Byte-level BPE with GPT-2's pattern and one special, STORY_END; the folder it is saved in."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    end = AddedToken(STORY_END, special=True, normalized=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False),
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=STORY_END, eos_token=STORY_END).save_pretrained(folder)
    return folder


def _generator() -> ModuleType:
    """examples/demo_corpus.py, which is a script beside others and no package."""
    spec = importlib.util.spec_from_file_location("demo_corpus", ROOT / "examples" / "demo_corpus.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_corpus"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# ---- what the teacher says ----


def write_run(setting: Setting, folder: Path, targets: str, name: str) -> Path:
    """A run file for the training documents, in `folder`; the output is `folder/<name>`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"id": f"d{i}", "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(setting.train)
    )
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    run_file = folder / f"{name}.toml"
    run_file.write_text(
        f"""output = {json.dumps(name)}
[teacher]
model = {json.dumps(str(setting.teacher.resolve()))}
dtype = "float32"
[corpus]
paths = ["train.jsonl"]
id = "id"
unit_documents = 128
[[student]]
name = "small"
tokenizer = {json.dumps(str(setting.tokenizer.resolve()))}
[targets]
{targets}
""",
        encoding="utf-8",
    )
    return run_file


def scored(setting: Setting, folder: Path, targets: str, name: str) -> Path:
    """Score what is not scored yet; the output folder. Raises what `targetsmith score` raises."""
    outcome = score(load_run(write_run(setting, folder, targets, name)))
    if outcome.manifest.quarantined:
        raise SystemExit(f"{outcome.store}: {outcome.manifest.quarantined} documents in quarantine, wanted none")
    return Path(str(outcome.store))


def stored_bytes(out: Path, needs: dict[str, tuple[str, ...]], per: str) -> float:
    """Compressed bytes of the columns in `needs` (product -> names) for each position of the product `per`."""
    total = 0
    for product, columns in needs.items():
        for path in Targets(out, product).files:
            footer = pq.read_metadata(path)
            chunks = (
                footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns)
            )
            total += sum(
                chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns
            )
    return total / Targets(out, per).positions


SETTINGS = {"arithmetic": arithmetic, "stories": stories}
