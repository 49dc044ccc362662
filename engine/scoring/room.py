"""Whether the teacher of a run fits here: on the GPUs that this process sees, or in the memory of this machine.

run file + this machine -> a TeacherError, a hint, or nothing. The arithmetic: engine/plan/teacher_fit.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch

from engine.plan.host_memory import available_bytes
from engine.plan.teacher_fit import AtOnce, Room, check_fits
from engine.plan.teacher_size import TeacherSize, teacher_size
from engine.plan.teacher_split import gpus_of
from engine.teacher.decoder import MASK_CELLS
from engine.teacher.group import MOST_ROWS, rows_at_once
from engine.teacher.kept_states import STATE_BYTES
from engine.teacher.ranks import rank_count
from schemas.runfile import RunConfig

_ASK_GPUS = (
    "import json, torch; c = torch.cuda; "
    "print(json.dumps([[c.get_device_name(i), c.mem_get_info(i)[0]] for i in range(c.device_count())]))"
)


def at_once(run: RunConfig, size: TeacherSize) -> AtOnce:
    """What a run does at once, as far as it is known before its tokenizers are read."""
    targets = run.targets
    searched = bool(run.student) and targets.regime in ("auto", "beam") and targets.max_nodes_per_token > 0
    rows = rows_at_once(max(1, size.vocabulary), MOST_ROWS)
    over_states = run.teacher.attention == "states" or (size.recurrent and run.teacher.attention == "auto")
    states_bytes = 2 * STATE_BYTES if over_states else 0  # at most, on a host; on a GPU up to a quarter of it
    return AtOnce(run.teacher.batch_tokens, rows, MASK_CELLS, searched or targets.eps > 0, states_bytes)


def actors_here(run: RunConfig) -> int:
    """How many actors a private Ray on this machine would hold, on its GPUs or, where it has none or is asked for none, its
    processors."""
    devices = torch.cuda.device_count()
    gpus = run.ray.num_gpus if run.ray.num_gpus is not None else float(devices > 0)
    fits = [
        int(have / want + 1e-6) for have, want in ((os.cpu_count() or 1, run.ray.num_cpus), (devices, gpus)) if want
    ]
    fit = min(fits, default=1)
    return run.ray.actors if isinstance(run.ray.actors, int) else max(1, min(fit, run.ray.actors_per_node or fit))


def check_on_this_machine(run: RunConfig, units: int) -> str:
    """For the driver of a private Ray, whose actors will all be here, at most one for each unit. Raises TeacherError where the
    teacher cannot fit; returns a hint, or ""."""
    gpus = run.ray.num_gpus if run.ray.num_gpus is not None else float(torch.cuda.device_count() > 0)
    if run.teacher.device == "cpu" or gpus == 0:
        return _check(run, _host(min(actors_here(run), max(1, units))))
    # asked in a process of its own: a context of the driver would take room on every GPU for as long as the run
    asked = subprocess.run([sys.executable, "-c", _ASK_GPUS], capture_output=True, text=True)
    found = json.loads(asked.stdout) if asked.returncode == 0 else []
    return _check(run, _gpus(found, gpus, gpus_of(run)))


def check_in_this_process(run: RunConfig) -> None:
    """For an actor, whose GPUs Ray has chosen, before it reads any weight. Raises TeacherError."""
    if run.teacher.device == "cpu" or not torch.cuda.is_available():
        _check(run, _host(1, rank_count()))
        return
    devices = range(torch.cuda.device_count())
    found = [[torch.cuda.get_device_name(i), torch.cuda.mem_get_info(i)[0]] for i in devices]
    shared = rank_count() if rank_count() > 1 else min(gpus_of(run), len(found))
    _check(run, _gpus(found, run.ray.num_gpus or 1.0, shared))


def _host(teachers: int, parts: int = 1) -> Room | None:
    free = available_bytes()
    return None if free is None else Room("available memory of this machine", free, "cpu", parts, teachers)


def _gpus(found: list[list[Any]], gpus: float, parts: int) -> Room | None:
    """found: (name, free bytes) of each; gpus: of an actor, a part of one where several share it; parts: GPUs that share a
    teacher."""
    if not found:
        return None
    name, free = min(found, key=lambda one: one[1])
    part = "" if gpus >= 1 else f", of which an actor has {gpus:g}"
    return Room(f"free on a GPU {name}{part}", int(free * min(1.0, gpus)), "cuda", parts)


def _check(run: RunConfig, room: Room | None) -> str:
    if room is None:  # a system that does not tell
        return ""
    size = teacher_size(run, on_cpu=room.device == "cpu")
    return check_fits(size, at_once(run, size), room, run.teacher.model)
