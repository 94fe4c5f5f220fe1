"""A small Hub on this machine, for the real client: repositories in memory, faults on request.

It speaks what huggingface_hub asks: whoami, create, info, tree, preupload, Xet token, LFS batch,
commit, resolve. Large files come by LFS as bytes, or by Xet into a folder that the Xet client's own
local store reads; then the stand-in learns their sha256 from the commit, as the Hub does.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "StandIn0" * 5
_LARGE = (".safetensors", ".png", ".model")
_FIRST = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        kind: "status" answers with a code; "drop" closes the connection before, "lost" after the
            work was done; "stall" never answers; "cut" sends half of the answer; "drip" sends a
            byte a second; "nonsense" sends what is no JSON.
        status: The code.
        headers: Sent with it.
        body: Sent with it.
    """

    kind: str
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] = field(default_factory=dict)


@dataclass
class Stored:
    """A file of a repository: its bytes, or what the commit said of those in the Xet store."""

    content: bytes | None
    size: int
    sha256: str
    is_large: bool

    @property
    def oid(self) -> str:
        text = self.content if not self.is_large else self.pointer()
        assert text is not None
        return hashlib.sha1(f"blob {len(text)}\0".encode() + text).hexdigest()

    def pointer(self) -> bytes:
        return (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.sha256}\nsize {self.size}\n"
        ).encode()


@dataclass
class Repository:
    """Files by branch, and every commit."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        files = {name: _stored(name, content) for name, content in _FIRST.items()}
        self.add_commit("main", files, "initial commit")

    def add_commit(self, branch: str, files: dict[str, Stored], message: str) -> str:
        told = json.dumps([message, len(self.commits), sorted(files)])
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        self.messages.append(message)
        return commit

    def at(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision)

    def put(self, name: str, content: bytes, branch: str = "main") -> None:
        """Place a file as somebody else would, past every check of ours."""
        files = {**self.commits[self.branches[branch]], name: _stored(name, content)}
        self.add_commit(branch, files, f"put {name}")


class HubServer(ThreadingHTTPServer):
    """The stand-in.

    Attributes:
        repositories: By id.
        faults: Endpoint -> what goes wrong with its 1st, 2nd, ... request from now on; None is
            nothing.
        requests: "METHOD endpoint" of everything that was asked.
        received: Every byte that came in, body by body.
        authorizations: What the requests said of who asks.
        blobs: Large files that came by LFS, by sha256.
    """

    daemon_threads = True

    def __init__(self, xet_store: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.xet_store = xet_store
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[str, list[Fault | None]] = {}
        self.requests: list[str] = []
        self.received: list[bytes] = []
        self.authorizations: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.who: dict[str, Any] = {
            "type": "user",
            "name": "me",
            "orgs": [{"name": "our-lab"}],
            "auth": {"type": "access_token", "accessToken": {"role": "write"}},
        }
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def next_fault(self, endpoint: str) -> Fault | None:
        with self.lock:
            waiting = self.faults.get(endpoint)
            return waiting.pop(0) if waiting else None

    def files(self, repo: str, branch: str = "main") -> dict[str, Stored]:
        """What a branch holds, but for the file that every repository begins with."""
        held = self.repositories[repo]
        files = held.commits[held.branches[branch]]
        return {name: file for name, file in files.items() if name not in _FIRST}

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing when a client has gone."""


def _stored(name: str, content: bytes) -> Stored:
    sha256 = hashlib.sha256(content).hexdigest()
    return Stored(content, len(content), sha256, name.endswith(_LARGE))


_ROUTES: Sequence[tuple[str, str, str]] = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", "info"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<rev>[^/]+)", "info"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)", "tree"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)", "branch"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", "preupload"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/xet-(?:write|read)-token/(?P<rev>[^/]+)", "xet"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put"),
    ("POST", r"/lfs/verify", "verify"),
    ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "head"),
    ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "get"),
)


class _Answer(Exception):  # noqa: N818 - no error: how a route ends
    def __init__(
        self, status: int, body: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.headers = status, dict(headers or {})
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunks()
        path = unquote(urlsplit(self.path).path)
        endpoint, parts = self._route(path)
        with self.server.lock:
            self.server.requests.append(f"{self.command} {endpoint}")
            self.server.received.append(body)
            self.server.authorizations.add(self.headers.get("Authorization", ""))
        fault = self.server.next_fault(endpoint)
        if fault and self._fails_before(fault):
            return
        try:
            self._check_token(endpoint)
            getattr(self, f"_{endpoint}")(body, **parts)
        except _Answer as answer:
            if fault and fault.kind == "lost":
                self.close_connection = True
                return
            self._send(answer, fault)

    do_GET = do_POST = do_PUT = do_HEAD = _serve  # noqa: N815 - names of http.server

    def _route(self, path: str) -> tuple[str, dict[str, str]]:
        # A revision in a path is quoted twice where it has a slash; tests use none.
        for method, pattern, endpoint in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return endpoint, found.groupdict()
        return "unknown", {}

    def _chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _fails_before(self, fault: Fault) -> bool:
        if fault.kind == "status":
            self._send(_Answer(fault.status, fault.body, fault.headers), None)
        elif fault.kind == "drop":
            self.close_connection = True
        elif fault.kind == "stall":
            self.server.closing.wait(60)
            self.close_connection = True
        else:
            return False
        return True

    def _send(self, answer: _Answer, fault: Fault | None) -> None:
        body = b"<html>no JSON" if fault and fault.kind == "nonsense" else answer.body
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.kind == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault and fault.kind == "drip":
            self._drip(body)
        else:
            self.wfile.write(body)

    def _drip(self, body: bytes) -> None:
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.closing.wait(0.2):
                break
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Write nothing."""

    # --- who may what ----------------------------------------------------------------------------

    def _check_token(self, endpoint: str) -> None:
        if endpoint in ("put", "verify"):
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            headers = {"X-Error-Message": "Invalid username or password."}
            raise _Answer(401, {"error": "Invalid username or password."}, headers)

    def _repository(self, repo: str) -> Repository:
        if repo not in self.server.repositories:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            raise _Answer(404, {"error": "Repository not found"}, headers)
        return self.server.repositories[repo]

    def _revision(self, repo: str, rev: str) -> tuple[Repository, str, dict[str, Stored]]:
        held = self._repository(repo)
        commit = held.at(rev)
        if commit is None:
            headers = {"X-Error-Code": "RevisionNotFound"}
            raise _Answer(404, {"error": f"Invalid rev id: {rev}"}, headers)
        return held, commit, held.commits[commit]

    # --- endpoints -------------------------------------------------------------------------------

    def _unknown(self, body: bytes) -> None:
        raise _Answer(404, {"error": f"no such endpoint: {self.command} {self.path}"})

    def _whoami(self, body: bytes) -> None:
        raise _Answer(200, self.server.who)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or self.server.who['name']}/{asked['name']}"
        with self.server.lock:
            url = {"url": f"{self.server.url}/{repo}"}
            if repo in self.server.repositories:
                raise _Answer(409, {"error": "You already created this model repo", **url})
            is_private = asked.get("visibility") == "private"
            self.server.repositories[repo] = Repository(is_private)
        raise _Answer(200, url)

    def _validate(self, body: bytes) -> None:
        raise _Answer(200, {"errors": [], "warnings": []})

    def _info(self, body: bytes, repo: str, rev: str = "main") -> None:
        held, commit, files = self._revision(repo, rev)
        names = [{"rfilename": name} for name in files]
        told = {"_id": "1", "id": repo, "modelId": repo, "private": held.private, "sha": commit}
        raise _Answer(200, {**told, "siblings": names, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, body: bytes, repo: str, rev: str) -> None:
        _, _, files = self._revision(repo, rev)
        entries = []
        for name, file in files.items():
            entry = {"type": "file", "path": name, "size": file.size, "oid": file.oid}
            if file.is_large:
                lfs = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer())}
                entry["lfs"] = lfs
            entries.append(entry)
        raise _Answer(200, entries)

    def _branch(self, body: bytes, repo: str, rev: str) -> None:
        held = self._repository(repo)
        if rev in held.branches:
            raise _Answer(409, {"error": "Reference already exists"})
        held.branches[rev] = held.branches["main"]
        raise _Answer(200, {})

    def _preupload(self, body: bytes, repo: str, rev: str) -> None:
        _, _, files = self._revision(repo, rev)
        answers = []
        for asked in json.loads(body)["files"]:
            name = asked["path"]
            mode = "lfs" if name.endswith(_LARGE) else "regular"
            held = files.get(name)
            oid = held.oid if held and not held.is_large else None
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        raise _Answer(200, {"files": answers})

    def _xet(self, body: bytes, repo: str, rev: str) -> None:
        self._repository(repo)
        if self.server.xet_store is None:
            raise _Answer(404, {"error": "no Xet here"})
        store, end = f"local://{self.server.xet_store}", int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": store,
            "X-Xet-Access-Token": "xet-token",
            "X-Xet-Token-Expiration": str(end),
        }
        raise _Answer(200, {"casUrl": store, "accessToken": "xet-token", "exp": end}, headers)

    def _batch(self, body: bytes, repo: str) -> None:
        self._repository(repo)
        objects = []
        for asked in json.loads(body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.blobs:
                entry["actions"] = {
                    "upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"},
                    "verify": {"href": f"{self.server.url}/lfs/verify"},
                }
            objects.append(entry)
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def _put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Answer(400, {"error": "the content is not what its name says"})
        self.server.blobs[oid] = body
        raise _Answer(200, {})

    def _verify(self, body: bytes) -> None:
        known = json.loads(body)["oid"] in self.server.blobs
        raise _Answer(200 if known else 404, {})

    def _commit(self, body: bytes, repo: str, rev: str) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line]
        header = lines[0]["value"]
        with self.server.lock:
            held, head, before = self._revision(repo, rev)
            if header.get("parentCommit") not in (None, head):
                raise _Answer(412, {"error": "A commit has happened since. Please refresh."})
            files = dict(before)
            for line in lines[1:]:
                self._apply(line["key"], line["value"], files)
            if files == before:
                raise _Answer(400, {"error": "an empty commit"})
            commit = held.add_commit(rev, files, header["summary"])
        told = {"commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit}
        raise _Answer(200, {**told, "pullRequestUrl": None, "success": True})

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, Stored]) -> None:
        name = value["path"]
        if key == "file":
            content = base64.b64decode(value["content"])
            files[name] = Stored(content, len(content), hashlib.sha256(content).hexdigest(), False)
        elif key == "lfsFile":
            content = self.server.blobs.get(value["oid"])
            if content is None and self.server.xet_store is None:
                raise _Answer(400, {"error": f"{name} was never sent"})
            files[name] = Stored(content, value["size"], value["oid"], True)
        elif key == "deletedFile":
            files.pop(name, None)

    def _head(self, body: bytes, repo: str, rev: str, path: str) -> None:
        self._get(body, repo, rev, path)

    def _get(self, body: bytes, repo: str, rev: str, path: str) -> None:
        _, commit, files = self._revision(repo, rev)
        file = files.get(path)
        if file is None:
            raise _Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        assert file.content is not None, "what lies in the Xet store is read by the Xet client"
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{file.sha256 if file.is_large else file.oid}"',
            "Content-Length": str(file.size),
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and int(asked[1]):
            rest = file.content[int(asked[1]) :]
            headers["Content-Length"] = str(len(rest))
            raise _Answer(206, rest, headers)
        raise _Answer(200, file.content, headers)
