"""A model hub on loopback that speaks the hub's protocol, faults included.

Repository facts with blob digests, ``resolve`` addresses that redirect to a second host name, gated
and private repositories by ``X-Error-Code``, ranges. It also serves plain files under ``/files/``,
like any web server, and packages under ``/simple/``, like a package index (PEP 503, PEP 691).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_CHUNK = 64 * 1024
_RANGE = re.compile(r"bytes=(\d+)-")


def model_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that begin as a GGUF file does; the rest is noise that no one can mistake."""
    return (b"GGUF\x03\x00\x00\x00" + random.Random(seed).randbytes(size))[:size]


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the requests whose path contains ``path``.

    Attributes:
        path: Part of the path.
        times: How many requests it strikes.
        status: Answer this instead.
        headers: Added to the answer.
        cut_after: Drop the connection after that many bytes of the body.
        stall_after: Go silent after that many bytes of the body, until the hub closes.
        html: Answer a web page, as a login wall does.
        length: Claim this length of the body.
        redirect: Redirect there.
        hide_length: Send no length: the body ends with the connection.
        extra: Send so many bytes more than the file has.
        shift: Send a part that begins so many bytes later than was asked for.
        flip: Turn over the bits of this byte of the file.
    """

    path: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    html: bool = False
    length: int | None = None
    redirect: str | None = None
    hide_length: bool = False
    extra: int = 0
    shift: int = 0
    flip: int | None = None


@dataclass(kw_only=True)
class Seen:
    """One request, and what was sent for it."""

    method: str
    path: str
    host: str
    headers: Mapping[str, str]
    status: int = 0
    sent_bytes: int = 0

    @property
    def start(self) -> int:
        """First byte that was asked for."""
        match = _RANGE.match(self.headers.get("range", ""))
        return int(match[1]) if match else 0


@dataclass(kw_only=True)
class Repo:
    """A repository.

    Attributes:
        files: Its files by path.
        commit: The commit of its main branch.
        gated: Its files want a token that accepted the licence.
        token: Nothing of it is shown without this token.
    """

    files: dict[str, bytes]
    commit: str
    gated: bool = False
    token: str | None = None


class FakeHub:
    """The hub; a context manager. Change it between requests as you like.

    Attributes:
        faults: What is to go wrong, the first that matches first.
        seen: The requests so far.
        rate_bytes_s: Speed of bodies, or None for as fast as can be.
        files: Plain files by name, under :meth:`file_url`.
        packages: Wheels by name, by package.
        index_password: What the package index asks for, with any user name, or None.
        index_speaks_json: Else it speaks HTML only.
        claims: Sizes that the hub and the index claim, by file name, instead of the true ones.
        supports_ranges: Whether files can be asked for in parts.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.rate_bytes_s: float | None = None
        self.packages: dict[str, dict[str, bytes]] = {}
        self.index_password: str | None = None
        self.index_speaks_json = True
        self.claims: dict[str, int] = {}
        self.supports_ranges = True
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._digests: dict[int, tuple[bytes, str]] = {}
        self._server = _Server(self)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )

    @property
    def url(self) -> str:
        """What ``HF_ENDPOINT`` is to be."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn_url(self) -> str:
        """The second host, which ``resolve`` redirects to."""
        return f"http://localhost:{self.port}"

    def file_url(self, name: str) -> str:
        """Address of a plain file."""
        return f"{self.url}/files/{name}"

    @property
    def index_url(self) -> str:
        """What ``PIP_INDEX_URL`` is to be."""
        user = f"me:{self.index_password}@" if self.index_password else ""
        return f"http://{user}127.0.0.1:{self.port}/simple"

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        gated: bool = False,
        token: str | None = None,
    ) -> Repo:
        """Add a repository, or a new commit of it."""
        listing = json.dumps({name: self.digest(data) for name, data in files.items()})
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        repo = Repo(files=dict(files), commit=commit, gated=gated, token=token)
        self.repos[repo_id] = repo
        return repo

    def digest(self, data: bytes) -> str:
        """SHA-256, remembered: a large file is asked for often."""
        known = self._digests.get(id(data))
        if known is None or known[0] is not data:
            known = self._digests[id(data)] = (data, hashlib.sha256(data).hexdigest())
        return known[1]

    def bodies(self, part: str) -> list[Seen]:
        """The requests for files whose path contains ``part`` and that were answered with bytes."""
        with self._lock:
            return [s for s in self.seen if part in s.path and s.status in {200, 206}]

    def sent_bytes(self, part: str = "/cdn/") -> int:
        """Bytes of bodies sent so far for paths that contain ``part``."""
        with self._lock:
            return sum(s.sent_bytes for s in self.seen if part in s.path)

    def note(self, seen: Seen) -> None:
        """Remember a request."""
        with self._lock:
            self.seen.append(seen)

    def fault(self, path: str) -> Fault | None:
        """The fault that strikes this request, used up by one."""
        with self._lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for them

    def __init__(self, hub: FakeHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    server: _Server

    def setup(self) -> None:
        super().setup()
        # Small, so that what was sent is near to what a killed client had received.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHUNK)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._route(body=False)

    def do_GET(self) -> None:
        self._route(body=True)

    def _route(self, *, body: bool) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        self.seen = Seen(
            method=self.command,
            path=self.path,
            host=self.headers.get("Host", ""),
            headers={name.lower(): value for name, value in self.headers.items()},
        )
        hub.note(self.seen)
        fault = hub.fault(self.path) or Fault(path="")
        if fault.redirect:
            return self._answer(302, {"Location": fault.redirect})
        if fault.status:
            return self._answer(fault.status, fault.headers, b"no")
        if fault.html:
            return self._answer(200, {"Content-Type": "text/html"}, b"<html>Log in</html>")
        if path.startswith("/api/models/"):
            return self._facts(path.removeprefix("/api/models/"))
        if path.startswith("/cdn/"):
            return self._cdn(path.removeprefix("/cdn/"), fault, body=body)
        if path.startswith("/files/"):
            data = hub.files.get(path.removeprefix("/files/"))
            if data is None:
                return self._answer(404, {}, b"no such file")
            return self._file(data, fault, etag=f'"{self.server.hub.digest(data)[:16]}"', body=body)
        if path.startswith(("/simple/", "/wheels/")):
            return self._index(path, fault, body=body)
        return self._resolve(path, body=body)

    def _index(self, path: str, fault: Fault, *, body: bool) -> None:
        hub = self.server.hub
        if hub.index_password:
            user = base64.b64encode(f"me:{hub.index_password}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {user}":
                return self._answer(401, {"WWW-Authenticate": "Basic"}, b"no")
        kind, name = path.strip("/").split("/", 1)
        if kind == "wheels":
            data = next(files[name] for files in hub.packages.values() if name in files)
            return self._file(data, fault, etag=f'"{hub.digest(data)}"', body=body)
        if name not in hub.packages:
            return self._answer(404, {}, b"no such package")
        files = hub.packages[name]
        if hub.index_speaks_json and "json" in self.headers.get("Accept", ""):
            listed = [
                {
                    "filename": file,
                    "url": f"../../wheels/{file}",
                    "hashes": {"sha256": hub.digest(data)},
                    "size": hub.claims.get(file, len(data)),
                }
                for file, data in files.items()
            ]
            page = {"meta": {"api-version": "1.1"}, "name": name, "files": listed}
            kind = "application/vnd.pypi.simple.v1+json"
            return self._answer(200, {"Content-Type": kind}, json.dumps(page).encode())
        links = [
            f'<a href="../../wheels/{file}#sha256={hub.digest(data)}">{file}</a>'
            for file, data in files.items()
        ]
        html = f"<!DOCTYPE html><html><body>{'<br>'.join(links)}</body></html>"
        return self._answer(200, {"Content-Type": "text/html"}, html.encode())

    def _facts(self, rest: str) -> None:
        repo_id, _, revision = rest.partition("/revision/")
        repo = self._repo(repo_id)
        if repo is None:
            return None
        if revision not in {"", "main", repo.commit}:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        siblings = []
        for name, data in repo.files.items():
            size = self.server.hub.claims.get(name, len(data))
            lfs = {"lfs": {"sha256": self.server.hub.digest(data), "size": size}}
            siblings.append({"rfilename": name, "size": size, **(lfs if _is_lfs(name) else {})})
        facts = {"id": repo_id, "sha": repo.commit, "gated": repo.gated, "siblings": siblings}
        return self._answer(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())

    def _repo(self, repo_id: str) -> Repo | None:
        """The repository; answers for it when it is not to be shown."""
        repo = self.server.hub.repos.get(repo_id)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token and token != repo.token):
            status = 404 if token else 401  # as the hub does
            self._answer(status, {"X-Error-Code": "RepoNotFound"}, b"{}")
            return None
        return repo

    def _resolve(self, path: str, *, body: bool) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = self._repo(match[1]) if match else None
        if match is None or repo is None:
            return None if match else self._answer(404, {}, b"")
        if repo.gated and not self.headers.get("Authorization"):
            return self._answer(403, {"X-Error-Code": "GatedRepo"}, b"")
        data = repo.files.get(match[3])
        if data is None or match[2] not in {"main", repo.commit}:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"}, b"")
        digest = self.server.hub.digest(data)
        facts = {
            "X-Repo-Commit": repo.commit,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{digest}"',
        }
        if _is_lfs(match[3]):
            hub = self.server.hub
            name = match[3].rsplit("/", 1)[-1]
            return self._answer(
                302, {**facts, "Location": f"{hub.cdn_url}/cdn/{digest}/{name}?signature=s3cret"}
            )
        return self._file(data, Fault(path=""), etag=f'"{digest[:40]}"', body=body)

    def _cdn(self, path: str, fault: Fault, *, body: bool) -> None:
        digest = path.partition("/")[0]
        for repo in self.server.hub.repos.values():
            for data in repo.files.values():
                if self.server.hub.digest(data) == digest:
                    return self._file(data, fault, etag=f'"{digest[:32]}"', body=body)
        return self._answer(404, {}, b"")

    def _file(self, data: bytes, fault: Fault, *, etag: str, body: bool) -> None:
        start, status = 0, 200
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match and self.server.hub.supports_ranges:
            if self.headers.get("If-Range", etag) == etag:
                start, status = int(match[1]) + fault.shift, 206
            if start >= len(data):
                return self._answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        if fault.flip is not None:
            data = data[: fault.flip] + bytes([data[fault.flip] ^ 0xFF]) + data[fault.flip + 1 :]
        part = memoryview(data + bytes(fault.extra))[start:]
        self.seen.status = status
        self.send_response(status)
        self.send_header("ETag", etag)
        self.send_header("Content-Type", "application/octet-stream")
        if fault.hide_length:
            self.send_header("Connection", "close")
        else:
            length = len(part) if fault.length is None else fault.length
            self.send_header("Content-Length", str(length))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self._send(part, fault)
        if fault.hide_length:
            self.close_connection = True
        return None

    def _send(self, part: memoryview, fault: Fault) -> None:
        hub, began = self.server.hub, time.monotonic()
        end = min(
            len(part) if limit is None else limit
            for limit in (None, fault.cut_after, fault.stall_after)
        )
        sent = 0
        while sent < end:
            chunk = part[sent : min(sent + _CHUNK, end)]
            self.wfile.write(chunk)
            sent += len(chunk)
            self.seen.sent_bytes = sent
            if hub.rate_bytes_s and hub.closing.wait(
                max(began + sent / hub.rate_bytes_s - time.monotonic(), 0)
            ):
                break
        if fault.stall_after is not None:
            hub.closing.wait(20)
        if sent < len(part):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_lfs(name: str) -> bool:
    return name.endswith((".gguf", ".bin"))
