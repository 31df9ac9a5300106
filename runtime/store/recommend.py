"""Which models of the catalogue this machine can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.store.catalog import CatalogEntry

# Before a file is here its shape is not known, so this is a rule of thumb: the weights, a tenth of
# them for a KV cache of a few thousand tokens and the compute buffers, and the engine itself.
_CACHE_SHARE: Final = 0.10
_ENGINE_BYTES: Final = 300_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One model of the catalogue, seen from this machine.

    Attributes:
        entry: The model.
        needed_bytes: Memory it takes, by a rule of thumb; ``ModelStore.plan`` tells more exactly
            once the file is here.
        available_bytes: Memory that a new process can have now.
        fits: Whether the one is within the other.
        local: Whether its file is on this machine.
    """

    entry: CatalogEntry
    needed_bytes: int
    available_bytes: int
    fits: bool
    local: bool


def recommendations(
    entries: Iterable[CatalogEntry], *, available_bytes: int, local: frozenset[str]
) -> tuple[Recommendation, ...]:
    """What fits, the most capable (by weights) first; then what does not, the smallest first.

    Args:
        entries: Models to choose from.
        available_bytes: Memory that they may take.
        local: Names of those whose file is here.
    """
    seen = [
        Recommendation(
            entry=entry,
            needed_bytes=needed,
            available_bytes=available_bytes,
            fits=needed <= available_bytes,
            local=entry.name in local,
        )
        for entry in entries
        for needed in (int(entry.size_bytes * (1 + _CACHE_SHARE)) + _ENGINE_BYTES,)
    ]
    fitting = sorted((r for r in seen if r.fits), key=lambda r: -r.entry.parameters)
    others = sorted((r for r in seen if not r.fits), key=lambda r: r.needed_bytes)
    return (*fitting, *others)
