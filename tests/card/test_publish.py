"""Publishing, against a server that speaks the Hub's HTTP: whole or without a manifest, gone on with, never into another run's
repository, never with a token in a message."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from engine.card import publish as module
from engine.card.describe import describe
from engine.card.hub import repository_of
from engine.card.publish import publish
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.dataset.layout import CARD, CROISSANT, MANIFEST, PLAN
from schemas.errors import OutputError, RunFileError
from tests.support.hub import hub as reading_hub
from tests.support.hub_writes import TOKEN, Hub, Pointer, written_hub
from tests.support.objectstores import publish_all
from tests.support.tables import sealed_paths, small_plan

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its own library

ROOT = Path(__file__).resolve().parents[2]
NAME = "org/name"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # what the environment variable sets
    with written_hub() as found:
        yield found


def api_of(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


def send(out: Path | str, hub: Hub, **more: bool) -> module.Published:
    return publish(out, NAME, api=api_of(hub), say=lambda text: None, **more)


def another(out: Path, units: int = 2) -> Path:
    plan = small_plan(units=units, top_k=4)
    open_output(out, plan)
    publish_all(out, plan)
    finish(out, plan, engine_version="test", describe=describe)
    return out


def names_of(out: Path) -> set[str]:
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("_engine/tmp/")}


def command(hub: Hub, folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(folder / "hf"),
    }
    line = [sys.executable, "-m", "jobs.push", *arguments]
    return subprocess.Popen(line, env={**env, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_all_files_arrive_the_manifest_last_and_a_second_call_sends_nothing(
    finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMIT_FILES", 4)
    done = send(finished, hub)
    repository = hub.repositories[NAME]
    assert repository.private and done.private and done.sent == done.files == len(names_of(finished))
    assert repository.files.keys() - {".gitattributes"} == names_of(finished)
    assert repository.commits[0][:3] == [PLAN, CARD, CROISSANT] and repository.commits[-1][-1] == MANIFEST
    assert len(repository.commits) > 2 and sum(len(names) for names in repository.commits) == done.files
    hub.log.clear()
    again = send(finished, hub, public=True)
    assert (again.sent, again.sent_bytes, again.replaced, again.private) == (0, 0, (), True)
    assert not [line for line in hub.log if line.startswith("PUT") or "/commit/" in line]


def test_a_refusal_in_the_middle_leaves_no_manifest_and_is_gone_on_from(
    finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMIT_FILES", 4)
    puts = iter(range(2))
    hub.fails = lambda request: 403 if request.startswith("PUT") and next(puts, None) is None else None
    with pytest.raises(OutputError, match="403 Forbidden.*name a repository of your own") as raised:
        send(finished, hub)
    assert "\n" not in str(raised.value) and TOKEN not in str(raised.value)
    repository = hub.repositories[NAME]
    assert [PLAN in names for names in repository.commits] == [True] and MANIFEST not in repository.files
    claimed = len(repository.commits[0])
    before = {*hub.objects}
    hub.fails = lambda request: None
    hub.log.clear()
    done = send(finished, hub)
    assert done.sent == done.files - claimed
    sent = {line.split()[1].removeprefix("/lfs/") for line in hub.log if line.startswith("PUT")}
    assert not sent & before, "an object that the Hub has was sent again"
    assert repository.files.keys() - {".gitattributes"} == names_of(finished)


def test_a_lost_commit_is_made_again_without_sending_its_files(finished: Path, hub: Hub) -> None:
    hub.fails = lambda request: 403 if "/commit/" in request else None
    with pytest.raises(OutputError, match="403"):
        send(finished, hub)
    hub.fails = lambda request: None
    hub.log.clear()
    assert send(finished, hub).sent == len(names_of(finished))
    assert hub.sent_bytes() == 0


def test_another_run_and_other_files_are_refused_before_anything_changes(
    finished: Path, hub: Hub, tmp_path: Path
) -> None:
    send(another(tmp_path / "other"), hub)
    hub.log.clear()
    with pytest.raises(OutputError, match="holds the run .* name another repository"):
        send(finished, hub)
    repository = hub.repositories[NAME]
    del repository.files[PLAN]
    with pytest.raises(OutputError, match="holds the run .* name another repository"):  # by its manifest
        send(finished, hub)
    repository.files = {".gitattributes": b"", CARD: b"# mine\n", "data/x.parquet": b"x"}
    with pytest.raises(OutputError, match="holds data/x.parquet, which is no file of this output"):
        send(finished, hub)
    assert not [line for line in hub.log if line.startswith("PUT") or "/commit/" in line]
    del repository.files["data/x.parquet"]
    assert send(finished, hub).replaced == (CARD,)
    repository.files["LICENSE"] = b"by hand"
    assert send(finished, hub).sent == 0
    repository.files["data/teacher/stray.parquet"] = b"x"
    with pytest.raises(OutputError, match="holds data/teacher/stray.parquet"):
        send(finished, hub)


def test_only_a_finished_and_whole_output_is_sent(finished: Path, hub: Hub, tmp_path: Path) -> None:
    def refused(change, says: str) -> None:
        out = Path(shutil.copytree(finished, tmp_path / f"{len(list(tmp_path.iterdir()))}"))
        change(out)
        with pytest.raises(OutputError, match=says):
            send(out, hub)

    shard = sealed_paths(finished, "teacher")[0].relative_to(finished)
    data = (finished / shard).read_bytes()
    refused(lambda out: (out / MANIFEST).unlink(), "the run is not finished")
    refused(lambda out: (out / CARD).unlink(), "README.md: missing; run `targetsmith score` again")
    refused(lambda out: (out / shard).unlink(), "missing, wanted")
    refused(lambda out: (out / shard).write_bytes(data[:-1]), "wanted .* bytes as in the manifest")
    refused(lambda out: (out / "data" / "teacher" / "x.parquet").write_bytes(data), "x.parquet: not a file of this run")
    refused(lambda out: (out / shard).write_bytes(data[:-1] + b"x"), "damaged: other content than was sealed")
    with pytest.raises(OutputError, match="no such folder; name the `output` of a run"):
        send(tmp_path / "nothing", hub)
    assert all(not repository.commits for repository in hub.repositories.values())


def test_a_card_that_the_hub_refuses_is_told_before_anything_large_is_sent(finished: Path, hub: Hub) -> None:
    hub.card_faults = ['"license" must be one of [...]']
    with pytest.raises(
        OutputError, match=r'"license" must be one of .* correct the lines between the two --- .*README\.md'
    ):
        send(finished, hub)
    assert hub.sent_bytes() == 0
    card = finished / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("---\n", "---\nlicense: other\n", 1), encoding="utf-8")
    hub.card_faults = []
    send(finished, hub)
    assert hub.repositories[NAME].files["README.md"] == card.read_bytes(), "what the message says to do goes on"


@pytest.mark.parametrize(
    "address",
    ["out", "hf://name", "hf://models/org/name", "hf://datasets/org/name/data", "hf://datasets/org/na me", "s3://a/b"],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(RunFileError, match="wanted hf://datasets/ORG/NAME"):
        repository_of(address)


def test_addresses() -> None:
    assert repository_of("hf://datasets/my-org/a.b_c") == repository_of("hf://my-org/a.b_c/") == "my-org/a.b_c"


def test_the_command_is_killed_while_it_sends_and_goes_on(finished: Path, hub: Hub, tmp_path: Path) -> None:
    """Over LFS; and what a person sees of a token that may not."""
    sending = threading.Event()
    hub.fails = lambda request: sending.set() if request.startswith("PUT") else None
    lfs = {"HF_HUB_DISABLE_XET": "1"}
    with command(hub, tmp_path, str(finished), f"hf://datasets/{NAME}", **lfs) as killed:
        assert sending.wait(60)
        killed.send_signal(signal.SIGKILL)
    assert MANIFEST not in hub.repositories[NAME].files
    with command(hub, tmp_path, str(finished), f"hf://{NAME}", **lfs) as again:
        printed, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert f"{hub.url}/datasets/{NAME}" in printed and "private" in printed
    assert hub.repositories[NAME].files.keys() - {".gitattributes"} == names_of(finished)
    secret = "hf_" + "b" * 34
    with command(hub, tmp_path, str(finished), f"hf://{NAME}", HF_TOKEN=secret) as refused:
        printed, said = refused.communicate(timeout=60)
    assert refused.returncode == 1 and said.count("\n") == 1 and "401" in said and "hf auth login" in said
    assert secret not in printed + said


def test_the_command_sends_over_xet(finished: Path, hub: Hub, tmp_path: Path) -> None:
    """The Hub's own way, by its own library; the content goes into a folder instead of its store."""
    hub.cas = str(tmp_path / "cas")
    Path(hub.cas).mkdir()
    with command(hub, tmp_path, str(finished), f"hf://datasets/{NAME}", "--public") as first:
        printed, said = first.communicate(timeout=60)
    assert first.returncode == 0 and "public" in printed, said
    repository = hub.repositories[NAME]
    assert repository.files.keys() - {".gitattributes"} == names_of(finished) and not hub.objects
    stored = sum(path.stat().st_size for path in Path(hub.cas).rglob("*") if path.is_file())
    assert stored > sum(file.size for file in repository.files.values() if isinstance(file, Pointer)) / 2


def test_what_is_published_is_read_as_the_card_says(finished: Path, tmp_path: Path) -> None:
    """By the card's configuration, and by the reader, from a server that speaks the Hub's reading."""
    files = {name: (finished / name).read_bytes() for name in names_of(finished)}
    card = files[CARD].decode()
    assert 'load_dataset("ORG/NAME", "student-small", split="train")' in card and '"hf://datasets/ORG/NAME"' in card
    code = """
from datasets import load_dataset
from engine.reader import Targets
rows = load_dataset("org/name", "student-small", split="train")
documents = list(Targets("hf://datasets/org/name", "student/small", verify=True).documents())
assert [d.token_ids.tolist() for d in documents] == [row["token_ids"] for row in rows] and len(rows) == 8
"""
    with reading_hub(files, []) as url:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
