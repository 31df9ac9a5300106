"""What to say when a package that we need cannot be imported. Needs none of them itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

EXIT_BROKEN = 5


def package_of(error: ImportError) -> str | None:
    """The top-level package whose import failed; None when it is not known, or our own."""
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        name = name or _raised_in(error.__traceback__) or ""
    return name if name not in {"", "runtime"} else None


def _raised_in(traceback: TracebackType | None) -> str | None:
    """The top-level package of the code that raised."""
    path = None
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    for entry in sys.path:
        if path is not None and entry and path.is_relative_to(entry):
            return path.relative_to(entry).parts[0].partition(".")[0]
    return None


def tell(error: ImportError) -> int | None:
    """Say which package is missing or broken and how to mend it; returns the exit code.

    None, and nothing said, when it is no package of others.
    """
    name = package_of(error)
    if name is None:
        return None
    what = "is not installed" if isinstance(error, ModuleNotFoundError) else "is broken"
    package = name.replace("_", "-")
    sys.stderr.write(
        f"Error: the package {package}, which llama-runtime needs, {what}: {error}.\n"
        f"→ {sys.executable} -m pip install --force-reinstall {package}\n"
    )
    return EXIT_BROKEN
