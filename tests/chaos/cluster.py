"""A Ray cluster of several nodes on this machine, in a process of its own: tests add nodes to it, kill and freeze them.

    python -m tests.chaos.cluster FOLDER      (private: Ray's temporary files; the fewest letters, for its sockets)

It answers each line of standard input with one line of JSON. First comes {"address": ..., "raylet": head's pid}; then
`add CPUS GPUS` -> {"raylet": pid}, `kill PID` (SIGKILL of the whole node) and `leave PID` (SIGTERM) -> {}, `alive` ->
{"count": n}.
It ends with standard input, and with its process end all nodes.

A process of its own, because Ray wants nodes added in the main thread, keeps the token for the life of a process, and
writes "the current cluster" where any other program that joins Ray without an address would find it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
QUICK = {  # a node that does not answer is declared dead after about 2 s, not 13
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 500,
}
STORE_BYTES = 100 * 2**20


def serve(folder: str) -> None:
    from ray.cluster_utils import Cluster

    answers, sys.stdout = sys.stdout, sys.stderr  # Ray prints what it likes
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "temp_dir": folder,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_system_config": QUICK,
        },
    )

    def raylet(node: Any) -> int:
        return node.all_processes["raylet"][0].process.pid

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    nodes: dict[int, Any] = {}
    answer(address=cluster.address, raylet=raylet(cluster.head_node))
    for line in sys.stdin:
        match line.split():
            case ["add", cpus, gpus]:
                node = cluster.add_node(num_cpus=int(cpus), num_gpus=int(gpus), object_store_memory=STORE_BYTES)
                nodes[raylet(node)] = node
                answer(raylet=raylet(node))
            case ["kill" | "leave" as how, pid]:
                cluster.remove_node(nodes.pop(int(pid)), allow_graceful=how == "leave")
                answer()
            case ["alive"]:
                answer(count=len(cluster.global_state._live_node_ids()))
            case _:
                raise ValueError(f"not a command: {line!r}")


@dataclass
class Nodes:
    """The cluster as a test sees it. `raylets` are the nodes with CPUs; a frozen one stays in it until it is killed."""

    process: subprocess.Popen[str]
    address: str
    env: dict[str, str]
    raylets: list[int] = field(default_factory=list)

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def add(self, cpus: int = 1, gpus: int = 0) -> int:
        """The pid of the new node's raylet. gpus: that Ray believes in; torch sees none, and computes on the CPU."""
        self.raylets.append(self.ask(f"add {cpus} {gpus}")["raylet"])
        return self.raylets[-1]

    def remove(self, raylet: int, how: str = "kill") -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(raylet).resume()  # a frozen node would not even take a SIGTERM
        self.ask(f"{how} {raylet}")
        self.raylets.remove(raylet)

    def alive(self) -> int:
        """Nodes that Ray believes to be alive, the head included."""
        return self.ask("alive")["count"]


@contextlib.contextmanager
def nodes(folder: Path, env: dict[str, str], workers: int = 2) -> Iterator[Nodes]:
    """A head without CPUs and `workers` nodes with one each, in `folder`. All their processes are gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.cluster", str(folder)],
        cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "err").open("w"),
    )  # fmt: skip
    try:
        assert process.stdout
        first = process.stdout.readline()
        assert first, (folder / "err").read_text()
        found = Nodes(process, json.loads(first)["address"], env)
        for _ in range(workers):
            found.add()
        yield found
    finally:
        own = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        end(own)
        process.communicate()


def end(processes: list[psutil.Process]) -> None:
    """SIGKILL, also of frozen processes, and wait."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)


if __name__ == "__main__":
    os.environ["RAY_TMPDIR"] = sys.argv[1]  # where "the current cluster" is written
    (Path(sys.argv[1]) / "ray").mkdir()
    serve(sys.argv[1])
