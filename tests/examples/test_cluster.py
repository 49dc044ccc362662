"""The files of examples/cluster: they parse, name what is there, and say what the documents say."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from jobs.pool import ray_metrics

CLUSTER = Path(__file__).resolve().parents[2] / "examples" / "cluster"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    board = json.loads((CLUSTER / "grafana.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for expression in asked for name in re.findall(r"ray_targetsmith_(\w+)", expression)}
    source = Path(ray_metrics.__file__).read_text(encoding="utf-8")
    made = set(re.findall(r'"targetsmith_(\w+)"', source))
    counters = set(re.findall(r'Counter\(\s*"targetsmith_(\w+)"', source)) | set(ray_metrics.SUMS)
    assert named <= {f"{name}_total" for name in counters} | (made - counters) | {"unit_seconds_bucket"}
    assert {name.removesuffix("_total").removesuffix("_bucket") for name in named} >= made - {"text_bytes"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_ray_job_is_one_of_kuberay() -> None:
    """Its fields are those of ray.io/v1 RayJob that it uses; the image and the output are for a person to put in."""
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert "targetsmith score" in spec["entrypoint"] and spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() <= {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1, "head and workers must have the same code"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "actors are for the workers"


@pytest.mark.parametrize("name", ["slurm.sh"])
def test_shell_scripts_parse(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(CLUSTER / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_sky_task_runs_the_command() -> None:
    task = yaml.safe_load((CLUSTER / "sky.yaml").read_text(encoding="utf-8"))
    assert task.keys() <= {"name", "resources", "num_nodes", "workdir", "file_mounts", "envs", "setup", "run"}
    assert "targetsmith score" in task["run"] and "--address" in task["run"]
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True).returncode == 0
