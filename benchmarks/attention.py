"""Nodes per second of the ways to run a teacher on token trees: python -m benchmarks.attention

One Llama-shaped model with random weights; trees of a trunk and short branches, like those of documents. Rows:
  causal     plain sequences of as many tokens as the trees have nodes, one to a row, no mask
  causal*    the same sequences packed into rows under a mask: what packing costs where there are no branches
  apart      trees under a mask, one to a row
  packed     trees under a mask, several to a row (what the engine does)
  flex       packed, by FlexAttention (on a GPU)
  rounds     trunks first, then branches over the kept keys and values
  paths      one sequence for each branch
Options: --hidden, --layers, --documents, --length (longest trunk), --branches (nodes per trunk token), --device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.teacher.attention_masks import allowed, reach_of
from engine.teacher.decoder import Decoder
from engine.teacher.incremental import CachedTrees
from engine.teacher.packing import Window, lay_out, pack

VOCAB = 1000


def trees(count: int, length: int, branches: float, seed: int = 0) -> list[Window]:
    """Trunks of length / 8 to length tokens, and branches of one to three nodes; the trunk's nodes come first."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        trunk = int(rng.integers(length // 8, length + 1))
        parent, depth = list(range(-1, trunk - 1)), list(range(trunk))
        while len(parent) < trunk * (1 + branches):
            above = int(rng.integers(trunk))
            for _ in range(int(rng.integers(1, 4))):
                parent.append(above)
                depth.append(depth[above] + 1)
                above = len(parent) - 1
        out.append(Window(rng.integers(VOCAB, size=len(parent)).tolist(), parent, depth))
    return out


def chain(size: int) -> Window:
    return Window([7] * size, list(range(-1, size - 1)), list(range(size)))


def rounds(decoder: Decoder, windows: list[Window]) -> None:
    first = [next((i for i, p in enumerate(w.parent) if p != i - 1), len(w.token)) for w in windows]
    part = [(Window(w.token[:n], w.parent[:n], w.depth[:n]), n) for w, n in zip(windows, first, strict=True)]
    open_trees = CachedTrees(decoder, [w for w, _ in part])
    open_trees.add([Window(w.token[n:], w.parent[n:], w.depth[n:]) for w, n in zip(windows, first, strict=True)])


def apart(decoder: Decoder, windows: list[Window]) -> None:
    rows = lay_out(windows, [[i] for i in range(len(windows))])
    reach = reach_of(rows.parent, rows.depth, decoder.device)
    decoder.masked(torch.from_numpy(rows.token).to(decoder.device), reach, 0, decoder.kernel)


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The least: other work on the machine only adds. The first run warms up and is left out."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("hidden", 256), ("layers", 2), ("documents", 8), ("length", 128), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--branches", type=float, default=2.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    heads = args.hidden // 32
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=args.hidden, intermediate_size=3 * args.hidden, num_hidden_layers=args.layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=8192,
    )  # fmt: skip
    device = torch.device(args.device)
    model = AutoModelForCausalLM.from_config(config).eval().to(device)
    decoder = Decoder(model, device, 8192, kernel=model.config._attn_implementation)
    windows = trees(args.documents, args.length, args.branches)
    sizes = [len(w.token) for w in windows]
    chains = [chain(n) for n in sizes]
    ways: dict[str, Callable[[], object]] = {
        "causal": lambda: decoder.chains(chains),
        "causal*": lambda: decoder.trees(chains),
        "apart": lambda: apart(decoder, windows),
        "packed": lambda: decoder.trees(windows),
        "rounds": lambda: rounds(decoder, windows),
        "paths": lambda: decoder.paths(windows),
    }
    if device.type == "cuda":
        ways["flex"] = lambda: replace(decoder, kernel="flex_attention").trees(windows)
    rows = pack(sizes)
    made = lay_out(windows, rows)
    setup = seconds(lambda: allowed(reach_of(made.parent, made.depth, device), 0, None), device, args.repeats)
    places = f"{len(sizes)} x {max(sizes)} places apart, {len(rows)} x {max(sizes)} packed"
    print(f"{sum(sizes):,} nodes in {places}; {device}, {torch.get_num_threads()} threads; mask {setup * 1e3:.1f} ms")
    print(f"{'':10}{'s':>9}{'nodes/s':>12}{'x causal':>10}")
    took = {name: seconds(run, device, 1 if name == "paths" else args.repeats) for name, run in ways.items()}
    for name, least in took.items():
        print(f"{name:10}{least:9.3f}{sum(sizes) / least:12,.0f}{least / took['causal']:10.2f}")


if __name__ == "__main__":
    main()
