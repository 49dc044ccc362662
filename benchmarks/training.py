"""What a trainer pays for what the reader and the losses offer it: python benchmarks/training.py

head   KL over the whole vocabulary from hidden states, dense and in chunks: CPU seconds and the highest memory of one step,
       forward and backward, each in a process of its own
blend  batches of two outputs blended, beside batches of one: positions a CPU second
cache  an output on a server that speaks S3 (on this machine, each answer `--wait` seconds late): seconds of an epoch without a
       cache, with an empty one, and with a full one
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import torch

from benchmarks.reader import write_topk
from engine.losses.full_vocabulary import full_kl, full_kl_of_states
from engine.reader import Blend, RangeCache, Targets, run_files


def _step(rows: int, width: int, size: int, rows_per_chunk: int | None, answer: Any) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    states, teacher_states = torch.randn(rows, size, requires_grad=True), torch.randn(rows, size).bfloat16()
    head, theirs = torch.nn.Linear(size, width, bias=False), torch.randn(width, size) / size**0.5

    def teacher_head(part: torch.Tensor) -> torch.Tensor:
        return part.float() @ theirs.T

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()  # of all threads: others work on this machine
    if rows_per_chunk is None:
        loss = full_kl(head(states), teacher_head(teacher_states))
    else:
        loss = full_kl_of_states(states, head, teacher_states, teacher_head, rows_per_chunk=rows_per_chunk)
    loss.mean().backward()
    seconds = time.process_time() - start
    answer.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, loss.mean().item()))


def measure_head(rows: int, width: int, size: int) -> None:
    print(
        f"head: {rows} rows, {width:,} tokens, hidden size {size}; a table of float32 has {rows * width * 4 / 2**20:,.0f} MiB"
    )
    for rows_per_chunk in (None, 1024, 256, 64):
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_step, args=(rows, width, size, rows_per_chunk, theirs)
        )
        process.start()
        seconds, mib, loss = mine.recv()
        process.join()
        name = "dense" if rows_per_chunk is None else f"chunks of {rows_per_chunk}"
        print(f"  {name:16} {seconds:6.2f} CPU s   {mib:8,.0f} MiB above what was there   loss {loss:.4f}")


def measure_blend(folder: Path) -> None:
    outputs = []
    for number in range(2):
        write_topk(folder / f"b{number}", 16, 3, 100_000)
        outputs.append(Targets(folder / f"b{number}"))

    def rate(batches: Iterable[dict[str, Any]]) -> float:
        start, seen = time.process_time(), 0
        for batch in batches:
            seen += int(batch["lengths"].sum())
        return seen / (time.process_time() - start)

    for name, made in (
        ("one output", lambda: outputs[0].batches(8, seed=0)),
        ("blend 1 : 1", lambda: Blend(outputs, [1, 1]).batches(8, seed=0)),
        ("blend 3 : 1", lambda: Blend(outputs, [3, 1]).batches(8, seed=0)),
    ):
        print(f"blend: {name:12} {max(rate(made()) for _ in range(3)):12,.0f} positions a CPU second")


def measure_cache(folder: Path, wait: float) -> None:
    from moto.server import ThreadedMotoServer

    write_topk(folder / "out", 16, 3, 100_000)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "test", "secret": "test", "endpoint_url": f"http://{host}:{port}"}
    fs = fsspec.filesystem("s3", **options)
    fs.mkdir("bucket")
    fs.put(str(folder / "out"), "bucket/out", recursive=True)
    real = run_files.OutputFolder.fetch

    def late(self: run_files.OutputFolder, name: str, start: int, stop: int) -> bytes:
        time.sleep(wait)
        return real(self, name, start, stop)

    run_files.OutputFolder.fetch = late
    cache = RangeCache(folder / "cache", 2**30)
    for name, used in (("without", None), ("an empty cache", cache), ("a full one", cache)):
        targets = Targets("s3://bucket/out", storage_options=options, cache=used)
        targets.prepare()
        hits = cache.hits, cache.misses
        start = time.perf_counter()
        rows = sum(len(batch["lengths"]) for batch in targets.batches(8, seed=0))
        found = {"hits": cache.hits - hits[0], "misses": cache.misses - hits[1], "MiB": cache.held_bytes() >> 20}
        print(f"cache: {name:15} {time.perf_counter() - start:6.2f} s, {rows} documents, {json.dumps(found)}")
    server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--wait", type=float, default=0.1)
    arguments = parser.parse_args()
    measure_head(arguments.rows, arguments.vocabulary, arguments.hidden)
    with tempfile.TemporaryDirectory() as folder:
        measure_blend(Path(folder))
        measure_cache(Path(folder), arguments.wait)


if __name__ == "__main__":
    main()
