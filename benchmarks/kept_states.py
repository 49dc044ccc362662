"""Tokens and passes that a hybrid or recurrent teacher takes for real context trees: python -m benchmarks.kept_states

Documents of --tokens teacher tokens (TinyStories, one after the other), their context trees for the boundaries of a student and
for all bytes, tokenizers of the shared folder (TARGETSMITH_SHARED, default ../shared); small models with random weights of the
architectures of tests/support/hybrids.py. Tokens are counted at the model's own forward, padding included; those of paths from
the trees. Columns: the way that the start-up check took (three digits: pieces of several tokens or single ones, level by level or
path by path, rows of mixed depths or of one), nodes, tokens and passes for each token of the trunk, seconds beside a plain pass
over the trunk, and the largest gap in nats of --compared nodes, each scored alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.contexts import SHARED, prose, wanted_of
from engine.bpe.merges import build_merge_table
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter
from engine.bpe.vocabulary import load_vocabulary
from engine.contexts.builder import ContextBuilder
from engine.teacher.decoder import paths_of
from engine.teacher.model import Teacher, load_teacher
from engine.teacher.packing import Window
from schemas.settings import TeacherConfig
from tests.support.decoders import VOCAB
from tests.support.hybrids import HYBRIDS

BYTES = "all bytes"


def windows(teacher: str, student: str, tokens: int, documents: int) -> dict[str, list[Window]]:
    """Trees of documents of `tokens` tokens each, by what is asked for."""
    vocabulary, other = (load_vocabulary(str(SHARED / "tokenizers" / name)) for name in (teacher, student))
    builder = ContextBuilder(Segmenter(vocabulary, build_merge_table(vocabulary), build_splitter(vocabulary)))
    stories = "\n\n".join(prose(tokens * documents * 20))
    ids, ends = vocabulary.encode(stories)
    out: dict[str, list[Window]] = {student: [], BYTES: []}
    shift, at = len(vocabulary.prefix_bytes), 0
    for _ in range(documents):
        begin = ends[at - 1] if at else 0
        text = stories.encode()[begin : ends[at + tokens - 1]].decode(errors="ignore")
        at += tokens
        given = np.array(vocabulary.encode(text)[0][:tokens], np.int32)
        data = vocabulary.prefix_bytes + text.encode()
        for name, places in (
            (student, wanted_of(other, text, shift)),
            (BYTES, np.arange(len(data) + 1, dtype=np.int32)),
        ):
            size = sum(len(vocabulary.token_bytes[i]) for i in given)
            tree = builder.build(data[:size], given, places[places <= size], (0,), fringe=False)
            out[name].append(Window(tree.token % VOCAB, tree.parent, tree.depth))
    return out


class Counted:
    """Counts what goes through the part of a model that gives its hidden states."""

    def __init__(self, teacher: Teacher) -> None:
        self.tokens = self.passes = 0
        self._hook = teacher._decoder.body.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: tuple[object, ...], given: dict[str, torch.Tensor]) -> None:
        self.tokens += given["input_ids"].numel()
        self.passes += 1

    def stop(self) -> None:
        """Count no more."""
        self._hook.remove()


def path_of(window: Window, node: int) -> list[int]:
    """Tokens of a node's context."""
    path = []
    while node >= 0:
        path.append(int(window.token[node]))
        node = int(window.parent[node])
    return path[::-1]


@torch.inference_mode()
def gap(teacher: Teacher, window: Window, states: torch.Tensor, count: int) -> float:
    """Nats, of nodes spread over the window, each scored alone by the model's own forward."""
    worst = 0.0
    for node in np.linspace(0, len(window.token) - 1, count).astype(int).tolist():
        alone = teacher.model(input_ids=torch.tensor([path_of(window, node)], device=teacher.device)).logits[0, -1]
        ours = teacher.logits(states[node : node + 1])[0]
        worst = max(worst, float((torch.log_softmax(ours, -1) - torch.log_softmax(alone.float(), -1)).abs().max()))
    return worst


def measure(name: str, trees: dict[str, list[Window]], compared: int) -> None:
    """Print a line for each choice of wanted places."""
    config = type(HYBRIDS[name]).from_dict(HYBRIDS[name].to_dict() | {"max_position_embeddings": 4096})
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        teacher = load_teacher(TeacherConfig(model=folder), folder, tokenizer_end=None)
    for wanted, chosen in trees.items():
        trunk = sum(int(np.argmax(np.diff([*w.parent, -2]) != 1)) + 1 for w in chosen)
        plain = [Window(w.token[:n], w.parent[:n], w.depth[:n]) for w in chosen for n in [trunk // len(chosen)]]
        begin = time.perf_counter()
        teacher.hidden(plain)
        alone = time.perf_counter() - begin
        counted, begin = Counted(teacher), time.perf_counter()
        states = teacher.hidden(chosen)
        took = time.perf_counter() - begin
        counted.stop()
        nodes, paths = sum(len(w.token) for w in chosen), sum(len(path) for w in chosen for path, _ in paths_of(w))
        told = teacher._leading
        way = teacher.attention if told is None else f"{told.pieces:d}{told.levels:d}{told.mixed:d}"
        worst = gap(teacher, chosen[0], states[0], compared)
        print(
            f"{name:17}{wanted:12}{way:>7}{nodes / trunk:8.2f}{counted.tokens / trunk:8.2f}{paths / trunk:9.1f}"
            f"{counted.passes / trunk:9.3f}{took / alone:8.1f}{worst:10.1e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted(HYBRIDS), help="default: all of them")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--teacher", default="qwen2.5")
    parser.add_argument("--student", default="gpt2")
    parser.add_argument("--compared", type=int, default=20)
    args = parser.parse_args()
    trees = windows(args.teacher, args.student, args.tokens, args.documents)
    print(
        f"{'model':17}{'wanted':12}{'way':>7}{'nodes':>8}{'tokens':>8}{'paths':>9}{'passes':>9}{'x plain':>8}{'gap':>10}"
    )
    for name in args.model or HYBRIDS:
        measure(name, trees, args.compared)


if __name__ == "__main__":
    main()
