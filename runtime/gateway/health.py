"""How the gateway is, from how its models stand: pure, and so answered at once whatever they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from runtime.server.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.gateway.models import Standing

Verdict = Literal["ready", "loading", "degraded", "failed"]

_TROUBLED: Final = frozenset(
    {State.BACKOFF, State.RESOLVING, State.STARTING, State.LOADING, State.SUSPECT}
)
"""What a loaded model's engine is only in when something went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the gateway is.

    Attributes:
        status: ``"ready"``: every model that is loaded answers. ``"loading"``: the default one
            comes up. ``"degraded"``: an engine is being restarted, stands still, or one of several
            has failed; requests are served, if later. ``"failed"``: none would be.
        models: The state of each model.
        message: What is wrong, or None.
    """

    status: Verdict
    models: dict[str, str]
    message: str | None = None

    @property
    def serving(self) -> bool:
        """Whether a request sent now is answered, be it after a restart."""
        return self.status in {"ready", "degraded"}

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {"status": self.status, "message": self.message, "models": self.models}


def health_of(standings: Sequence[Standing], *, default: str) -> Health:
    """How a gateway with these models is."""
    models = {each.name: each.state for each in standings}
    failed = [each for each in standings if each.state == State.FAILED]
    troubled = [each for each in standings if each.loaded and each.state in _TROUBLED]
    said = [f"{each.name}: {each.error.message}" for each in failed if each.error]
    said += [f"{each.name} is {each.state}" for each in troubled]
    message = "; ".join(said) or None
    working = [each for each in standings if each.loaded and each.state != State.FAILED]
    if failed and not working:
        return Health(status="failed", models=models, message=message)
    if failed or troubled:
        return Health(status="degraded", models=models, message=message)
    first = next(each for each in standings if each.name == default)
    if not first.loaded and first.state in {"waiting", "loading"} and not working:
        return Health(status="loading", models=models, message=f"{default} is being loaded.")
    return Health(status="ready", models=models)
