"""The model hub: which files a reference means, at which commit, with which digests.

One request of our own instead of ``HfApi.model_info``, whose client stays open for the rest of the
process, sends loopback through proxies, and may ask the hub about the program that called. Tokens
are ``huggingface_hub``'s to find.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from huggingface_hub import get_token
from pydantic import BaseModel, ValidationError

from runtime.errors import DownloadError, ModelNotFoundError
from runtime.store import quants, web
from runtime.store.download import Remote
from runtime.store.refs import HubRef

if TYPE_CHECKING:
    from runtime.store.limits import Limits
    from runtime.store.quants import Candidate

_ENDPOINT: Final = "https://huggingface.co"


class _Lfs(BaseModel):
    sha256: str
    size: int


class _Sibling(BaseModel):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Info(BaseModel):
    """What ``/api/models/{repo}?blobs=true`` answers, as far as it is needed here."""

    id: str
    sha: str
    siblings: list[_Sibling] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model found on the hub.

    Attributes:
        repo_id: The repository, spelled as the hub does.
        commit: The commit that its files are of.
        file: Path of its first file in the repository.
        files: Its files in order.
        mmproj: The repository's vision projector, or None.
        notes: What was chosen.
    """

    repo_id: str
    commit: str
    file: str
    files: tuple[Remote, ...]
    mmproj: Remote | None
    notes: tuple[str, ...]


def endpoint() -> str:
    """Address of the hub (``HF_ENDPOINT``)."""
    return (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")


def locate(ref: HubRef, limits: Limits) -> HubModel:
    """The files that ``ref`` means, as the hub lists them now.

    Raises:
        ModelNotFoundError: No such repository, revision, file or quantization, or several models
            answer to it; ``nearest`` lists what there is.
        LLMAuthError, LLMRateLimitError, DownloadError: The hub or the network says so.
    """
    headers = _headers()
    info = _info(ref, headers, limits)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    candidate, notes = _choose(ref, tuple(siblings))

    def remote(file: str) -> Remote:
        sibling = siblings[file]
        path = f"{info.id}/resolve/{info.sha}/{file}"
        return Remote(
            url=f"{endpoint()}/{quote(path)}",
            name=PurePosixPath(file).name,
            source="hub",
            size_bytes=sibling.lfs.size if sibling.lfs else sibling.size,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            headers=headers,
        )

    projector = quants.projector(siblings, candidate.quant)
    return HubModel(
        repo_id=info.id,
        commit=info.sha,
        file=candidate.files[0],
        files=tuple(remote(file) for file in candidate.files),
        mmproj=remote(projector) if projector and projector not in candidate.files else None,
        notes=notes,
    )


def _headers() -> dict[str, str]:
    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _info(ref: HubRef, headers: dict[str, str], limits: Limits) -> _Info:
    url = f"{endpoint()}/api/models/{ref.repo_id}"
    if ref.revision:
        url += f"/revision/{quote(ref.revision, safe='')}"
    what = f"{ref.repo_id} at {ref.revision}" if ref.revision else ref.repo_id
    response = web.get(f"{url}?blobs=true", limits, source="hub", what=what, headers=headers)
    try:
        return _Info.model_validate_json(response.content)
    except ValidationError as exc:
        raise DownloadError(
            f"The hub's answer about {what} is not what a hub answers.",
            source="hub",
            hint=f"Look at {web.shown(url)} in a browser: a proxy or a login page may stand in "
            "between, or HF_ENDPOINT may be wrong.",
        ) from exc


def _choose(ref: HubRef, files: tuple[str, ...]) -> tuple[Candidate, tuple[str, ...]]:
    found = quants.candidates(files)
    if ref.file and ref.file in files and not any(ref.file in c.files for c in found):
        return quants.Candidate(stem=quants.stem_of(ref.file), files=(ref.file,), quant=None), ()
    if not found:
        raise ModelNotFoundError(
            f"{ref.repo_id} has no GGUF file.",
            reference=str(ref),
            hint="Look for a repository whose name ends in -GGUF.",
        )
    chosen = quants.select(found, quant=ref.quant, file=ref.file)
    labels = ", ".join(dict.fromkeys(candidate.label for candidate in found))
    if not chosen:
        raise ModelNotFoundError(
            f"{ref.repo_id} has no {ref.file or ref.quant}.",
            reference=str(ref),
            nearest=tuple(_reference(ref, candidate) for candidate in found),
            hint=f"It has: {', '.join(c.files[0] for c in found) if ref.file else labels}.",
        )
    if len(chosen) > 1:
        references = tuple(_reference(ref, candidate, by_file=True) for candidate in chosen)
        raise ModelNotFoundError(
            f"{len(chosen)} models of {ref.repo_id} answer to that.",
            reference=str(ref),
            nearest=references,
            hint=f"Name one of: {', '.join(references)}.",
        )
    if chosen[0].missing:
        raise DownloadError(
            f"{ref.repo_id} lacks {chosen[0].missing} parts of {chosen[0].stem}.", source="hub"
        )
    if ref.quant is None and ref.file is None and len(found) > 1:
        return chosen[0], (f"Took {chosen[0].label} of {labels}.",)
    return chosen[0], ()


def _reference(ref: HubRef, candidate: Candidate, *, by_file: bool = False) -> str:
    if candidate.quant and not by_file:
        return str(HubRef(repo_id=ref.repo_id, quant=candidate.quant, revision=ref.revision))
    return str(HubRef(repo_id=ref.repo_id, file=candidate.files[0], revision=ref.revision))
