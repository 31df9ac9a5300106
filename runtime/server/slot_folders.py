"""The folder that an engine may write the state of a slot to: private, one for each server.

Files are in it only while a session is being saved or restored. They hold conversations, so what a
process that died left behind is removed when the next server starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from typing import TYPE_CHECKING, Final

import psutil

from runtime.errors import StorageError
from runtime.settings import directories, private_folder

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"(\d+)-[0-9a-f]+")


def make(name: str) -> Path | None:
    """The folder of the server of that name; None where none can be made."""
    try:
        return private_folder(_parent() / name)
    except StorageError as exc:
        log.warning("sessions cannot be saved: %s", exc.message)
        return None


def remove(name: str) -> None:
    """Remove a server's folder with all that is in it."""
    shutil.rmtree(_parent() / name, ignore_errors=True)


def sweep() -> None:
    """Remove the folders of processes that are gone: a name begins with its owner's process id."""
    with contextlib.suppress(OSError):
        for folder in list(_parent().iterdir()):
            owner = _NAME.fullmatch(folder.name)
            if owner and int(owner[1]) != os.getpid() and not psutil.pid_exists(int(owner[1])):
                shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Path:
    return directories().state / "slots"
