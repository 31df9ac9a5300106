"""What was typed into chats before, in a file that only its owner may read."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prompt_toolkit.history import History

from runtime.settings import directories, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_ENTRIES: Final = 1000
MOST_CHARACTERS: Final = 20_000
"""A longer entry was pasted: it is not kept for later chats."""


class ChatHistory(History):
    """The last entries of all chats, one JSON string a line.

    It only ever helps: a file that cannot be read or written is as good as none.

    Args:
        path: The file.
        most: How many entries are kept.
    """

    def __init__(self, path: Path, *, most: int = MOST_ENTRIES) -> None:
        super().__init__()
        self._path = path
        self._most = most
        self._shorten()

    def load_history_strings(self) -> Iterable[str]:
        """The entries, the last one first."""
        return reversed(self._entries())

    def store_string(self, string: str) -> None:
        """Keep an entry."""
        if len(string) > MOST_CHARACTERS:
            return
        with contextlib.suppress(OSError):
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(string) + "\n")

    def _entries(self) -> list[str]:
        try:
            lines = self._path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
        return [entry for line in lines[-self._most :] if (entry := _entry(line)) is not None]

    def _shorten(self) -> None:
        """Keep the file from growing for ever: it is cut when a chat begins."""
        entries = self._entries()
        with contextlib.suppress(OSError):
            self._path.chmod(0o600)
            if len(self._path.read_bytes().splitlines()) > self._most:
                handle, partial = tempfile.mkstemp(dir=self._path.parent, prefix=".chat-history.")
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.writelines(json.dumps(entry) + "\n" for entry in entries)
                Path(partial).replace(self._path)


def history_path() -> Path:
    """Where the entries are kept; makes the folder.

    Raises:
        StorageError: It cannot be made.
    """
    return private_folder(directories().state) / "chat-history.jsonl"


def _entry(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, str) else None
