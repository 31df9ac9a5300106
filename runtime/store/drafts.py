"""Which draft model goes with a model: the one that was named, or the catalogue's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.errors import ModelNotFoundError
from runtime.store.catalog import read_catalog

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.store.store import ModelStore

AUTO: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """A draft model, or why there is none.

    Attributes:
        name: Its reference.
        path: Its file; None when none is used.
        why: Why it is used or not.
    """

    name: str | None = None
    path: Path | None = None
    why: str = "none is wanted"


def draft_of(reference: str) -> str | None:
    """The draft model that the catalogue names for a model, if it names one."""
    entry = read_catalog().get(reference)
    return entry.draft if entry else None


def catalogue_draft(store: ModelStore, reference: str) -> Drafting:
    """The catalogue's draft model for ``draft_model="auto"``, if it is on this machine."""
    name = draft_of(reference)
    if name is None:
        return Drafting(why=f"off: the catalogue names no draft model for {reference}")
    try:
        path = store.resolve(name).path
    except ModelNotFoundError:
        return Drafting(
            name=name,
            why=f"off: {name} is not on this machine (`llama-runtime models pull {reference} "
            "--with-draft` fetches it)",
        )
    return Drafting(name=name, path=path, why="on this machine")
