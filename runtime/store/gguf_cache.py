"""Facts remembered between runs: one small JSON file for each model, never trusted blindly."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.errors import StorageError
from runtime.settings import directories, private_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_BYTES: Final = 8 << 20
_log = logging.getLogger(__name__)


def load(path: Path, version: str, folder: Path | None = None) -> object | None:
    """What was remembered about the model in ``path``, or None when that is nothing, or stale.

    Never raises: a cache file that cannot be read, is damaged, or is of another ``version`` counts
    as absent. Lists come back as tuples.
    """
    place = _place(path, folder)
    try:
        if place.stat().st_size > _MAX_BYTES:
            return None
        head, body = place.read_bytes().split(b"\n", 1)
        stored = json.loads(head)
        if stored["version"] != version or stored["sha256"] != hashlib.sha256(body).hexdigest():
            return None
        paths = [Path(identity[0]) for identity in stored["files"]]
        if stored["files"] != [_identity(file, file.stat()) for file in paths]:
            return None
        return _frozen(json.loads(body))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
        _log.debug("the remembered facts in %s are of no use: %s", place, exc)
        return None


def save(
    path: Path,
    version: str,
    facts: object,
    files: Sequence[tuple[Path, os.stat_result]],
    folder: Path | None = None,
) -> None:
    """Remembers ``facts``, JSON values about ``path``, for as long as ``files`` stay as they are.

    Never raises: what cannot be written is read again next time.

    Args:
        path: The model.
        version: Only :func:`load` with the same one gets the facts back.
        facts: JSON values.
        files: What the facts were read from, with their status *when they were read*.
        folder: None for the runtime's own cache folder.
    """
    place = _place(path, folder)
    try:
        body = json.dumps(facts).encode()
        head = {
            "version": version,
            "sha256": hashlib.sha256(body).hexdigest(),
            "files": [_identity(file, status) for file, status in files],
        }
        private_folder(place.parent)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            try:
                file.write(json.dumps(head).encode() + b"\n" + body)
                file.flush()
                Path(file.name).replace(place)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
    except (OSError, StorageError) as exc:
        _log.debug("cannot remember facts in %s: %s", place, exc)


def _place(path: Path, folder: Path | None) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return (folder or directories().cache / "gguf-facts") / f"{name}.json"


def _identity(path: Path, status: os.stat_result) -> list[str | int]:
    """What is different once a file is another or has changed."""
    return [str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def _frozen(value: object) -> object:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value
