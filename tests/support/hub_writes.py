"""A web server that speaks as much of the Hub as making and filling a dataset repository needs, as huggingface_hub asks for it:
over LFS, or over Xet, whose own library then writes into a folder. Repositories stand in memory; what is asked is written down;
any request can be made to fail.

    with written_hub() as hub:
        hub.fails = lambda request: 403 if request.startswith("PUT") else None
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "a" * 34
LARGE = (".parquet", ".safetensors")
"""What goes over LFS or Xet; other files go into the commit."""


@dataclass(frozen=True)
class Pointer:
    """A large file: its content is elsewhere."""

    sha256: str
    size: int


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes | Pointer] = field(default_factory=lambda: {".gitattributes": b"*.parquet filter=lfs\n"})
    commits: list[list[str]] = field(default_factory=list)  # names of each, in order


@dataclass
class Hub:
    """fails: "METHOD path" -> the status to answer with instead, None: as usual. cas: folder of Xet's content. card_faults: what
    it has against a README.md."""

    url: str = ""
    cas: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS, by sha256
    log: list[str] = field(default_factory=list)
    card_faults: list[str] = field(default_factory=list)
    fails: Callable[[str], int | None] = lambda request: None

    def sent_bytes(self) -> int:
        """Bytes of all LFS objects that were put since the log was emptied."""
        return sum(int(line.split()[2]) for line in self.log if line.startswith("PUT /lfs/"))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args: object) -> None:
        self.hub = hub
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(f"{self.command} {path} {len(body)}")
        if code := self.hub.fails(f"{self.command} {path}"):
            return self._json({"error": "as the test wants it"}, code)
        if path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            self.hub.objects[path.removeprefix("/lfs/")] = body
            return self._json({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":  # of a README.md before it is committed
            content = json.loads(body)["content"]
            assert yaml.safe_load(content.split("\n---\n")[0].removeprefix("---\n"))["pretty_name"]
            faults = [{"message": text} for text in self.hub.card_faults]
            return self._json({"errors": faults, "warnings": []}, 400 if faults else 200)
        words = path.strip("/").split("/")
        name = "/".join(words[2:4] if words[0] == "api" else words[1:3]).removesuffix(".git")
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        what = words[4] if len(words) > 4 else ""
        if words[0] == "datasets":  # /datasets/ORG/NAME/resolve/main/NAME
            return self._file(repository, "/".join(words[5:]))
        if what == "preupload":
            asked = json.loads(body)["files"]
            told = [(one["path"], "lfs" if one["path"].endswith(LARGE) else "regular") for one in asked]
            return self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in told]})
        if what == "xet-write-token":
            told = {"X-Xet-Cas-Url": f"local://{self.hub.cas}", "X-Xet-Access-Token": "x"}
            expires = int(time.time()) + 3600
            told["X-Xet-Token-Expiration"] = str(expires)
            return self._json({"casUrl": told["X-Xet-Cas-Url"], "accessToken": "x", "exp": expires}, 200, told)
        if what == "commit":
            return self._commit(repository, name, [json.loads(line) for line in body.splitlines()])
        if what == "tree":
            return self._json([_entry(path, data) for path, data in sorted(repository.files.items())])
        self._json({"id": name, "sha": "c" * 40, "private": repository.private, "tags": [], "siblings": []})

    do_POST = do_PUT = do_HEAD = do_GET

    def _create(self, asked: dict[str, object]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this repo", "url": f"{self.hub.url}/datasets/{name}"}, 409)
        self.hub.repositories[name] = Repository(bool(asked.get("private") or asked.get("visibility") == "private"))
        self._json({"url": f"{self.hub.url}/datasets/{name}", "id": "1", "name": name})

    def _batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for one in asked["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.hub.objects else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, name: str, lines: list[dict[str, dict[str, str]]]) -> None:
        brought = {}
        for line in lines[1:]:
            value = line["value"]
            if str(line["key"]) != "lfsFile":
                brought[value["path"]] = base64.b64decode(value["content"])
            elif self.hub.cas or value["oid"] in self.hub.objects:
                brought[value["path"]] = Pointer(value["oid"], int(value["size"]))
            else:
                return self._json({"error": f"{value['path']}: its content was never sent"}, 400)
        repository.files |= brought
        repository.commits.append(list(brought))
        self._json({"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{'c' * 40}", "commitOid": "c" * 40})

    def _file(self, repository: Repository, name: str) -> None:
        if name not in repository.files:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = repository.files[name]
        assert isinstance(data, bytes)
        self._answer(data, 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "c" * 40})

    def _json(self, value: object, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(json.dumps(value).encode(), code, {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, data: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(name: str, data: bytes | Pointer) -> dict[str, object]:
    """As the tree tells it: git's hash of a small file, of a large one also the sha256 of its content."""
    if isinstance(data, bytes):
        return {"type": "file", "path": name, "size": len(data), "oid": _git(data)}
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{data.sha256}\nsize {data.size}\n".encode()
    lfs = {"oid": data.sha256, "size": data.size, "pointerSize": len(text)}
    return {"type": "file", "path": name, "size": data.size, "oid": _git(text), "lfs": lfs}


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def written_hub() -> Iterator[Hub]:
    """A Hub without repositories, until the block ends."""
    found = Hub()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, found)) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()
