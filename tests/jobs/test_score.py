"""The main job end to end through real Ray: this machine, a cluster by address, a submitted job; killed and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from engine.dataset.layout import load_manifest, read_quarantine, sealed_units
from engine.reader.targets import Targets
from tests.support.faults import Call
from tests.support.runs import STUDENTS, TEXTS, score_here, write_run

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
MANY = TEXTS * 2
TARGETS = "top_k = 16\ncalibration_documents = 2"


def environment(**extra: str) -> dict[str, str]:
    """The environment of a command, without what would point it to some Ray cluster."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return plain | {"PYTHONPATH": str(ROOT)} | extra


def targetsmith(
    *arguments: object, cwd: Path = ROOT, extra: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=240)


def digests(out: Path) -> dict[str, str]:
    """sha256 of every shard."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "data").rglob("*.parquet"))
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run without Ray gives."""
    return score_here(write_run(tmp_path_factory.mktemp("reference"), texts=MANY, targets=TARGETS))


@pytest.mark.thorough
def test_local_ray_from_another_folder(reference: Path, tmp_path: Path, call: Call) -> None:
    """Bad documents go to quarantine, all others are scored, and Ray changes no byte."""
    bad = '{"id": "b0"}\n{"id": "b1", "text": ""}\nno json\n{"id": "b3", "text": 5}\n'
    run_file = write_run(tmp_path, texts=MANY, targets=TARGETS, lines=bad, extra="[ray]\nactors = 2")
    done = targetsmith("score", run_file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    manifest = load_manifest(out)
    assert (manifest.documents, manifest.quarantined) == (len(MANY) + 4, 4)
    reasons = [record["reason"] for unit in sealed_units(out) for record in read_quarantine(out, unit)]
    assert sorted(reasons) == ["empty_text", "malformed_json", "missing_column", "not_text"]
    for product in ("teacher", "sp", "bl"):
        mine = [(document.text, document.logps.tobytes()) for document in Targets(out, product).documents()]
        wanted = [(document.text, document.logps.tobytes()) for document in Targets(reference, product).documents()]
        assert mine == wanted
    assert re.search(r"7/7 units · 14 documents · [\d,]+ tokens/s · 4 quarantined", done.stderr)
    assert "14 documents, 4 in quarantine" in done.stdout and "Traceback" not in done.stderr
    assert "bytes/pos" in done.stdout and "raylet" not in done.stdout
    code, said, logged = call("score", run_file, "--json", "--log-json")
    told = json.loads(said)
    assert code == 0 and (told["documents"], told["this_command"]["units"]) == (14, 0)
    assert told["quarantined"] == {"empty_text": 1, "malformed_json": 1, "missing_column": 1, "not_text": 1}
    assert all({"time", "message"} <= json.loads(line).keys() for line in logged.splitlines())


@pytest.mark.chaos
def test_killed_and_run_again(reference: Path, tmp_path: Path) -> None:
    """SIGKILL of the driver once a unit is sealed; the next command does the rest, to the byte."""
    run_file = write_run(tmp_path, texts=MANY, targets=TARGETS, extra="[ray]\nactors = 1\nmax_in_flight = 1")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.score", str(run_file)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 120
        while driver.poll() is None and time.monotonic() < deadline and not (out / "_engine" / "shards").is_dir():
            time.sleep(0.01)
        driver.kill()
    again = targetsmith("score", run_file)
    assert again.returncode == 0, again.stderr
    assert digests(out) == digests(reference)
    assert load_manifest(out).fingerprint == load_manifest(reference).fingerprint


def test_ctrl_c_is_130_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run_file = write_run(
        tmp_path, texts=TEXTS * 200, targets=TARGETS, students={"bl": STUDENTS["bl"]}, extra="[ray]\nactors = 1"
    )
    command = [sys.executable, "-m", "jobs.score", str(run_file)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (tmp_path / "out" / "_engine" / "shards").is_dir():
            time.sleep(0.05)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "resume by running again" in said and "Traceback" not in said
    assert psutil.wait_procs(children, timeout=20)[1] == []


# ---- a real cluster on this machine


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass(frozen=True)
class Cluster:
    """Where a cluster answers, and the environment that its commands need."""

    address: str
    dashboard: str
    token: dict[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """`ray start --head` in a folder of its own and with a token; only its own processes are ended."""
    folder = Path(tempfile.mkdtemp(prefix="tsc-", dir="/tmp"))
    port, dashboard, agent, grpc, export, client = free_ports(6)
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    options = [
        *("--head", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=2"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(
            f"--dashboard-agent-grpc-port={grpc}",
            f"--metrics-export-port={export}",
            f"--ray-client-server-port={client}",
        ),
        *("--disable-usage-stats", f"--object-store-memory={200 * 2**20}"),
    ]
    # Without PYTHONPATH: the workers of this cluster do not have the project, as on a real one.
    (folder / "token").write_text(secrets.token_hex(32))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    env = environment(**token)
    del env["PYTHONPATH"]
    started = subprocess.run(
        [*ray, "start", *options], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", token)
    finally:
        own = [process for process in psutil.process_iter(["cmdline"]) if belongs(process, folder)]
        for process in own:
            process.kill()
        psutil.wait_procs(own, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def belongs(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in part for part in process.info["cmdline"] or [])


@pytest.mark.thorough
def test_a_cluster_by_address(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    run_file = write_run(tmp_path, texts=MANY, targets=TARGETS)
    done = targetsmith("score", run_file, "--address", cluster.address, extra=cluster.token)
    assert done.returncode == 0, done.stderr
    assert "Ray (cluster)" in done.stderr
    assert digests(tmp_path / "out") == digests(reference)


def submit(cluster: Cluster, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command of the README, with a copy of the project as the working folder."""
    work = folder / "work"
    for package in ("schemas", "engine", "jobs"):
        shutil.copytree(ROOT / package, work / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.toml", "corpus.jsonl"):
        shutil.copy(folder / name, work / name)
    ray = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        "--address",
        cluster.dashboard,
        "--working-dir",
        ".",
    ]
    env = environment(**cluster.token)
    del env["PYTHONPATH"]
    command = [*ray, "--", sys.executable, "-m", "jobs.score", "run.toml"]
    return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=240)


def test_a_submitted_job(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    run_file = write_run(tmp_path, texts=MANY, targets=TARGETS)
    out = tmp_path / "shared" / "out"
    run_file.write_text(run_file.read_text().replace('output = "out"', f"output = {json.dumps(str(out))}"))
    done = submit(cluster, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ray (cluster)" in done.stdout
    assert digests(out) == digests(reference)


@pytest.mark.thorough
def test_a_submitted_job_with_a_relative_output_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    write_run(tmp_path)
    done = submit(cluster, tmp_path)
    assert done.returncode != 0
    assert "Ray's copy of the working folder" in done.stdout and "Traceback" not in done.stdout


def test_a_cluster_that_does_not_answer(tmp_path: Path, call: Call) -> None:
    (port,) = free_ports(1)
    code, _, said = call("score", write_run(tmp_path, targets=TARGETS), "--address", f"127.0.0.1:{port}")
    assert code == 1 and "cannot start or connect" in said
