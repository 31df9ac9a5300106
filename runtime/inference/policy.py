"""What a caller wants beyond the contract's parameters: of structured answers, of long prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from runtime.errors import ConfigError
from runtime.inference.bounds import Bounds

OnTruncation = Literal["error", "close", "keep"]
EnforcementLevel = Literal["best", "strict"]
Fitting = Literal["error", "drop_oldest"]

_WORDS: Final = {
    "on_truncation": get_args(OnTruncation),
    "enforcement": get_args(EnforcementLevel),
    "fit": get_args(Fitting),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How structured answers and long prompts are dealt with.

    Attributes:
        on_truncation: What becomes of one that the token budget cut off: an error, closed with the
            shortest valid completion, or kept as it is, told by its finish reason alone.
        enforcement: Whether a schema that cannot be enforced to the full while decoding is refused.
        bounds: What bounds decoding where the schema sets none.
        fit: What becomes of a conversation that is too long: an error, or its oldest messages are
            dropped.
    """

    on_truncation: OnTruncation = "error"
    enforcement: EnforcementLevel = "best"
    bounds: Bounds = field(default_factory=Bounds)
    fit: Fitting = "error"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            value = getattr(self, name)
            if value not in words:
                listed = " or ".join(f'"{word}"' for word in words)
                raise ConfigError(f"{name} is {value!r}.", hint=f"The valid values: {listed}.")

    def taking(self, options: dict[str, Any]) -> Policy:
        """This policy with what ``options`` say of it, which is taken out of them.

        Raises:
            ConfigError: A value is unknown.
        """
        given = {name: options.pop(name) for name in _WORDS if name in options}
        if (bounds := options.pop("bounds", None)) is not None:
            given["bounds"] = _bounds(self.bounds, bounds)
        return replace(self, **given) if given else self


def _bounds(bounds: Bounds, given: object) -> Bounds:
    if isinstance(given, Bounds):
        return given
    known = Bounds.__slots__
    if not isinstance(given, Mapping) or not given.keys() <= set(known):
        raise ConfigError(f"bounds is {given!r}.", hint=f"It may hold: {', '.join(known)}.")
    return replace(bounds, **given)
