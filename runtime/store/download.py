"""One file over HTTP, resumed where it was left, hashed on the way, put in place whole.

After a kill, the next call goes on from the last byte written, on the same version: what is known
by its SHA-256 by that, anything else by ``If-Range`` with the server's own ETag (RFC 9110, 13.1.5).
The caller holds the model's lock.
"""

from __future__ import annotations

import random
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx2

from runtime.errors import DownloadError, IntegrityError, LLMError
from runtime.store import web
from runtime.store.disk import megabytes, require_room
from runtime.store.partial import Partial

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.store.limits import Limits
    from runtime.store.meter import Meter

_MAGIC: Final = b"GGUF"
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d+)")
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
    """

    size_bytes: int
    sha256: str


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
        if resumed and remote.sha256 not in {None, attempt.partial.sha256}:
            meter.note(f"{remote.name}: the part that was there is damaged; starting over.")
            attempt.partial.discard()
            _run(attempt, limits)
    return attempt.finish()


def _run(download: _Download, limits: Limits) -> None:
    """Try until the file is whole; tries that bring bytes do not count."""
    failures = 0
    while True:
        before = download.partial.offset
        try:
            download.transfer()
        except _Passing as passing:
            failures = 0 if download.partial.offset > before else failures + 1
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
    """One file on its way: the requests that make its partial grow."""

    def __init__(
        self, remote: Remote, target: Path, client: httpx2.Client, meter: Meter, limits: Limits
    ) -> None:
        self.meter = meter
        self.partial = Partial(target, url=remote.url, sha256=remote.sha256)
        self._remote = remote
        self._client = client
        self._limits = limits
        self._total = remote.size_bytes
        self._received = False

    def resume(self) -> bool:
        """Take over what an earlier process left, if it is of this very version."""
        size = self.partial.size_of_same_version()
        if size == 0 or (self._total is not None and size > self._total):
            self.partial.discard()
            return False
        self.meter.begin("verifying", self._remote.name, total=size)
        self.partial.take_over(self.meter.advance)
        return True

    def transfer(self) -> None:
        """Make one request and take all it brings.

        Raises:
            _Passing: It ended early; what came is kept.
        """
        offset = self.partial.offset
        if offset and offset == self._total:
            return
        headers = dict(self._remote.headers)
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._remote.sha256 is None and self.partial.etag:
                headers["If-Range"] = self.partial.etag
        try:
            with web.stream(
                self._client,
                self._remote.url,
                self._limits,
                source=self._remote.source,
                headers=headers,
            ) as response:
                if not self._is_whole(response):
                    self._check(response)
                    self._take(response)
        except DownloadError as error:
            # A host never reached is given up at once; one that was there a moment ago is not.
            gone = isinstance(error, web.UnreachableError) and self._received
            if gone or isinstance(error.__cause__, _BROKEN):
                raise _Passing(error) from error
            raise

    def _take(self, response: httpx2.Response) -> None:
        partial = self.partial
        partial.remember(response.headers.get("ETag"))
        require_room(partial.target.parent, max((self._total or 0) - partial.offset, 0))
        self.meter.begin("downloading", self._remote.name, total=self._total, done=partial.offset)
        with partial.appending() as take:
            for chunk in response.iter_raw():
                self._check_start(chunk)
                take(chunk)
                self._received = True
                self.meter.advance(len(chunk))
                self._check_length(at_end=False)
        self._check_length(at_end=True)

    def _is_whole(self, response: httpx2.Response) -> bool:
        """Whether the server says that nothing comes after what is there."""
        offset = self.partial.offset
        if response.status_code != 416 or not offset:
            return False
        match = _UNSATISFIED.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            self.partial.discard()
            raise _Passing(self._failed("does not have the part that was asked for"), wait_s=0)
        return True

    def _check(self, response: httpx2.Response) -> None:
        """Whether the answer is what was asked for; moves back to 0 where the server does."""
        remote, status = self._remote, response.status_code
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
        total = self._part_total(response) if status == 206 else self._whole_total(response)
        promised = remote.size_bytes
        if total is not None and promised is not None and total != promised:
            raise self._failed(f"says it has {total:,} bytes where {promised:,} were promised")
        self._total = promised or total

    def _part_total(self, response: httpx2.Response) -> int:
        """Size of the file that this is a part of."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != self.partial.offset:
            self.partial.discard()
            raise _Passing(self._failed("sends another part of the file than was asked for"))
        return int(match[2])

    def _whole_total(self, response: httpx2.Response) -> int | None:
        """Size of the file that is sent from its beginning, or None where its end is marked."""
        if self.partial.offset:
            self.meter.note(f"{self._remote.name} changed or cannot be resumed: starting over.")
            self.partial.discard()
        if (length := response.headers.get("Content-Length", "")).isdecimal():
            return int(length)
        if "chunked" in response.headers.get("Transfer-Encoding", "") or self._remote.sha256:
            return None
        raise self._failed("does not say how long the file is, nor is its digest known")

    def _check_start(self, chunk: bytes) -> None:
        offset = self.partial.offset
        expected = _MAGIC[offset : offset + len(chunk)]  # empty past the magic number
        if self._remote.name.lower().endswith(".gguf") and not chunk.startswith(expected):
            self.partial.discard()
            raise self._failed("sends something that is not a GGUF model")

    def _check_length(self, *, at_end: bool) -> None:
        offset = self.partial.offset
        if self._total is None or offset == self._total:
            return
        if offset > self._total:
            self.partial.discard()
            raise self._failed(f"sends more than the {self._total:,} bytes it promised")
        if at_end:
            raise _Passing(self._failed(f"stopped after {megabytes(offset)}"))

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
        partial, expected = self.partial, self._remote.sha256
        actual = partial.sha256
        if expected not in {None, actual}:
            partial.discard()
            raise IntegrityError(
                f"{web.title(self._remote.source)} sent a {self._remote.name} with another SHA-256 "
                f"than promised: {actual}, not {expected}. It was deleted.",
                path=partial.target,
                expected=expected or "",
                actual=actual,
                hint="Pull again; if it stays so, the file was replaced at its source.",
            )
        partial.put_in_place()
        return Fetched(size_bytes=partial.offset, sha256=actual)
