"""A dataset repository of the Hugging Face Hub: its address, what it holds, and whose run that is. Nothing is written here.

Reached by huggingface_hub alone, which finds the endpoint (HF_ENDPOINT) and the token (HF_TOKEN, `hf auth login`) by itself.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from schemas.errors import OutputError, RunFileError, TargetsmithError
from schemas.redact import redacted

KIND = "dataset"
_ADDRESS = re.compile(r"hf://(?:datasets/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/?", re.ASCII)
_SHOWN_CHARACTERS = 300


def repository_of(address: str) -> str:
    """'ORG/NAME' of hf://datasets/ORG/NAME or hf://ORG/NAME. RunFileError for anything else."""
    found = _ADDRESS.fullmatch(address)
    if found is None or "--" in address or ".." in address:
        raise RunFileError(
            f"{redacted(address)}: wanted hf://datasets/ORG/NAME, a dataset repository of the Hugging Face Hub, and nothing "
            "behind it; ORG is an organisation or your own name there"
        )
    return found[1]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the repository, by the hash that the Hub tells: sha256 of a large one, git's of a small one."""

    size: int
    git_sha1: str
    sha256: str | None

    def is_same(self, data: bytes) -> bool:
        if self.sha256 is not None:
            return self.sha256 == hashlib.sha256(data).hexdigest()
        return self.git_sha1 == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def files_of(api: HfApi, repository: str) -> dict[str, RemoteFile]:
    """Name -> file, of the repository's main branch."""
    listed = api.list_repo_tree(repository, recursive=True, repo_type=KIND)
    return {
        one.path: RemoteFile(one.size, one.blob_id, one.lfs.sha256 if one.lfs else None)
        for one in listed
        if isinstance(one, RepoFile)
    }


def fingerprint_of(api: HfApi, repository: str, name: str) -> str | None:
    """What a plan or manifest in the repository names as its run; None where it is no such file."""
    with tempfile.TemporaryDirectory(prefix="targetsmith-hub-") as folder:
        path = api.hf_hub_download(repository, name, repo_type=KIND, local_dir=folder)
        try:
            content = json.loads(Path(path).read_bytes())
        except (ValueError, RecursionError):
            return None
    found = content.get("fingerprint") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Whatever the library raises becomes an OutputError in one line, with what to do. Its errors are of many kinds."""
    try:
        yield
    except TargetsmithError:
        raise
    except Exception as error:
        found = _told(error)
        text = " ".join(redacted(str(found)).split())[:_SHOWN_CHARACTERS]
        raise OutputError(f"hf://datasets/{repository}: {type(found).__name__}: {text}; {_remedy(found)}") from error


def _told(error: BaseException) -> BaseException:
    """What the Hub said, where the library has put "error while uploading" around it."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _remedy(error: BaseException) -> str:
    code = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError) or code == 401:
        return "log in by `hf auth login`, or set HF_TOKEN to a token that may write there"
    if isinstance(error, RepositoryNotFoundError) or code in (403, 404):
        return "name a repository of your own or of an organisation where your token may write"
    if "metadata in README.md" in str(error):
        return (
            "correct the lines between the two --- at the top of the output's README.md and run the same command again; a card "
            "that is made anew takes them from [card] of the run file, so correct them there as well"
        )
    return "run the same command again: what is there is not sent again"
