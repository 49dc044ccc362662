"""A web server that speaks as much of the Hub as listing and reading a dataset needs: one dataset, `org/name`, at one commit."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40
API = "/api/datasets/org/name"
RESOLVE = "/datasets/org/name/resolve/"


class _Hub(http.server.BaseHTTPRequestHandler):
    def __init__(self, files: dict[str, bytes], log: list[str], *args: object) -> None:
        self.files, self.log = files, log
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_HEAD

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        address = urlsplit(self.path)
        path = unquote(address.path)
        if path == API or path.startswith(f"{API}/revision/"):
            told = [{"rfilename": name} for name in self.files]
            self._json({"id": "org/name", "sha": COMMIT, "private": False, "tags": [], "siblings": told})
        elif path.startswith(f"{API}/tree/"):
            self._tree(path.split("/", 7)[7:], "recursive=true" in address.query.lower())
        elif path.startswith(f"{API}/paths-info/"):
            self._json([self._entry(name) for name in parse_qs(body)["paths"] if name in self.files])
        elif path.startswith(RESOLVE) and (name := path.split("/", 6)[6]) in self.files:
            self._file(name)
        else:
            self._json({"error": "Entry not found"}, 404)

    def _tree(self, folder: list[str], recursive: bool) -> None:
        top = f"{folder[0]}/" if folder and folder[0] else ""
        inside = [name for name in self.files if name.startswith(top)]
        here = [self._entry(name) for name in inside if recursive or "/" not in name[len(top) :]]
        folders = {top + name[len(top) :].split("/")[0] for name in inside if "/" in name[len(top) :]}
        found = here + [{"type": "directory", "oid": "0", "size": 0, "path": name} for name in sorted(folders)]
        self._json(found) if found else self._json({"error": "Entry not found"}, 404)

    def _file(self, name: str) -> None:
        data, asked = self.files[name], self.headers.get("Range")
        first, whole = 0, len(data)
        if asked:
            begin, end = asked.removeprefix("bytes=").split("-")
            first, data = int(begin), data[int(begin) : int(end) + 1 if end else whole]
        self.log += [f"{name} {len(data)}"] if self.command == "GET" else []
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{whole}")
        self.send_header("ETag", f'"{hashlib.sha256(self.files[name]).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self._end(data)

    def _entry(self, name: str) -> dict[str, object]:
        data = self.files[name]
        large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
        return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name, "lfs": large}

    def _json(self, value: object, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self._end(json.dumps(value).encode())

    def _end(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub(files: dict[str, bytes], log: list[str]) -> Iterator[str]:
    """Its URL. files: name -> content, asked at each request; log: "name bytes" of each answer with a file's content."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, files, log)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
