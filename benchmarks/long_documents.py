"""Time and memory of one long document's tree beside the plain forward of its tokens: python -m benchmarks.long_documents

The text is fresh GSM8K, its tree that of a student with another tokenizer (real contexts, `--student`). Rows, turn by turn:
  plain    the document's tokens by the model's own causal attention, no branches
  blocks   the tree, trunk first and branches in blocks (engine/teacher/long_trees.py): what the engine does
  rounds   the same kept open for more nodes (a beam): one cache that grows
  dense    the tree in one pass under an N x N mask: what it did before (only up to --dense tokens)
Seconds are the least of `--turns`; with --cpu of the process instead of the clock. MiB are the highest above what the process
had before the pass, of all turns. Without --teacher a Llama of two small layers stands in for it, for lengths that no small
model here reads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.fresh import SHARED, Fresh, gsm8k
from engine.bpe.segmenter import build_segmenter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.contexts.builder import ContextBuilder
from engine.contexts.tree import ContextTree
from engine.kernels.jit import compile_all
from engine.teacher.attention_masks import Masking
from engine.teacher.decoder import Decoder
from engine.teacher.incremental import CachedTrees
from engine.teacher.long_trees import long_states
from engine.teacher.packing import Window

LONGEST_RUN = 4096


def tree_of(corpus: Fresh, tokens: int, teacher: Vocabulary, student: Vocabulary | None) -> ContextTree:
    """The contexts of a text of about so many of the teacher's tokens, at every boundary of the student; without one, at every
    byte."""
    text = ""
    while len(teacher.encode(text)[0] if text else []) < tokens:
        text += corpus.take(1)[0].text + "\n\n"
    ends = teacher.encode(text)[1]
    data = text.encode()[: ends[tokens - 1]]
    text = data.decode(errors="ignore")
    wanted = np.unique([0, *student.encode(text)[1]]) if student else np.arange(len(text.encode()) + 1)
    builder = ContextBuilder(build_segmenter(teacher, LONGEST_RUN))
    return builder.build(text.encode(), teacher.encode(text)[0], wanted, (), fringe=False)


def highest_mib(work: Callable[[], object]) -> float:
    """Of resident memory while `work` runs, above what there was."""

    def read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    work()
    return (read("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="", help="folder of a real model; else a small random one")
    parser.add_argument("--tokenizer", default=str(SHARED / "tokenizers" / "smollm2"))
    parser.add_argument("--student", default=str(SHARED / "tokenizers" / "qwen2.5"))
    parser.add_argument("--bytes", action="store_true", help="contexts at every byte instead")
    parser.add_argument("--tokens", type=int, default=8128)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--dense", type=int, default=0, help="longest document for the one pass under a mask")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compile_all()
    now = time.process_time if args.cpu else time.perf_counter
    teacher = load_vocabulary(args.teacher or args.tokenizer)
    tree = tree_of(gsm8k(), args.tokens, teacher, None if args.bytes else load_vocabulary(args.student))
    model: Any
    if args.teacher:
        model = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    else:
        sizes: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        config = LlamaConfig(**sizes, vocab_size=teacher.size, max_position_embeddings=1 << 17)
        model = AutoModelForCausalLM.from_config(config).eval()
    decoder = Decoder(
        model, torch.device("cpu"), args.tokens, Masking(), model.config._attn_implementation, blocks=True
    )
    window = Window(tree.token, tree.parent, tree.depth)
    trunk = Window(
        np.asarray(tree.token)[: len(tree.trunk)], np.arange(-1, len(tree.trunk) - 1), np.arange(len(tree.trunk))
    )
    print(f"{len(trunk.token):,} tokens, {len(window.token):,} contexts, deepest {int(np.max(tree.depth))}")
    rows: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: decoder.chains([trunk])[0],
        "blocks": lambda: long_states(decoder, window),
        "rounds": lambda: CachedTrees(decoder, [window]).hidden[0],
    }
    if args.tokens <= args.dense:
        rows["dense"] = lambda: decoder.trees([window])[0]
    seconds, mib, states = {name: list[float]() for name in rows}, dict[str, float](), dict[str, torch.Tensor]()
    with torch.inference_mode():
        decoder.chains([Window(trunk.token[:64], trunk.parent[:64], trunk.depth[:64])])
        for _ in range(args.turns):
            for name, run in rows.items():
                begin = now()

                def keep(name: str = name, run: Callable[[], torch.Tensor] = run) -> None:
                    states[name] = run()

                mib[name] = max(mib.get(name, 0.0), highest_mib(keep))
                seconds[name].append(now() - begin)
        head = model.get_output_embeddings()
        ours = torch.log_softmax(head(states["blocks"][: len(trunk.token)][-64:]), -1)
        gap = (ours - torch.log_softmax(head(states["plain"][-64:]), -1)).abs().max()
    for name in rows:
        share = min(seconds[name]) / min(seconds["plain"])
        print(f"{name:<7} {min(seconds[name]):8.2f} s  {share:5.2f} of plain  {mib[name]:8,.0f} MiB")
    print(f"largest difference of the last 64 tokens' log-probabilities: {float(gap):.1e} nats")


if __name__ == "__main__":
    main()
