"""Ray for the length of a command: a private one on this machine, or a cluster that is there already. What is in `[ray]` and
on the command line goes in; workers everywhere can import this code."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as failures

from schemas.errors import RunFileError, WorkError
from schemas.redact import without_secrets
from schemas.runfile import RayConfig

OBJECT_STORE_BYTES = 256 * 2**20  # local Ray only; units are a few MB, results are published by the actors themselves
HANDED_ON = ("HF_HUB_OFFLINE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that actors on other nodes get. No secrets: Ray shows them in its dashboard and logs."""
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/@\[\]]+):[0-9]{1,5}")
LONGEST_TEMP = 40  # bytes; Ray adds about 65 for its sockets, and a Unix socket path has at most 103 to 107


@contextmanager
def connect(config: RayConfig, address: str | None = None) -> Iterator[str]:
    """Ray for the length of a `with` block; yields "local" or "cluster".

    The address is, in this order: `address` (the command line), `[ray] address`, RAY_ADDRESS (set inside a Ray job),
    else a private Ray on this machine that ends with the block; "local" asks for that one explicitly.
    Raises RunFileError for an address of a wrong kind, WorkError when the cluster does not answer.
    """
    in_job = "RAY_JOB_CONFIG_JSON" in os.environ  # set by `ray job submit`, which ships the code to all workers itself
    where = address_of(config, address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    root = Path(__file__).resolve().parents[2]  # the folder of schemas, engine and jobs
    env_vars = {"TOKENIZERS_PARALLELISM": "false"} | {k: os.environ[k] for k in HANDED_ON if k in os.environ}
    runtime_env: dict[str, Any] = {"env_vars": env_vars}
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": runtime_env}
    if where != "local":
        if not in_job:
            runtime_env["py_modules"] = [str(root / package) for package in ("schemas", "engine", "jobs")]
        _init(where, common, "Is it running? If it wants a token, set RAY_AUTH_MODE=token as for the ray commands.")
        try:
            with redirect_stdout(sys.stderr):  # Ray tells on standard output what nodes and autoscaler do
                yield "cluster"
        finally:
            ray.shutdown()
        return
    # The command may be started from any folder with a checkout that is not installed: tell workers where the code is.
    env_vars["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    temp = _short_temp()
    if isinstance(config.actors, int):  # more actors than cores is a person's explicit wish
        common["num_cpus"] = max(os.cpu_count() or 1, math.ceil(config.actors * config.num_cpus))
    # A private Ray asks for a token (else other users of the machine could run code through it). Given here, it stays
    # in memory; left to Ray, it would become a file in the home folder that changes how later `ray start`s behave.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    common |= {"_temp_dir": str(temp), "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        _init("local", common, "Is the disk full or the memory short?")
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Ray's long version of our notices
            yield "local"
    except WorkError as error:
        logs = temp / "session_latest" / "logs"
        if not logs.is_dir():
            raise
        kept = shutil.copytree(logs, temp.with_name(temp.name + "-logs"), symlinks=True)
        raise WorkError(f"{error}\nRay's own logs are kept in {kept}") from error
    finally:
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def address_of(config: RayConfig, address: str | None = None) -> str:
    """Where Ray is: "local", "auto" or HOST:PORT; asks nobody, so that it can be called before any work.

    Raises RunFileError for an address of another form, and for "auto" while RAY_ADDRESS, which Ray itself then takes, has one.
    """
    given = os.environ.get("RAY_ADDRESS")
    named = (("--address", address), ("[ray] address", config.address), ("RAY_ADDRESS in the environment", given))
    key, where = next(((key, value) for key, value in named if value), ("", "local"))
    if where == "auto" and given:
        key, where = named[-1][0], given
    if where in ("auto", "local") or _HOST_PORT.fullmatch(where):
        return where
    head = (
        without_secrets(where)
        .removeprefix("http://")
        .removeprefix("https://")
        .removeprefix("ray://")
        .rpartition(":")[0]
    )
    raise RunFileError(
        f"{key}: got the Ray address {without_secrets(where)!r}; wanted HOST:PORT of a cluster that this machine belongs to "
        "(port 6379 by default), 'auto', or 'local' for this machine alone. From outside the cluster: "
        f"ray job submit --address http://{head or 'HEAD'}:8265 --working-dir . -- python -m jobs.score RUN.toml; "
        "to stay on this machine: targetsmith score RUN.toml --address local"
    )


def _init(where: str, options: dict[str, Any], advice: str) -> None:
    host, _, port = where.rpartition(":")
    try:
        if port.isdecimal():  # where nobody listens, Ray tries for long and then ends the whole process
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=where, **options)
    except (OSError, RuntimeError, ValueError, failures.AuthenticationError) as error:
        raise WorkError(f"Ray {where!r}: cannot start or connect: {error}. {advice}") from error


def _short_temp() -> Path:
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(parent)) + len("/ts-12345678") <= LONGEST_TEMP and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="ts-", dir=parent))
    raise WorkError(
        f"Ray's temporary folder: {tempfile.gettempdir()!r} is too long for Unix sockets and /tmp cannot be written; "
        f"set TMPDIR to a writable folder with a path of at most {LONGEST_TEMP - 12} bytes"
    )
