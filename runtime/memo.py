"""A small on-disk memory of facts that cost time to find out again: one JSON file each.

It only ever saves work. A file that cannot be read, parsed or written is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import StorageError
from runtime.settings import directories, private_folder

if TYPE_CHECKING:
    from collections.abc import Mapping


def file_identity(path: Path) -> str:
    """Changes when the file at ``path`` is another one or was written to.

    Raises:
        OSError: There is no such file.
    """
    facts = path.stat()
    return f"{path.absolute()}|{facts.st_dev}|{facts.st_ino}|{facts.st_size}|{facts.st_mtime_ns}"


class Memo:
    """Facts of one kind, by key, below the cache folder."""

    def __init__(self, kind: str, *, cache: Path | None = None) -> None:
        self._folder = (cache or directories().cache) / "facts" / kind

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def get(self, key: str) -> dict[str, object] | None:
        """What was remembered under ``key``, or None."""
        try:
            facts = json.loads(self._path(key).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(facts, dict) or facts.get("key") != key:
            return None
        value = facts.get("value")
        return value if isinstance(value, dict) else None

    def put(self, key: str, value: Mapping[str, object]) -> None:
        """Remember ``value``; a disk that refuses only means that nothing is remembered."""
        path = self._path(key)
        try:
            private_folder(self._folder)
            handle, partial = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
        except (OSError, StorageError):
            return
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"key": key, "value": value}, file)
            Path(partial).replace(path)
        except OSError:
            Path(partial).unlink(missing_ok=True)
