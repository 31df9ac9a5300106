"""One file over HTTP, resumed where it was left, hashed on the way, put in place whole.

The file grows as ``NAME.part`` beside its place, with ``NAME.part.json`` saying of which version it
is a part. After a kill, the next call goes on from the last byte written, on the same version: what
is known by its SHA-256 by that, anything else by ``If-Range`` with the server's own ETag (RFC 9110,
13.1.5). The caller holds the model's lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx2

from runtime.errors import DownloadError, IntegrityError, LLMError
from runtime.store import web
from runtime.store.disk import (
    disk_error,
    hash_file,
    megabytes,
    private_opener,
    require_room,
    sync_folder,
)
from runtime.store.records import PARTIAL_SUFFIX, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import FileIO
    from pathlib import Path

    from runtime.store.limits import Limits
    from runtime.store.meter import Meter

_MAGIC: Final = b"GGUF"
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_BROKEN: Final = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
_PASSING: Final = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file that can be fetched.

    Attributes:
        url: Its address.
        name: What to call it.
        source: Where it is, in a word, for messages.
        size_bytes: Its size when known.
        sha256: Its digest when known.
        headers: Sent to that address's host only (they may hold a token).
        ca_file: Certificates to trust instead of the system's.
    """

    url: str
    name: str
    source: str
    size_bytes: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A file in its place.

    Attributes:
        size_bytes: Its size.
        sha256: Its digest, taken on the way.
        etag: What the server called this version, or None.
    """

    size_bytes: int
    sha256: str
    etag: str | None


class _Passing(Exception):  # noqa: N818 - not an error of its own: it carries one
    """A failure that may pass by itself."""

    def __init__(self, error: LLMError, *, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


def fetch(remote: Remote, target: Path, *, meter: Meter, limits: Limits) -> Fetched:
    """Bring ``remote`` to ``target``, going on from what an earlier call left.

    Raises:
        DownloadError: The server or the network failed for good.
        LLMAuthError, LLMRateLimitError, ModelNotFoundError: The server said so.
        IntegrityError: Fetched whole (once more, where it was a resumed one), its digest is not the
            promised one. Nothing is kept.
        StorageError: The disk refuses or is full. What has arrived is kept.
    """
    with web.open_client(remote.url, limits, ca_file=remote.ca_file) as client:
        attempt = _Download(remote, target, client, meter, limits)
        resumed = attempt.resume()
        _run(attempt, limits)
        if remote.sha256 not in {None, attempt.sha256} and resumed:
            meter.note(f"{remote.name}: the part that was there is damaged; starting over.")
            attempt.start_over()
            _run(attempt, limits)
    return attempt.finish()


def _run(download: _Download, limits: Limits) -> None:
    """Try until the file is whole; tries that bring bytes do not count."""
    failures = 0
    while True:
        before = download.offset
        try:
            download.transfer()
        except _Passing as passing:
            failures = 0 if download.offset > before else failures + 1
            if failures >= limits.attempts:
                raise passing.error from passing
            wait_s = passing.wait_s
            if wait_s is None:
                longest = min(limits.backoff_base_s * 2**failures, limits.backoff_max_s)
                wait_s = longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, not a secret
            elif wait_s > limits.backoff_max_s:
                raise passing.error from passing
            download.meter.note(f"{passing.error.message} Trying again in {wait_s:.1f} s.")
            threading.Event().wait(wait_s)
        else:
            return


class _Download:
    """One file on its way: the partial, its digest so far, and the requests that make it grow."""

    def __init__(
        self, remote: Remote, target: Path, client: httpx2.Client, meter: Meter, limits: Limits
    ) -> None:
        self.meter = meter
        self.offset = 0
        self._remote = remote
        self._target = target
        self._client = client
        self._limits = limits
        self._part = target.with_name(target.name + PARTIAL_SUFFIX)
        self._state = self._part.with_name(self._part.name + ".json")
        self._digest = hashlib.sha256()
        self._etag: str | None = None
        self._total = remote.size_bytes
        self._received = False

    @property
    def sha256(self) -> str:
        """Digest of the bytes so far."""
        return self._digest.hexdigest()

    def resume(self) -> bool:
        """Take over what an earlier process left, if it is of this very version."""
        try:
            state = json.loads(self._state.read_bytes())
            same = state["sha256"] == self._remote.sha256 and (
                self._remote.sha256 is not None or state["url"] == self._remote.url
            )
            self._etag = state["etag"]
            size = self._part.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            same, size = False, 0
        known = self._remote.sha256 is not None or self._etag is not None
        too_long = self._total is not None and size > self._total
        if not same or not known or too_long or size == 0:
            self.start_over()
            return False
        self.meter.begin("verifying", self._remote.name, total=size)
        self._digest = hash_file(self._part, advance=self.meter.advance)
        self.offset = size
        return True

    def start_over(self) -> None:
        """Forget what was there."""
        try:
            self._part.unlink(missing_ok=True)
            self._state.unlink(missing_ok=True)
        except OSError as exc:
            raise disk_error(exc, self._part) from exc
        self._digest, self.offset, self._etag = hashlib.sha256(), 0, None

    def transfer(self) -> None:
        """Make one request and take all it brings.

        Raises:
            _Passing: It ended early; what came is kept.
        """
        if self._total is not None and self.offset == self._total and self.offset:
            return
        headers = dict(self._remote.headers)
        if self.offset:
            headers["Range"] = f"bytes={self.offset}-"
            if self._remote.sha256 is None and self._etag:
                headers["If-Range"] = self._etag
        try:
            with web.stream(
                self._client,
                self._remote.url,
                self._limits,
                source=self._remote.source,
                headers=headers,
            ) as response:
                self._take(response)
        except DownloadError as error:
            # A host never reached is given up at once; one that was there a moment ago is not.
            gone = isinstance(error, web.UnreachableError) and self._received
            if gone or isinstance(error.__cause__, _BROKEN):
                raise _Passing(error) from error
            raise

    def _take(self, response: httpx2.Response) -> None:
        self._check(response)
        self._remember(response)
        if self.offset == 0:
            require_room(self._target.parent, self._total or 0)
        elif self._total:
            require_room(self._target.parent, self._total - self.offset)
        self.meter.begin("downloading", self._remote.name, total=self._total, done=self.offset)
        try:
            with open(self._part, "ab", buffering=0, opener=private_opener) as file:
                for chunk in response.iter_raw():
                    self._check_start(chunk)
                    _write_all(file, chunk)
                    self._digest.update(chunk)
                    self.offset += len(chunk)
                    self._received = True
                    self.meter.advance(len(chunk))
                    self._check_length(at_end=False)
        except OSError as exc:
            raise disk_error(exc, self._part) from exc
        self._check_length(at_end=True)

    def _check(self, response: httpx2.Response) -> None:
        """Whether the answer is what was asked for; moves back to 0 where the server does."""
        remote, status = self._remote, response.status_code
        if status == 416 and self.offset:
            self.start_over()
            raise _Passing(self._failed("does not have the part that was asked for"), wait_s=0)
        if status not in {200, 206}:
            error = web.status_error(response, source=remote.source, what=remote.name)
            if status in _PASSING:
                raise _Passing(error, wait_s=web.retry_after_s(response))
            raise error
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self._failed("sends the file in an encoding that was not asked for")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise self._failed(
                "sends a web page instead of the file",
                hint="It may want a login, or the address is that of a page about the file.",
            )
        self._check_range(response)

    def _check_range(self, response: httpx2.Response) -> None:
        total: int | None = None
        if response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != self.offset:
                raise self._failed("sends another part of the file than was asked for")
            total = int(match[2])
        else:
            if self.offset:
                self.meter.note(f"{self._remote.name} changed or cannot be resumed: starting over.")
                self.start_over()
            if (length := response.headers.get("Content-Length", "")).isdecimal():
                total = int(length)
            elif "chunked" not in response.headers.get("Transfer-Encoding", "") and (
                self._remote.sha256 is None
            ):
                raise self._failed("does not say how long the file is, nor is its digest known")
        promised = self._remote.size_bytes
        if total is not None and promised is not None and total != promised:
            raise self._failed(f"says it has {total:,} bytes where {promised:,} were promised")
        self._total = promised or total

    def _remember(self, response: httpx2.Response) -> None:
        etag = response.headers.get("ETag")
        strong = etag if etag and not etag.startswith("W/") else None
        if self.offset and self._etag == strong:
            return
        self._etag = strong
        state = {"url": self._remote.url, "sha256": self._remote.sha256, "etag": strong}
        write_atomically(self._state, json.dumps(state).encode())

    def _check_start(self, chunk: bytes) -> None:
        expected = _MAGIC[self.offset : self.offset + len(chunk)]  # empty past the magic number
        if self._remote.name.lower().endswith(".gguf") and not chunk.startswith(expected):
            self.start_over()
            raise self._failed("sends something that is not a GGUF model")

    def _check_length(self, *, at_end: bool) -> None:
        if self._total is None or self.offset == self._total:
            return
        if self.offset > self._total:
            self.start_over()
            raise self._failed(f"sends more than the {self._total:,} bytes it promised")
        if at_end:
            raise _Passing(self._failed(f"stopped after {megabytes(self.offset)}"))

    def _failed(self, what: str, *, hint: str | None = None) -> DownloadError:
        source = self._remote.source
        return DownloadError(
            f"{web.title(source)} {what} ({self._remote.name}).",
            source=source,
            hint=hint or "Try again later, or take another source.",
        )

    def finish(self) -> Fetched:
        """Put the whole file in its place.

        Raises:
            IntegrityError: It is not what was promised; it is deleted.
            StorageError: The disk refuses.
        """
        expected, actual = self._remote.sha256, self.sha256
        if expected not in {None, actual}:
            self.start_over()
            raise IntegrityError(
                f"{web.title(self._remote.source)} sent a {self._remote.name} with another SHA-256 "
                f"than promised: {actual}, not {expected}. It was deleted.",
                path=self._target,
                expected=expected or "",
                actual=actual,
                hint="Pull again; if it stays so, the file was replaced at its source.",
            )
        try:
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
            self._part.replace(self._target)
            self._state.unlink(missing_ok=True)
            sync_folder(self._target.parent)
        except OSError as exc:
            raise disk_error(exc, self._target) from exc
        return Fetched(size_bytes=self.offset, sha256=actual, etag=self._etag)


def _write_all(file: FileIO, data: bytes) -> None:
    """Unbuffered, so that a kill at any moment loses nothing that was counted."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
