"""What a caller wants of structured answers, beyond their schema."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from runtime.errors import ConfigError

OnTruncation = Literal["error", "close"]
EnforcementLevel = Literal["best", "strict"]

_WORDS: Final = {
    "on_truncation": get_args(OnTruncation),
    "enforcement": get_args(EnforcementLevel),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How structured answers are dealt with.

    Attributes:
        on_truncation: What becomes of one that the token budget cut off: an error, or closed with
            the shortest valid completion.
        enforcement: Whether a schema that cannot be enforced to the full while decoding is refused.
    """

    on_truncation: OnTruncation = "error"
    enforcement: EnforcementLevel = "best"

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
        return replace(self, **given) if given else self
