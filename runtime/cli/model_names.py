"""The names of models that can be typed: quick to tell, without looking into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_FOLDERS: Final = (_PACKAGE / "_models", _PACKAGE.parent / "models")  # in a wheel; in a checkout


def model_names() -> list[str]:
    """The names of the catalogue, each of which is that of its file."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.toml")})
