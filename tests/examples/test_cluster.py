"""The files of examples/cluster: they parse, name what is there, and say what the documents say."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from jobs.pool import ray_metrics

NUMBER, TEXT, YES_NO, TEXTS = (
    {"type": "integer", "minimum": 0},
    {"type": "string"},
    {"type": "boolean"},
    {"type": "object", "additionalProperties": {"type": "string"}},
)


def _closed(required: str = "", **properties: object) -> dict[str, object]:
    """A schema of an object with these keys and no others."""
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": properties,
    }


def _list(item: object) -> dict[str, object]:
    return {"type": "array", "items": item, "minItems": 1}


CONTAINER = _closed(
    "name image",
    name=TEXT,
    image=TEXT,
    resources=_closed(limits=TEXTS, requests=TEXTS),
    ports=_list(_closed("containerPort", containerPort=NUMBER, name=TEXT)),
    env=_list(_closed("name", name=TEXT, value=TEXT)),
    volumeMounts=_list(_closed("name mountPath", name=TEXT, mountPath=TEXT)),
)
VOLUME = _closed("name", name=TEXT, persistentVolumeClaim=_closed("claimName", claimName=TEXT))
GROUP = {
    "rayStartParams": TEXTS,
    "template": _closed("spec", spec=_closed("containers", containers=_list(CONTAINER), volumes=_list(VOLUME))),
}
WORKERS = _closed(
    "groupName minReplicas maxReplicas template",
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    **GROUP,
)
RAY_JOB = _closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_closed("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
    spec=_closed(
        "rayClusterSpec",
        entrypoint=TEXT,
        shutdownAfterJobFinishes=YES_NO,
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=_closed(
            "headGroupSpec",
            rayVersion=TEXT,
            headGroupSpec=_closed("rayStartParams template", **GROUP),
            workerGroupSpecs=_list(WORKERS),
        ),
    ),
)
"""What of KubeRay's types RayJob and RayCluster and of Kubernetes' pods the manifest may use (versions: docs/log.md)."""
SKY_TASK = _closed(
    "run",
    name=TEXT,
    resources=_closed(accelerators={"type": "string", "pattern": "^[A-Za-z0-9-]+(:[0-9]+)?$"}, use_spot=YES_NO),
    num_nodes={"type": "integer", "minimum": 1},
    workdir=TEXT,
    setup=TEXT,
    run=TEXT,
)
"""The same of SkyPilot's task."""

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
    """The image and the output are for a person to put in."""
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(job, RAY_JOB)
    spec = job["spec"]
    assert "targetsmith score" in spec["entrypoint"] and spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
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
    jsonschema.validate(task, SKY_TASK)
    assert "targetsmith score" in task["run"] and "--address" in task["run"]
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True).returncode == 0
