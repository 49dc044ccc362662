"""The exact regimes beside a plain teacher forward and beside one call per token, in one process: make bench-exact

A Qwen2-shaped model with the real vocabulary of Qwen2.5 (151,936 lm_head rows) and seeded random weights is made on the
spot and scores GSM8K documents, in turn and repeated over other documents, medians printed; the first pass (it fills what is
remembered of words) apart:
  plain      the teacher's forward and fp32 log-softmax on its own tokens, batched as the engine batches
  subset     this engine, the student of the first 8,000 merges, all of score_unit up to the Arrow tables
  bytes E    this engine, the next-byte product alone at eps = E
  calls      a sequential scorer in the manner of the public code of arXiv 2512.14954: one call of the model per context,
             with its key-value cache, and the whole student vocabulary marginalised at each token; on few documents. Its
             contexts are found beforehand and not timed. Its rows are checked against the engine's.
Wanted: a context that this engine evaluates costs little more than a token of `plain`, and is far from `calls`. How much
pruning saves (eps) depends on the teacher; random weights tell its overhead only.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import math
import pstats
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from benchmarks.fresh import SHARED, Fresh, gsm8k
from benchmarks.plain import plain
from engine.alignment.refinement import exact_pairs
from engine.contexts.tree import ContextTree
from engine.corpus.document import Document
from engine.dataset.parquet import flat
from engine.scoring.scorer import Scorer
from schemas.runfile import parse_run

ROWS = 151_936
SUBSET, BYTES = "student/subset", "bytes"
AGREE_L1 = 1e-4


def make_model(folder: Path, tokenizer: Path, *, hidden: int, layers: int, spread: float) -> None:
    """A Qwen2 model with tied embeddings and seeded random weights, beside the tokenizer's files."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=ROWS, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096, initializer_range=spread,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=151645, pad_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)


def make_scorer(model: Path, *, student: Path | None, top_k: int, eps: float = 0.0) -> Scorer:
    """One product only: the subset student, or bytes when there is no student."""
    table = {
        "output": "unused",
        "teacher": {"model": str(model), "dtype": "float32"},
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": "subset", "tokenizer": str(student or model)}],
        "targets": {"top_k": top_k, "teacher": False, "bytes": student is None, "eps": eps},
    }
    run = parse_run(table, base_dir=Path.cwd())
    # a run file names at least one student; here bytes are timed alone
    return Scorer(run if student else run.model_copy(update={"student": ()}))


class Calls:
    """The sequential scorer. One context after the other in reading order, each in a call of its own."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.student = scorer, scorer.stages.students[SUBSET]
        self.expansion, self.trie = scorer.stages.expansions[SUBSET]
        rows, unit = len(scorer.stages.emitter.real), torch.from_numpy(self.expansion.unit).long()
        start = torch.from_numpy(self.expansion.start[:-1])[:rows]
        has = torch.from_numpy(self.expansion.lengths)[:rows] > 0
        # where the mass of each teacher token goes behind a boundary; the last bin is of specials that end no text
        self.first = torch.where(has, unit[start.clamp(max=len(unit) - 1)], self.student.size)
        assert self.student.eos_id is not None
        self.first[list(scorer.stages.teacher.end_ids)] = self.student.eos_id
        self.unit, self.start, self.order = unit, start, torch.from_numpy(self.trie.order)

    def contexts(self, document: Document) -> tuple[list[int], ContextTree, list[list[int]]]:
        """(student ids, tree, the contexts of each row), found before the clock runs."""
        ids, ends = self.student.encode(document.text)
        teacher_ids, _ = self.scorer.stages.vocabulary.encode(document.text)
        tree = self.scorer.stages.builder.build(
            document.text.encode(), teacher_ids, sorted({0, *ends}), self.scorer.stages.bos
        )
        side = exact_pairs(tree, self.trie, self.expansion, np.array(ids), np.array(ends))
        nodes: list[list[int]] = [[] for _ in range(len(ids) + 1)]
        for node, row in zip(side.top_node.tolist(), side.top_row.tolist(), strict=True):
            nodes[row].append(node)
        return ids, tree, nodes

    @torch.inference_mode()
    def score(self, ids: list[int], tree: ContextTree, nodes: list[list[int]]) -> dict[int, torch.Tensor]:
        """Row (number of the student token) -> its distribution, float32 [student ids]."""
        model, out = self.scorer.stages.teacher.model, {}
        cache, path = DynamicCache(config=model.config), []
        prob: dict[int, torch.Tensor] = {}  # of contexts; one document's fit into memory
        logw = {tree.given: 0.0}
        live: list[tuple[int, int, int]] = []  # context, state of the trie, units gone since the context
        for k in range(len(ids) + 1):
            going = []
            for node, state, depth in live:  # contexts of which some token goes on past this boundary
                child = int(self.trie.step(np.array([state]), np.array([ids[k - 1]]))[0])
                if child >= 0 and self.trie.state[child] >= 0:
                    going.append((node, int(self.trie.state[child]), depth + 1))
            for node in nodes[k]:
                way = [node]
                while (above := int(tree.parent[way[-1]])) >= 0:
                    way.append(above)
                way.reverse()
                if node != tree.given:
                    logw[node] = logw[way[-2]] + math.log(prob[way[-2]][tree.token[node]])
                same = 0
                while same < min(len(path), len(way) - 1) and path[same] == way[same]:
                    same += 1
                if same < len(path):
                    cache.crop(same - len(path))  # minus the number of tokens to forget
                path, fed = way, torch.tensor([tree.token[way[same:]].tolist()])
                logits = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
                prob[node] = torch.softmax(logits[: len(self.first)].float(), 0)
                going.append((node, 0, 0))
            live = going
            if not live:
                continue
            highest, mass = max(logw[node] for node, *_ in live), torch.zeros(self.student.size + 1)
            for node, state, depth in live:
                weight = math.exp(logw[node] - highest)
                if depth == 0:
                    mass.index_add_(0, self.first, prob[node], alpha=weight)
                    continue
                kids = slice(int(self.trie.first[state]), int(self.trie.first[state + 1]))
                token = self.order[int(self.trie.lo[kids][0]) : int(self.trie.hi[kids][-1])]
                mass.index_add_(0, self.unit[self.start[token] + depth], prob[node][token], alpha=weight)
            out[k] = mass[:-1] / mass[:-1].sum()
        return out

    def gap(self, documents: list[Document]) -> float:
        """Largest L1 distance between a row of this scorer and the engine's."""
        wide, size, worst = self.scorer.stages.emitter, self.student.size, 0.0
        self.scorer.stages = dataclasses.replace(
            self.scorer.stages, emitter=dataclasses.replace(wide, top_k={SUBSET: size})
        )
        table = self.scorer.score_unit(documents).products[SUBSET]
        self.scorer.stages = dataclasses.replace(self.scorer.stages, emitter=wide)
        for i, document in enumerate(documents):
            part = table.slice(i, 1)
            ids, logps = (flat(part, name).reshape(-1, size) for name in ("topk_ids", "topk_logps"))
            for k, q in self.score(*self.contexts(document)).items():
                here = ids[k] >= 0
                ours = np.zeros(size)
                ours[ids[k][here]] = np.exp(logps[k][here].astype(np.float64))
                worst = max(worst, float(np.abs(ours - q.numpy()).sum()))
        return worst


@dataclass(frozen=True, slots=True)
class Measured:
    """One way over one pass. units: bytes or student tokens; contexts: evaluations of the teacher."""

    seconds: float
    units: int
    contexts: int


class Ways:
    """All ways over fresh documents."""

    def __init__(self, scorers: dict[str, Scorer], corpus: Fresh, top_k: int, calls_documents: int) -> None:
        self.scorers, self.corpus, self.top_k = scorers, corpus, top_k
        self.subset = scorers["subset"]
        self.calls, self.calls_documents = Calls(self.subset), calls_documents

    def once(self, count: int) -> dict[str, Measured]:
        """A pass over the next documents; `calls` has some of its own, whose contexts are found before the clock runs."""
        documents, stages = self.corpus.take(count), self.subset.stages
        found = {name: self._engine(name, documents) for name in self.scorers}
        batch_tokens, n_teacher = stages.run.teacher.batch_tokens, 0
        begin = time.perf_counter()
        n_teacher = plain(stages.teacher, stages.vocabulary, documents, top_k=self.top_k, batch_tokens=batch_tokens)
        found["plain"] = Measured(time.perf_counter() - begin, n_teacher, n_teacher)
        few = [self.calls.contexts(document) for document in self.corpus.take(self.calls_documents)]
        begin = time.perf_counter()
        for one in few:
            self.calls.score(*one)
        contexts = sum(len(tree.token) - tree.given for _, tree, _ in few)
        found["calls"] = Measured(time.perf_counter() - begin, sum(len(ids) for ids, *_ in few), contexts)
        return found

    def _engine(self, name: str, documents: list[Document]) -> Measured:
        begin = time.perf_counter()
        stats = self.scorers[name].score_unit(documents).stats
        seconds = time.perf_counter() - begin
        units = stats["text_bytes"]
        if name == "subset":
            units = sum(len(self.subset.stages.students[SUBSET].encode(d.text)[0]) for d in documents)
        return Measured(seconds, int(units), int(stats["teacher_evaluations"]))


def show_profile(name: str, work: Callable[[], object]) -> None:
    """The 15 functions with the most time of their own."""
    profile = cProfile.Profile()
    profile.runcall(work)
    print(f"\nprofile of {name}")
    pstats.Stats(profile).sort_stats("tottime").print_stats(15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--calls-documents", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--spread", type=float, default=0.1, help="standard deviation of the weights")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary)
        make_model(model, SHARED / "tokenizers/qwen2.5", hidden=args.hidden, layers=args.layers, spread=args.spread)
        subset = make_scorer(model, student=SHARED / "tokenizers/qwen2.5-subset-8000", top_k=args.top_k)
        scorers = {"subset": subset}
        scorers |= {f"bytes {e:g}": make_scorer(model, student=None, top_k=args.top_k, eps=e) for e in (0.0, 1e-3)}
    ways = Ways(scorers, gsm8k(), args.top_k, args.calls_documents)
    gap = ways.calls.gap(ways.corpus.take(args.calls_documents))
    print(f"largest L1 distance of `calls` from the engine: {gap:.2g}", flush=True)
    if gap > AGREE_L1:
        raise SystemExit(f"`calls` and the engine disagree: want at most {AGREE_L1}")
    first = ways.once(args.documents)
    passes = [ways.once(args.documents) for _ in range(args.repeats)]
    device = subset.stages.teacher.device
    print(
        f"{args.documents} fresh documents a pass, {args.calls_documents} for calls, {args.repeats} passes behind the first;"
    )
    print(f"hidden {args.hidden}, {args.layers} layers, {device}, {args.threads} threads")
    print(f"{'':14}{'first s':>9}{'s':>9}{'contexts':>10}{'contexts/s':>12}{'units/s':>10}   unit")
    for name in ("plain", *scorers, "calls"):
        found = [one[name] for one in passes]
        unit = {"plain": "teacher token", "subset": "student token", "calls": "student token"}.get(name, "byte")
        print(
            f"{name:14}{first[name].seconds:9.2f}{statistics.median(m.seconds for m in found):9.2f}"
            f"{statistics.median(m.contexts for m in found):10,.0f}"
            f"{statistics.median(m.contexts / m.seconds for m in found):12,.0f}"
            f"{statistics.median(m.units / m.seconds for m in found):10,.0f}   {unit}"
        )
    # a teacher forward over the text's own tokens is the floor
    for name, wanted in (("subset", "0.85 x teacher tokens / student tokens"), ("bytes 0", "0.5"), ("bytes 0.001", "")):
        share = statistics.median(one["plain"].seconds / one[name].seconds for one in passes)
        ratio = statistics.median(one["plain"].units / one[name].units for one in passes)
        print(f"{name:14}{share:6.2f} of plain (teacher tokens / units: {ratio:.2f}){wanted and f'; wanted {wanted}'}")
    faster = statistics.median(
        one["subset"].units / one["subset"].seconds / (one["calls"].units / one["calls"].seconds) for one in passes
    )
    print(f"{'subset':14}{faster:6.1f} times `calls` (wanted 50)")
    if args.profile:
        for name, scorer in scorers.items():
            documents = ways.corpus.take(args.documents)
            show_profile(name, lambda scorer=scorer, documents=documents: scorer.score_unit(documents))


if __name__ == "__main__":
    main()
