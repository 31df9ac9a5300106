"""HTTP to the world outside: one way to open a client, and what each failure means to a person.

Loopback addresses never go through a proxy; all others do when the environment names one.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from runtime.errors import (
    DownloadError,
    LLMAuthError,
    LLMError,
    ModelNotFoundError,
    TooManyRequestsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runtime.store.limits import Limits

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_MAX_REDIRECTS: Final = 10
_MAX_ADDRESSES: Final = 8


class UnreachableError(DownloadError):
    """Nothing answers at the address."""


def is_loopback(url: str) -> bool:
    """Whether ``url`` stays on this machine."""
    return (urlsplit(url).hostname or "") in _LOOPBACK


def shown(url: str) -> str:
    """``url`` as it may be printed: without password, query (it may be signed) and fragment."""
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=netloc, query="", fragment="").geturl()


def title(source: str) -> str:
    """A source at the beginning of a sentence."""
    return {"hub": "The model hub", "pypi": "The package index"}.get(source, source)


def open_client(url: str, limits: Limits, *, ca_file: str | None = None) -> httpx2.Client:
    """A client for ``url``; close it.

    Args:
        url: Where the first request goes.
        limits: Patience; the read timeout is the stall timeout.
        ca_file: Certificates to trust instead of the system's.
    """
    return httpx2.Client(
        trust_env=not is_loopback(url),
        verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
        headers={"User-Agent": "llama-runtime", "Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(
            limits.stall_timeout_s, connect=limits.reach_timeout_s, pool=limits.reach_timeout_s
        ),
    )


@contextlib.contextmanager
def stream(
    client: httpx2.Client,
    url: str,
    limits: Limits,
    *,
    source: str,
    headers: Mapping[str, str] | None = None,
    silence_s: float | None = None,
) -> Iterator[httpx2.Response]:
    """The answer to a GET, its body still to be read; redirects are followed.

    Each hop must be reachable in time, and may not lead from https to http. Headers that hold a
    token are left behind when the host changes.

    Args:
        client: Sends the request.
        url: What to get.
        limits: Patience.
        source: Where that is, in a word, for messages.
        headers: Added to the request.
        silence_s: Longest silence, instead of the stall timeout.

    Raises:
        DownloadError: The transport failed, also while the body is read.
    """
    with translated(source, url):
        timeout = client.timeout if silence_s is None else httpx2.Timeout(silence_s)
        request = client.build_request("GET", url, headers=headers, timeout=timeout)
        for _ in range(_MAX_REDIRECTS + 1):
            require_reachable(str(request.url), limits.reach_timeout_s, source=source)
            response = client.send(request, stream=True)
            with contextlib.closing(response):
                if response.next_request is None:
                    yield response
                    return
                _require_safe(request.url, response.next_request.url, source)
                request = response.next_request
    raise DownloadError(
        f"{title(source)} sends us in a circle: over {_MAX_REDIRECTS} redirects from {shown(url)}.",
        source=source,
    )


def _require_safe(here: httpx2.URL, there: httpx2.URL, source: str) -> None:
    """A redirect may not leave HTTP, nor give up its encryption."""
    if there.scheme not in {"http", "https"} or here.scheme == "https" != there.scheme:
        raise DownloadError(
            f"{title(source)} leads from {here.scheme} to {there.scheme} ({shown(str(here))}).",
            source=source,
            hint="The file could be altered on that way, so it is not taken.",
        )


def get(
    url: str,
    limits: Limits,
    *,
    source: str,
    what: str,
    headers: Mapping[str, str] | None = None,
    ca_file: str | None = None,
) -> httpx2.Response:
    """The document at ``url``, read whole. ``what`` names what is asked for, in messages.

    Raises:
        LLMError: As :func:`status_error` and :func:`stream` say.
    """
    with (
        open_client(url, limits, ca_file=ca_file) as client,
        stream(
            client,
            url,
            limits,
            source=source,
            headers=headers,
            silence_s=limits.answer_timeout_s,
        ) as response,
    ):
        response.read()
    if response.status_code != 200:
        raise status_error(response, source=source, what=what)
    return response


def status_error(response: httpx2.Response, *, source: str, what: str) -> LLMError:
    """What an HTTP status other than 200 and 206 means. ``what`` names what was asked for."""
    status = response.status_code
    code = response.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return LLMAuthError(
            f"{what} is gated: the hub gives it only to accounts that accepted its licence.",
            hint="Accept the licence on the model's page, make a token with read permission, and "
            "put it into the environment variable HF_TOKEN (or run `hf auth login`).",
        )
    if status in {401, 403}:
        return LLMAuthError(
            f"{title(source)} does not show {what} to us (HTTP {status}): it is private, the token "
            "is not valid, or there is no such thing.",
            hint="Check the spelling; for a private model put a token that may read it into the "
            "environment variable HF_TOKEN.",
        )
    if status in {404, 410}:
        return ModelNotFoundError(
            f"{title(source)} has no {what} (HTTP {status}).",
            reference=what,
            hint="Check the spelling, capitals included, and the revision.",
        )
    if status == 429:
        wait = retry_after_s(response)
        return TooManyRequestsError(
            f"{title(source)} limits how often it is asked (HTTP 429)"
            + (f" and wants a pause of {wait:.0f} s." if wait is not None else "."),
            retry_after_s=wait,
            hint="Wait and pull again: what has arrived is kept. A token in HF_TOKEN raises the "
            "limit.",
        )
    return DownloadError(
        f"{title(source)} answered HTTP {status} for {what}.",
        source=source,
        status=status,
        hint="That is the server's trouble: try again later." if status >= 500 else None,
    )


def retry_after_s(response: httpx2.Response) -> float | None:
    """Seconds of the header ``Retry-After``, or None when there are none (dates are not read)."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


@contextlib.contextmanager
def translated(source: str, url: str) -> Iterator[None]:
    """Turns failures of the transport into :class:`DownloadError`."""
    try:
        yield
    except httpx2.TimeoutException as exc:
        raise DownloadError(
            f"{title(source)} did not answer in time ({_asked(exc, url)}).", source=source
        ) from exc
    except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise DownloadError(
            f"The connection to {source} failed: {exc or type(exc).__name__} ({_asked(exc, url)}).",
            source=source,
        ) from exc


def _asked(exc: Exception, url: str) -> str:
    """The address that failed: a redirect may have led away from ``url``."""
    try:
        asked = exc.request if isinstance(exc, httpx2.HTTPError) else None
    except RuntimeError:  # httpx's way to say that there is none
        asked = None
    return shown(str(asked.url) if asked else url)


def require_reachable(url: str, timeout_s: float, *, source: str) -> None:
    """Make sure within ``timeout_s`` that something answers where ``url`` leads first.

    An HTTP client tries a name's addresses one after the other with a full timeout each, and
    nothing bounds the resolver: so ask all at once, in threads that are left behind if they hang.

    Raises:
        UnreachableError: Nothing does.
    """
    host, port = _first_hop(url)
    answers: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
    threading.Thread(
        target=_knock_everywhere, args=(host, port, timeout_s, answers), daemon=True
    ).start()
    try:
        problem = answers.get(timeout=timeout_s)
    except queue.Empty:
        problem = TimeoutError(f"no answer within {timeout_s:g} s")
    if problem is not None:
        raise UnreachableError(
            f"{title(source)} cannot be reached at {host}: {problem.strerror or problem}.",
            source=source,
            hint="Check the network, or the proxy settings in the environment.",
        )


def _knock_everywhere(
    host: str, port: int, timeout_s: float, answers: queue.SimpleQueue[OSError | None]
) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        answers.put(exc)
        return
    addresses = [info[4][:2] for info in found[:_MAX_ADDRESSES]]
    knocks: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
    for address in addresses:
        threading.Thread(target=_knock, args=(address, timeout_s, knocks), daemon=True).start()
    problem: OSError | None = None
    for _ in addresses:
        problem = knocks.get()
        if problem is None:
            break
    answers.put(problem)


def _knock(
    address: tuple[object, ...], timeout_s: float, knocks: queue.SimpleQueue[OSError | None]
) -> None:
    host, port = address
    try:
        socket.create_connection((str(host), int(str(port))), timeout=timeout_s).close()
    except OSError as exc:
        knocks.put(exc)
    else:
        knocks.put(None)


def _first_hop(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not is_loopback(url) and not proxy_bypass(host):
        proxies = getproxies()
        if proxy := proxies.get(parts.scheme) or proxies.get("all"):
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            host = parts.hostname or ""
    return host, parts.port or (443 if parts.scheme == "https" else 80)
