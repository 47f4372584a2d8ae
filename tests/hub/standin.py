"""A stand-in for the Hub on 127.0.0.1: the endpoints that huggingface_hub's client calls for repositories.

Written from the client's source: repository creation, branches, preupload, LFS batch and upload, commits, metadata
validation, listing and download, with access tokens and private repositories. It can be told to go wrong: answer a
status, cut a connection in the middle of an upload, take its time. Nothing is kept on disk.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

WRITER = "hf_" + "w" * 24  # may write to the namespace "me"
READER = "hf_" + "r" * 24  # a valid token of somebody else
LFS = (".safetensors", ".png", ".bin", ".arrow")


@dataclass
class Repo:
    """One repository of a model or dataset: every commit holds all its files."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches, the next `times` times.

    Attributes:
        match: regular expression.
        times: how often.
        status: answer this status, with `headers`.
        cut_after: read so many bytes of the body, then close the connection.
        delay: seconds to wait before going on as usual.
    """

    match: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    delay: float = 0.0


class Error(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.status, self.message = status, message
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class Hub:
    """The state of the stand-in."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.card_data: dict[str, dict[str, str]] = {}  # of models, as their cards have it
        self.requests: list[str] = []  # "METHOD path", all of them
        self.uploads: list[tuple[str, int]] = []  # LFS object, bytes that arrived, whether all or not
        self.lock = threading.RLock()
        self.url = ""

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, f"{method} {path}"):
                    fault.times -= 1
                    return fault
        return None

    def repo(self, name: str, token: str | None, write: bool = False) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and token != WRITER):
            raise Error(404 if token else 401, "RepoNotFound", "Repository not found")
        if write and token != WRITER:
            raise Error(403 if token else 401, message="You have no write access to this repository")
        return repo

    # Each endpoint: (method, pattern of the path, what answers it). The named groups are its arguments.
    def endpoints(self) -> list[tuple[str, str, Callable[..., Any]]]:
        repo = r"(?P<name>[\w.-]+/[\w.-]+)"
        api = "/api/(?:models|datasets)"
        return [
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", self.validate),
            ("POST", rf"{api}/{repo}/branch/(?P<branch>[^/]+)", self.branch),
            ("POST", rf"{api}/{repo}/preupload/(?P<revision>[^/]+)", self.preupload),
            ("POST", rf"{api}/{repo}/commit/(?P<revision>[^/]+)", self.commit),
            ("POST", rf"(?:/datasets)?/{repo}\.git/info/lfs/objects/batch", self.batch),
            ("GET", rf"{api}/{repo}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", self.tree),
            ("GET", rf"{api}/{repo}/revision/(?P<revision>[^/]+)", self.info),
            ("GET", rf"{api}/{repo}", self.info),
        ]

    def create(self, token: str | None, body: bytes) -> Any:
        asked = json.loads(body)
        if token is None:
            raise Error(401, message="Invalid credentials in Authorization header")
        owner = asked["organization"] or "me"
        name = f"{owner}/{asked['name']}"
        if token != WRITER or owner != "me":
            raise Error(403, message=f"You don't have the rights to create a model under the namespace {owner!r}")
        found = {"url": f"{self.url}/{name}", "name": name, "id": "0"}
        if name in self.repos:
            raise Error(409, message="You already created this model repo", body=json.dumps(found))
        self.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return found

    def validate(self, token: str | None, body: bytes) -> Any:
        """Part of what the Hub checks of a card's metadata: its form, names on the Hub, the model index."""
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        data = yaml.safe_load(match[1]) if match else {}
        wrong = []
        for key in ("base_model", "datasets"):
            values = data.get(key) or []
            for value in values if isinstance(values, list) else [values]:
                if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", value):
                    wrong.append(f'"{key}" with value "{value}" is not valid. Use a model id from the Hub.')
        for model in data.get("model-index") or []:
            for result in model["results"]:
                for path in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                    if not isinstance(result.get(path[0], {}).get(path[1]), str):
                        wrong.append(f'"model-index[0].results[0].{path[0]}.{path[1]}" is required')
                if not all("type" in metric and "value" in metric for metric in result.get("metrics", [{}])):
                    wrong.append('"model-index[0].results[0].metrics" is required')
        if wrong:
            raise Error(400, body=json.dumps({"errors": [{"message": message} for message in wrong], "warnings": []}))
        return {"errors": [], "warnings": []}

    def branch(self, token: str | None, body: bytes, name: str, branch: str) -> Any:
        repo = self.repo(name, token, write=True)
        if unquote(branch) in repo.branches:
            raise Error(409, message="Reference already exists")
        repo.branches[unquote(branch)] = repo.branches["main"]
        return {}

    def preupload(self, token: str | None, body: bytes, name: str, revision: str) -> Any:
        files = self.repo(name, token, write=True).files(unquote(revision))
        if files is None:
            raise Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        answer = []
        for asked in json.loads(body)["files"]:
            lfs = asked["path"].endswith(LFS) or asked["size"] > 10 * 2**20
            there = files.get(asked["path"])
            oid = None if there is None else (hashlib.sha256(there).hexdigest() if lfs else git_hash(there))
            mode = "lfs" if lfs else "regular"
            answer.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def batch(self, token: str | None, body: bytes, name: str) -> Any:
        self.repo(name, token, write=True)
        objects = []
        for asked in json.loads(body)["objects"]:
            found = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.objects:
                found["actions"] = {"upload": {"href": f"{self.url}/objects/{asked['oid']}"}}
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def commit(self, token: str | None, body: bytes, name: str, revision: str) -> Any:
        repo, branch = self.repo(name, token, write=True), unquote(revision)
        if branch not in repo.branches:
            raise Error(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files = dict(repo.files(branch) or {})
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Error(400, message=f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = self.objects[value["oid"]]
        oid = repo.commit(branch, files)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}", "hookOutput": ""}

    def info(self, token: str | None, body: bytes, name: str, revision: str = "main") -> Any:
        repo = self.repo(name, token)
        revision = unquote(revision)
        files = repo.files(revision)
        if files is None:
            raise Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return {
            "id": name,
            "sha": repo.branches.get(revision, revision),
            "private": repo.private,
            "siblings": [{"rfilename": path} for path in files],
            "cardData": self.card_data.get(name, {}),
        }

    def tree(self, token: str | None, body: bytes, name: str, revision: str, folder: str | None) -> Any:
        files = self.repo(name, token).files(unquote(revision))
        prefix = f"{unquote(folder)[1:]}/" if folder else ""
        found = [path for path in files or {} if path.startswith(prefix)]
        if files is None or not found:
            raise Error(404, "EntryNotFound", "Entry not found")
        return [
            {"type": "file", "path": path, "size": len(files[path]), "oid": git_hash(files[path])} for path in found
        ]

    def download(self, token: str | None, name: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        repo = self.repo(name, token)
        revision = unquote(revision)
        files = repo.files(revision)
        if files is None:
            raise Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit = {"X-Repo-Commit": repo.branches.get(revision, revision)}
        if unquote(path) not in files:
            raise Error(404, "EntryNotFound", "Entry not found", **commit)
        content = files[unquote(path)]
        return content, {**commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """HTTP around `Hub`."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Keep the terminal quiet."""

    def handle_any(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        with hub.lock:
            hub.requests.append(f"{self.command} {path}")
        fault = hub.fault(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.cut_after is not None:
            arrived = len(self.rfile.read(min(length, fault.cut_after)))
            self.note_upload(path, arrived)
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length) if length else self.read_chunks()
        if fault is not None:
            threading.Event().wait(fault.delay)
            if fault.status is not None:
                self.answer(fault.status, b"{}", fault.headers)
                return
        authorization = self.headers.get("Authorization", "")
        token = authorization.removeprefix("Bearer ") or None
        try:
            if token not in (None, WRITER, READER):
                raise Error(401, message="Invalid credentials in Authorization header")
            with hub.lock:
                self.answer(200, *self.result(path, token, body))
        except Error as error:
            content = error.headers.pop("body", json.dumps({"error": error.message}))
            self.answer(error.status, content.encode(), error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def result(self, path: str, token: str | None, body: bytes) -> tuple[bytes, dict[str, str]]:
        hub = self.hub
        if self.command == "PUT" and (match := re.fullmatch(r"/objects/([0-9a-f]{64})", path)):
            self.note_upload(path, len(body))
            if hashlib.sha256(body).hexdigest() != match[1]:
                raise Error(400, message="The content is not what its hash says")
            hub.objects[match[1]] = body
            return b"", {}
        if match := re.fullmatch(r"(?:/datasets)?/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return hub.download(token, *match.groups())
        for method, pattern, endpoint in hub.endpoints():
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return json.dumps(endpoint(token, body, **match.groupdict())).encode(), {}
        raise Error(404, "EntryNotFound", f"The stand-in has no {self.command} {self.path}")

    def note_upload(self, path: str, size: int) -> None:
        with self.hub.lock:
            self.hub.uploads.append((path.rpartition("/")[2], size))

    def read_chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running() -> Iterator[Hub]:
    """Serve a new, empty Hub while the block runs; its address is `hub.url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
