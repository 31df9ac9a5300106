"""What a pool of models is made of: how they are loaded, where they are, and their use."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class Loader(Protocol[R]):
    """How models are loaded. Called without any lock, by threads of the pool."""

    def prepare(self, name: str) -> int:
        """Have everything on disk; returns the bytes that the model will take."""
        ...

    def load(self, name: str) -> R:
        """Load it."""
        ...

    def unload(self, name: str, loaded: R) -> None:
        """End it; its memory is free when this returns."""
        ...

    def usable(self, name: str, loaded: R) -> bool:
        """Whether it still works; one that does not is unloaded and loaded anew. Called often."""
        ...

    def measured_bytes(self, name: str, loaded: R) -> int | None:
        """What it takes now, where that can be seen; called often."""
        ...


class State(enum.Enum):
    """Where a model is between being asked for and being gone."""

    PREPARING = "preparing"  # holds no memory yet
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


class Seat(Generic[R]):
    """A model that is not simply absent; guarded by its pool's lock.

    Attributes:
        name: Its name.
        state: Where it is.
        users: How many use it or wait for it.
        wanted_until: Instant until which somebody waits for it.
        idle_since: Instant of its last use.
        idle_timeout_s: For so long it may be idle; None for ever.
        planned_bytes: Memory it will take.
        waits_for_room: Whether it is others in use that keep it from being loaded.
        loaded: The thing itself, while it is loaded.
        error: Why it could not be loaded.
    """

    def __init__(self, name: str, *, idle_timeout_s: float | None = None) -> None:
        self.name = name
        self.idle_timeout_s = idle_timeout_s
        self.state = State.PREPARING
        self.users = 0  # those who wait for it included
        self.wanted_until = 0.0
        self.idle_since = 0.0
        self.planned_bytes = 0
        self.waits_for_room = False
        self.loaded: R | None = None
        self.error: BaseException | None = None


class Lease(Generic[R]):
    """The use of a loaded model, which stays loaded until the ``with`` block ends."""

    def __init__(self, loaded: R, give_back: Callable[[], None]) -> None:
        self.loaded = loaded
        self._give_back = give_back

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()


class LoadError(Exception):
    """A model could not be loaded.

    Attributes:
        error: Why.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error
