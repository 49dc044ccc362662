"""Which way every causal architecture of the installed transformers takes: python -m benchmarks.architectures --write

A tiny model of each with random weights (tests/support/architectures.py, tests/support/hybrids.py) is loaded as a teacher and
reads one tree; without --write the table is printed, with it docs/architectures.md is made anew. --name (repeatable): only these.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from benchmarks.kept_states import Counted, gap
from engine.teacher.model import load_teacher
from engine.teacher.packing import Window
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig
from tests.support.architectures import NAMES, build, tiny
from tests.support.decoders import VOCAB
from tests.support.hybrids import HYBRIDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
TRUNK, BRANCHES = 48, 3
COMPARED = 12
MADE_BY_HAND = {config.model_type: config for config in HYBRIDS.values()}


@dataclass(frozen=True, slots=True)
class Line:
    """name: the architecture's in transformers. way: tree, states, paths, refused or not tried. tokens: read for each token of
    the trunk, padding included; gap: nats, largest of some contexts beside each alone, 0 where there is no teacher. note: why
    it is not a tree, or no teacher."""

    name: str
    way: str
    tokens: float
    gap: float
    note: str

    def __str__(self) -> str:
        numbers = f"{self.tokens:.2f} | {self.gap:.0e}" if self.tokens else "|"
        return f"| {self.name} | {self.way} | {numbers} | {self.note.replace('|', '/')} |"


def tree() -> Window:
    """A trunk with `BRANCHES` branches of one token behind each of its tokens: what bytes ask for, about."""
    parent, depth = list(range(-1, TRUNK - 1)), list(range(TRUNK))
    for n in range(TRUNK):
        parent += [n] * BRANCHES
        depth += [n + 1] * BRANCHES
    token = torch.randint(3, VOCAB - 2, (len(parent),), generator=torch.Generator().manual_seed(0)).tolist()
    return Window(token, parent, depth)


def line(name: str) -> Line:
    """Load a tiny model of one architecture and let it read the tree."""
    config, why = MADE_BY_HAND.get(name), ""
    if config is None:
        made = tiny(name)
        config, why = made.config, made.why
    if config is None:
        return Line(name, "not tried", 0.0, 0.0, f"no small configuration: {_short(why)}")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(folder) / "tiny"
        model = build(config)
        model.save_pretrained(place)
        if type(model.config) is not type(config):  # of several parts, of which this model is the text's
            config.save_pretrained(place)
        try:
            teacher = load_teacher(TeacherConfig(model=str(place), device="cpu"), str(place), tokenizer_end=None)
        except TeacherError as error:
            return Line(name, "refused", 0.0, 0.0, _short(str(error).split(": ", 1)[1]))
        counted, window = Counted(teacher), tree()
        states = teacher.hidden([window])[0]
        counted.stop()
        return Line(
            name, teacher.attention, counted.tokens / TRUNK, gap(teacher, window, states, COMPARED), teacher.why
        )


def _short(text: str) -> str:
    first = " ".join(text.split()).split(". ")[0]
    return first if len(first) <= 150 else first[:147] + "..."


def page(lines: list[Line]) -> str:
    """The file as it is stored."""
    count = {way: sum(one.way == way for one in lines) for way in ("tree", "states", "paths", "refused", "not tried")}
    told = ", ".join(f"{number} {way}" for way, number in count.items())
    return f"""# Architectures

Every causal language model of transformers {transformers.__version__}, as a teacher: a tiny one with random weights, in
fp32 on a CPU, made by `python -m benchmarks.architectures --write`; `tests/benchmarks/test_architectures.py` compares some of
its lines. {told}.

*Way*: `tree`, all contexts in one pass; `states`, the trunk once and branches behind kept states; `paths`, one sequence for
each (`docs/design.md`, section 3). *Tokens*: what the model reads for each token of a trunk of {TRUNK} with {BRANCHES} branches
of one token behind each, padding included; {BRANCHES + 1} are the tree itself. *Gap*: nats, the largest of {COMPARED} contexts
beside the same context alone.

| architecture | way | tokens | gap | why no tree |
|---|---|---|---|---|
""" + "".join(f"{one}\n" for one in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--name", action="append", choices=NAMES)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    lines = []
    for name in args.name or NAMES:
        lines.append(line(name))
        print(lines[-1], flush=True)
    if args.write:
        PAGE.write_text(page(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
