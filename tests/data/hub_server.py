"""The few routes of the Hugging Face Hub that its client needs, on this machine."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A repository at one commit."""

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    gated: bool = False
    token: str | None = None
    """The token that may read it; None for a public one."""


@dataclass
class Hub:
    """What the server serves, and what it was asked."""

    datasets: dict[str, Repository] = field(default_factory=dict)
    models: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range header of each request."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """File name -> bytes after which the next download of it breaks off, once."""
    broken: set[str] = field(default_factory=set)
    """Names of files that the server has trouble with."""
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, status: int, code: str, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if info := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)/revision/(.+)", path):
                return self.information(*info.groups())
            if resolve := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                kind, name, revision, file = resolve.groups()
                return self.file("datasets" if kind else "models", name, revision, file, body)
            self.refuse(404, "EntryNotFound")

        def repository(self, kind: str, name: str, revision: str) -> Repository | None:
            repository = getattr(hub, kind).get(name)
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if repository is None or (repository.token and not repository.gated and given != repository.token):
                self.refuse(401, "RepoNotFound")
            elif repository.gated and given != repository.token:
                self.refuse(403, "GatedRepo")
            elif revision not in ("main", repository.commit):
                self.refuse(404, "RevisionNotFound")
            else:
                return repository
            return None

        def information(self, kind: str, name: str, revision: str) -> None:
            if repository := self.repository(kind, name, revision):
                siblings = [
                    {"rfilename": file, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
                    | ({"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content),
                                "pointerSize": 1}} if file.endswith(".parquet") else {})
                    for file, content in repository.files.items()
                ]  # fmt: skip
                self.content(
                    json.dumps({"id": name, "sha": repository.commit, "siblings": siblings}).encode(), {}, True
                )

        def file(self, kind: str, name: str, revision: str, file: str, body: bool) -> None:
            repository = self.repository(kind, name, revision)
            if repository is None:
                return
            if file in hub.broken:
                return self.refuse(400, "BadRequest")
            if file not in repository.files:
                return self.refuse(404, "EntryNotFound", X_Repo_Commit=repository.commit)
            content = repository.files[file]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repository.commit,
                       "Accept-Ranges": "bytes"}  # fmt: skip
            self.content(content, headers, body, hub.cut_after.pop(file, None) if body else None)

        def content(self, content: bytes, headers: dict[str, str], body: bool, cut_after: int | None = None) -> None:
            first = 0
            if requested := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                first = int(requested[1])
            self.send_response(206 if first else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if body and cut_after is not None:
                self.wfile.write(content[first : first + cut_after])
                self.wfile.flush()
                self.close_connection = True
            elif body:
                self.wfile.write(content[first:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
