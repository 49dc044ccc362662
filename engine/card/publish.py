"""A finished output into a dataset repository of the Hugging Face Hub; again and again, until all of it is there.

    files of the output, plan and card first, the manifest last  ->  less what the repository has  ->  commits

The repository keeps the promise of the folder: what has a manifest is whole. The first commit brings the plan, which claims the
repository for its run, and the card, which the Hub looks at before anything large is sent. A file that is there with the same
hash is not sent again, and one whose commit was lost is known to the Hub by its content. Nothing is noted on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, HfApi

from engine.card.hub import KIND, RemoteFile, files_of, fingerprint_of, hub_errors
from engine.dataset.layout import CARD, CROISSANT, MAKE, MANIFEST, PLAN, REMAKE, load_manifest, load_plan
from engine.dataset.store import STAGING, Out, PosixStore, Store, open_store
from schemas.counts import counted
from schemas.errors import OutputError
from schemas.manifest import Manifest

COMMIT_FILES = 200
COMMIT_BYTES = 4 * 2**30
"""Most of one commit: small enough to be soon safe, large enough for the Hub's limit on commits in an hour."""
_THERE = {".gitattributes", CARD}  # what a new repository may have

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Published:
    """What was done. sent, sent_bytes: by this call; replaced: of these, names that were there with another content."""

    url: str
    private: bool
    files: int
    sent: int
    sent_bytes: int
    replaced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the output. sha256: as the manifest lists it; None for the small files that it does not list."""

    name: str
    size: int
    sha256: str | None


def publish(
    out: Out, repository: str, *, public: bool = False, api: HfApi | None = None, say: Say = print
) -> Published:
    """Bring all files of a finished output into 'ORG/NAME', which is made where there is none: private, unless `public`.

    Raises OutputError: the run is not finished, a file is missing or damaged, the repository holds something else, or the Hub
    refuses or cannot be reached. What was committed by then stays, and the next call goes on from there.
    """
    store, api = open_store(out), api or HfApi()
    manifest = load_manifest(store)
    plan = load_plan(store)
    if plan.fingerprint != manifest.fingerprint:
        raise OutputError(f"{store}: plan and manifest are of two runs; `targetsmith verify` tells which is right")
    files = _files(store, manifest)
    with hub_errors(repository):
        api.create_repo(repository, repo_type=KIND, private=not public, exist_ok=True)
        there = files_of(api, repository)
        _check_own(api, repository, there, {file.name for file in files}, manifest.fingerprint)
        missing = [file for file in files if not _is_there(store, file, there)]
        size = sum(file.size for file in missing)
        say(
            f"{len(files) - len(missing):,} of {counted(len(files), 'file')} already there; sending {len(missing):,} "
            f"({size:,} bytes)"
        )
        done = 0
        for batch in _batches(missing):
            operations = [_operation(api, repository, store, file) for file in batch]
            told = f"targetsmith {manifest.fingerprint[:12]}: files {done + 1:,} to {done + len(batch):,} of {len(missing):,}"
            api.create_commit(repository, operations, commit_message=told, repo_type=KIND)
            done += len(batch)
            say(f"{done:,} of {counted(len(missing), 'file')} sent")
        private = bool(api.repo_info(repository, repo_type=KIND).private)
    replaced = tuple(file.name for file in missing if file.name in there)
    return Published(f"{api.endpoint}/datasets/{repository}", private, len(files), len(missing), size, replaced)


def _files(store: Store, manifest: Manifest) -> list[_File]:
    """All files of the output, in the order in which they are sent. OutputError where one is missing or has another size."""
    listed = [file for shard in manifest.shards for file in shard.files.values() if file is not None]
    listed += [file for file in (manifest.head, manifest.continuations) if file is not None]
    listed += (manifest.vocabularies or {}).values()
    found = dict(store.files())
    known = {file.name: _File(file.name, file.bytes, file.sha256) for file in listed}
    for file in known.values():
        if found.get(file.name) != file.size:
            got, advice = "missing", MAKE
            if file.name in found:
                got, advice = f"{found[file.name]:,} bytes", REMAKE
            raise OutputError(
                f"{store.place(file.name)}: {got}, wanted {file.size:,} bytes as in the manifest; {advice}"
            )
    if CARD not in found:
        raise OutputError(
            f"{store.place(CARD)}: missing; run `targetsmith score` again (for an import, the same `targetsmith import`): it "
            "is made anew, without the teacher"
        )
    if extra := sorted(name for name in found if name.startswith("data/") and name not in known):
        raise OutputError(
            f"{store.place(extra[0])}: not a file of this run, and readers would pick it up: move it away"
        )
    engine = sorted(name for name in found if name.startswith("_engine/") and not name.startswith(f"{STAGING}/"))
    first = [PLAN, CARD, *([CROISSANT] if CROISSANT in found else [])]
    small = [name for name in engine if name not in known and name not in (PLAN, MANIFEST)]
    names = [*first, *known, *small, MANIFEST]
    return [known.get(name) or _File(name, found[name], None) for name in names]


def _check_own(api: HfApi, repository: str, there: dict[str, RemoteFile], names: set[str], fingerprint: str) -> None:
    """OutputError where the repository holds another run, or something else."""
    holder = next((name for name in (PLAN, MANIFEST) if name in there), None)
    if holder is not None:
        found = fingerprint_of(api, repository, holder)
        if found != fingerprint:
            raise OutputError(
                f"hf://datasets/{repository}: holds the run {str(found)[:12]}, this output is of the run {fingerprint[:12]}; "
                "name another repository, or delete that one first (nothing was changed)"
            )
    foreign = sorted(name for name in there if name not in names and (holder is None or name.startswith("data/")))
    if foreign := [name for name in foreign if name not in _THERE]:
        raise OutputError(
            f"hf://datasets/{repository}: holds {foreign[0]}, which is no file of this output "
            f"({counted(len(foreign), 'such file')}); name "
            "another repository, or remove them there (nothing was changed)"
        )


def _is_there(store: Store, file: _File, there: dict[str, RemoteFile]) -> bool:
    remote = there.get(file.name)
    if remote is None or remote.size != file.size:
        return False
    if file.sha256 is not None and remote.sha256 is not None:
        return file.sha256 == remote.sha256
    return remote.is_same(store.read(file.name))


def _batches(files: Sequence[_File]) -> Iterator[list[_File]]:
    batch: list[_File] = []
    for file in files:
        if batch and (len(batch) == COMMIT_FILES or sum(one.size for one in batch) + file.size > COMMIT_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _operation(api: HfApi, repository: str, store: Store, file: _File) -> CommitOperationAdd:
    """A file as the library takes it. One of an object store is sent now, so that it does not wait in memory for its commit."""
    local = isinstance(store, PosixStore)
    operation = CommitOperationAdd(file.name, store.root / file.name if local else store.read(file.name))
    if file.sha256 is not None and operation.upload_info.sha256.hex() != file.sha256:
        raise OutputError(f"{store.place(file.name)}: damaged: other content than was sealed; {REMAKE}")
    if not local:
        api.preupload_lfs_files(repository, [operation], repo_type=KIND)
    return operation
