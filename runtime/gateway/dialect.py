"""What a dialect is: one API's way to ask for an answer and to be told it, without any I/O.

A dialect is a module that has the functions of :class:`Dialect`. It turns the body of a request
into a :class:`Call`, which the gateway performs by the inference core, and writes out what comes of
it: the whole response, the pieces of a stream, or an error.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.contracts import LLMMessage
from runtime.errors import LLMInvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.contracts import LLMDelta, LLMRequest, LLMResponse, ToolCall, ToolSpec
    from runtime.errors import LLMError

B = TypeVar("B", bound=BaseModel)
Wanted = TypeVar("Wanted")

COMMENT: Final = b": still at it\n\n"
"""A server-sent event that clients skip."""

FOREVER: Final = math.inf
"""The ``keep_alive_s`` of a model that is not unloaded for want of use."""

_DURATION: Final = re.compile(r"(?P<count>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h)?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(LLMMessage):
    """A message with the calls that the assistant made in it."""

    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request as the gateway performs it.

    Attributes:
        model: The model that it names, or None for the gateway's default.
        request: What is asked. Names no model: that is for the gateway to find.
        stream: Whether the answer is wanted piece by piece.
        keep_alive_s: Seconds without use after which the model may be unloaded; ``FOREVER`` for
            never, None for what the gateway does by default.
        echo: What the answer must repeat of the request, in the dialect's own terms.
        raw: Whether the one message's text is gone on with as it is, without a chat template.
    """

    model: str | None
    request: LLMRequest
    stream: bool = False
    keep_alive_s: float | None = None
    echo: Mapping[str, object] = field(default_factory=dict)
    raw: bool = False


class Encoder(Protocol):
    """Writes one streamed answer. Every method returns server-sent events, perhaps none."""

    @property
    def alive(self) -> bytes:
        """A sign of life between two pieces."""
        ...

    def begin(self, model: str) -> bytes:
        """What comes before the first piece; the model answers by that name."""
        ...

    def piece(self, delta: LLMDelta) -> bytes:
        """A piece of the answer."""
        ...

    def end(self, response: LLMResponse) -> bytes:
        """The end of an answer that is complete."""
        ...

    def failed(self, exc: LLMError) -> bytes:
        """The end of one that is not."""
        ...


class Dialect(Protocol):
    """An API that the gateway speaks; a module with these functions is one."""

    def request(self, body: Mapping[str, object]) -> Call:
        """What the body of a request asks for.

        Raises:
            LLMInvalidRequestError: It cannot be right; :class:`InvalidFieldError` says where.
            LLMCapabilityError: It asks for what this gateway does not do.
        """
        ...

    def answer(self, response: LLMResponse, call: Call) -> dict[str, object]:
        """The body of a whole answer."""
        ...

    def encoder(self, call: Call) -> Encoder:
        """Who writes a streamed answer."""
        ...

    def error(self, exc: LLMError) -> tuple[int, dict[str, object]]:
        """The HTTP status and the body of an error."""
        ...


class CountingDialect(Dialect, Protocol):
    """An API that also tells how long a prompt is."""

    def count(self, body: Mapping[str, object]) -> Call:
        """What is to be counted.

        Raises:
            LLMInvalidRequestError: As of :meth:`request`.
        """
        ...

    def counted(self, tokens: int) -> dict[str, object]:
        """The body of the answer to that."""
        ...


class InvalidFieldError(LLMInvalidRequestError):
    """A field of a request's body cannot be right.

    Attributes:
        param: The field, such as ``messages[0].content``.
    """

    def __init__(self, message: str, *, param: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class Body(BaseModel):
    """A part of a request's body. Fields that are not declared are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    def others(self) -> dict[str, object]:
        """The fields that are not declared, without those that are null."""
        extra = self.__pydantic_extra__ or {}
        return {name: value for name, value in extra.items() if value is not None}


def parsed(kind: type[B], body: Mapping[str, object], *, at: str = "") -> B:
    """The body of a request, or the part of it at ``at``, checked.

    Raises:
        InvalidFieldError: A field is missing or has the wrong type; names the first one.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        steps = (f"[{n}]" if isinstance(n, int) else f".{n}" for n in first["loc"])
        param = (at + "".join(steps)).lstrip(".")
        raise InvalidFieldError(f"{param}: {first['msg']}.", param=param) from exc


def tools_or_format(
    tools: Sequence[ToolSpec], form: Wanted | None, choice: object
) -> tuple[Sequence[ToolSpec], Wanted | None]:
    """Tools and the format of the text, of which the core takes one alone, where one says nothing.

    A format holds for text: there is none where a call is due. Tools that may not be called are as
    good as none. What both may come to is left as it is, for the core to refuse.
    """
    if choice == "none" and form is not None:
        return (), form
    due = bool(tools) and choice not in (None, "auto", "none")
    return tools, None if due else form


def keep_alive(value: object) -> float | None:
    """Seconds for which an unused model stays, as Ollama writes them: ``300``, ``"5m"``, 0, -1.

    None says nothing; what is negative is ``FOREVER``.

    Raises:
        InvalidFieldError: It is no duration.
    """
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return FOREVER if value < 0 else float(value)
    if isinstance(value, str):
        if value.startswith("-"):
            return FOREVER
        if match := _DURATION.fullmatch(value):
            return float(match["count"]) * _SECONDS[match["unit"]]
    raise InvalidFieldError(
        f"keep_alive is {value!r}.",
        param="keep_alive",
        hint='It is a number of seconds or a text like "5m"; 0 unloads at once, -1 never.',
    )
