"""The few routes of the Hugging Face Hub that its client needs, on this machine."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

LICENSES = ("apache-2.0", "mit", "other")
"""Of those that the Hub knows."""


@dataclass
class Repository:
    """A repository at one commit."""

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    gated: bool = False
    token: str | None = None
    """The token that may read it; None for a public one."""
    private: bool = False


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
    """Names of files that the server has trouble with, and ``lfs`` for its store of large ones."""
    writers: dict[str, str] = field(default_factory=dict)
    """Token -> the user who has it, and may write to what is the user's."""
    moves: bool = False
    """Whether somebody else commits to a model just before each commit."""
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, by SHA-256."""
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

        def do_POST(self) -> None:
            self.write(self.rfile.read(int(self.headers["Content-Length"])))

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            oid = urlsplit(self.path).path.removeprefix("/lfs/")
            if "lfs" in hub.broken or hashlib.sha256(content).hexdigest() != oid:
                return self.refuse(400, "BadRequest")
            hub.stored[oid] = content
            self.content(b"", {}, True)

        def write(self, body: bytes) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, None))
            if path == "/api/validate-yaml":
                return self.validate(json.loads(body)["content"])
            user = hub.writers.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
            if user is None:
                return self.refuse(401, "Unauthorized")
            if path == "/api/repos/create":
                return self.create(user, json.loads(body))
            to = re.fullmatch(
                r"/(?:api/models/)?([^/]+)/([^/]+?)(?:/(preupload|commit)/main|(\.git/info/lfs/objects/batch))", path
            )
            repository = hub.models.get(f"{to[1]}/{to[2]}") if to else None
            if not to or repository is None:
                return self.refuse(404, "RepoNotFound")
            if to[1] != user:
                return self.refuse(403, "Forbidden")
            if to[3] == "commit":
                return self.commit(repository, [json.loads(line) for line in body.splitlines()])
            asked = json.loads(body)
            if to[3] == "preupload":
                large = (".safetensors", ".pth")
                files = [{"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                          "shouldIgnore": False} for file in asked["files"]]  # fmt: skip
                return self.answer_json({"files": files})
            actions = [{"oid": each["oid"], "size": each["size"],
                        "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}", "header": {}}}}
                       for each in asked["objects"]]  # fmt: skip
            self.answer_json({"transfer": "basic", "objects": actions})

        def validate(self, card: str) -> None:
            _, told, _ = card.split("---\n", 2)
            if yaml.safe_load(told).get("license", "mit") in LICENSES:
                return self.answer_json({"errors": [], "warnings": []})
            told = f'"license" must be one of [{", ".join(LICENSES)}]'
            self.answer_json({"errors": [{"message": told}], "warnings": []}, 400)

        def create(self, user: str, asked: dict) -> None:
            name = f"{asked['organization'] or user}/{asked['name']}"
            if asked["organization"] not in (None, user):
                return self.refuse(403, "Forbidden")
            there = name in hub.models
            if not there:
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                private = bool(asked.get("private"))
                hub.models[name] = Repository({".gitattributes": b""}, token=token if private else None,
                                              private=private)  # fmt: skip
            self.answer_json({"url": f"{hub.url}/{name}"}, 409 if there else 200)

        def commit(self, repository: Repository, lines: list[dict]) -> None:
            if hub.moves:
                repository.commit = hashlib.sha1(repository.commit.encode()).hexdigest()
            if lines[0]["value"].get("parentCommit", repository.commit) != repository.commit:
                return self.refuse(412, "PreconditionFailed")
            for line in lines[1:]:
                path = line["value"]["path"]
                if line["key"] == "file":
                    repository.files[path] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    repository.files[path] = hub.stored[line["value"]["oid"]]
                else:
                    del repository.files[path]
            repository.commit = hashlib.sha1(json.dumps(lines).encode() + repository.commit.encode()).hexdigest()
            self.answer_json({"commitUrl": f"{hub.url}/commit", "commitOid": repository.commit})

        def answer_json(self, content: object, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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
            if info := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                return self.information(*info.groups("main"))
            if tree := re.fullmatch(r"/api/(models)/([^/]+/[^/]+)/tree/(.+)", path):
                return self.tree(*tree.groups())
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
                self.answer_json({"id": name, "sha": repository.commit, "private": repository.private,
                                  "siblings": siblings})  # fmt: skip

        def tree(self, kind: str, name: str, revision: str) -> None:
            if repository := self.repository(kind, name, revision):
                self.answer_json([
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in repository.files.items()
                ])  # fmt: skip

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
