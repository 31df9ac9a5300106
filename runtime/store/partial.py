"""The part of a file that has arrived, kept beside the file's place over any kind of end.

``NAME.part`` holds the bytes, ``NAME.part.json`` says of which version they are: what is known by
its SHA-256 by that, anything else by its address and the server's strong ETag.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runtime.store.disk import disk_error, hash_file, private_opener, sync_folder
from runtime.store.records import PARTIAL_SUFFIX, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path


class Partial:
    """A file on its way to ``target``; the caller holds the model's lock.

    Attributes:
        target: The file's place.
        offset: Bytes that have arrived.
        etag: The strong ETag of the version they are of, or None.
    """

    def __init__(self, target: Path, *, url: str, sha256: str | None) -> None:
        self.target = target
        self.offset = 0
        self.etag: str | None = None
        self._url = url
        self._expected = sha256
        self._path = target.with_name(target.name + PARTIAL_SUFFIX)
        self._state = self._path.with_name(self._path.name + ".json")
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Digest of the bytes that have arrived."""
        return self._digest.hexdigest()

    def size_of_same_version(self) -> int:
        """Bytes that an earlier process left of this very version; 0 when there are none."""
        try:
            state = json.loads(self._state.read_bytes())
            same = state["sha256"] == self._expected and (
                self._expected is not None or (state["url"] == self._url and state["etag"])
            )
            self.etag = state["etag"]
            return self._path.stat().st_size if same else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def take_over(self, advance: Callable[[int], None]) -> None:
        """Go on from what is there.

        Args:
            advance: Called with the number of bytes of each step of the hashing.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            self._digest = hash_file(self._path, advance=advance)
            self.offset = self._path.stat().st_size
        except OSError as exc:
            raise disk_error(exc, self._path, resumes=True) from exc

    def discard(self) -> None:
        """Forget what was there.

        Raises:
            StorageError: It cannot be deleted.
        """
        try:
            self._path.unlink(missing_ok=True)
            self._state.unlink(missing_ok=True)
        except OSError as exc:
            raise disk_error(exc, self._path, resumes=True) from exc
        self._digest, self.offset, self.etag = hashlib.sha256(), 0, None

    def remember(self, etag: str | None) -> None:
        """Note of which version the bytes to come are; weak ETags name none.

        Raises:
            StorageError: The disk refuses.
        """
        strong = etag if etag and not etag.startswith("W/") else None
        if self.offset and self.etag == strong:
            return
        self.etag = strong
        state = {"url": self._url, "sha256": self._expected, "etag": strong}
        write_atomically(self._state, json.dumps(state).encode())

    @contextmanager
    def appending(self) -> Iterator[Callable[[bytes], None]]:
        """A function that takes the next bytes; a kill at any moment loses none it has taken.

        Raises:
            StorageError: The disk refuses.
        """
        try:
            file = open(self._path, "ab", buffering=0, opener=private_opener)  # noqa: SIM115
        except OSError as exc:
            raise disk_error(exc, self._path, resumes=True) from exc

        def take(data: bytes) -> None:
            try:
                _write_all(file, data)
            except OSError as exc:
                raise disk_error(exc, self._path, resumes=True) from exc
            self._digest.update(data)
            self.offset += len(data)

        with file:
            yield take

    def put_in_place(self) -> None:
        """The file is whole: give it its name.

        Raises:
            StorageError: The disk refuses.
        """
        try:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            self._path.replace(self.target)
            self._state.unlink(missing_ok=True)
            sync_folder(self.target.parent)
        except OSError as exc:
            raise disk_error(exc, self.target, resumes=True) from exc


def _write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
