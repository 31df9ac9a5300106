"""Names that can be typed, of models and of servers: quick to tell, for the shell waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.folders import directories

if TYPE_CHECKING:
    from collections.abc import Iterable

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_FOLDERS: Final = (_PACKAGE / "_models", _PACKAGE.parent / "models")  # in a wheel; in a checkout


def model_names() -> list[str]:
    """The models of the catalogue, each named as its file is, and those that were fetched."""
    catalogue = {path.stem for folder in _FOLDERS for path in folder.glob("*.toml")}
    return sorted(catalogue | _named(directories().models.glob("*/model.json")))


def server_names() -> list[str]:
    """The servers that wrote themselves down; whether they still run is not looked at."""
    return sorted(_named(directories().servers.glob("*.json")))


def _named(records: Iterable[Path]) -> set[str]:
    """What these records call what they are about."""
    names = set()
    for path in records:
        try:
            name = json.loads(path.read_bytes())["name"]
        except (OSError, ValueError, TypeError, KeyError):
            continue
        names.add(str(name))
    return names
