"""A request in the contract's terms, checked as far as can be without an engine.

Inputs are read by attribute and never checked for their class, so that look-alikes from other
packages work.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMInvalidRequestError
from runtime.inference import grammars, large_json, request_limits
from runtime.inference import response_format as response_formats
from runtime.inference import tools as toolboxes
from runtime.inference.messages import openai_messages
from runtime.inference.policy import Policy

if TYPE_CHECKING:
    from runtime.inference.schema import Schema
    from runtime.inference.tools import ToolBox

MAX_SEED: Final = 2**32 - 2
"""The next larger value means "choose one" to llama.cpp, and what is larger still wraps around."""

_OWN: Final = {
    "messages": "give messages to the method",
    "model": "give model to the method",
    "stream": "use stream() or stream_chat()",
    "stream_options": "usage is always asked for",
    "tools": "give LLMRequest.tools to generate() or stream()",
    "functions": "give LLMRequest.tools to generate() or stream()",
    "function_call": "use tool_choice",
    "json_schema": "use response_schema",
    "n": "send the request several times",
}

_BOUNDS: Final = ("max_tokens", "max_completion_tokens", "n_predict")

_PLAIN: Final = Policy()

_WRITER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A request that is right as far as can be told without an engine.

    Attributes:
        messages: The conversation in OpenAI's form.
        model: The model to name, or None for the endpoint's own.
        temperature: None for the recommended one, else the engine's default.
        max_tokens: None for what the context leaves.
        seed: None to choose one.
        options: Further fields of the request.
        recommended: Sampling that holds where the caller says nothing.
        tools: The tools, or None.
        schema: The answer's schema, or None.
        policy: What is wanted of a structured answer besides.
        repair: How far the history is brought into order, since a template refused it: 0 as it
            is, 1 into the order that the strictest ask for, 2 into plain turns of two.
        tells_tools: Whether tools are told in the prompt although the template may know them.
        prompt: The text to go on with as it is, instead of a conversation; ``messages`` then holds
            it as the one thing that is said.
    """

    messages: tuple[dict[str, object], ...]
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    recommended: Mapping[str, float] = field(default_factory=dict)
    tools: ToolBox | None = None
    schema: Schema | None = None
    policy: Policy = _PLAIN
    repair: int = 0
    tells_tools: bool = False
    prompt: str | None = None

    @property
    def continued(self) -> str:
        """The assistant message that is to be continued; empty when there is none."""
        if self.prompt is not None:
            return ""
        last = self.messages[-1]
        content = last["content"]
        return content if last["role"] == "assistant" and isinstance(content, str) else ""


def from_chat(
    messages: object,
    *,
    model: str | None,
    params: object,
    tools: Any = (),
    policy: Policy = _PLAIN,
) -> Wish:
    """The wish of a ``chat`` or ``stream_chat`` call; ``params`` may be None.

    Raises:
        LLMInvalidRequestError: Something in it cannot be right.
    """
    return _wish(
        messages,
        model=model,
        temperature=getattr(params, "temperature", None),
        max_tokens=getattr(params, "max_tokens", None),
        response_schema=getattr(params, "response_schema", None),
        response_format=None,
        tools=tools,
        options=getattr(params, "provider_options", None),
        policy=policy,
    )


def from_request(request: object, *, policy: Policy = _PLAIN) -> Wish:
    """The wish of a ``generate`` or ``stream`` call.

    Raises:
        LLMInvalidRequestError: Something in it cannot be right.
    """
    if not hasattr(request, "messages"):
        raise LLMInvalidRequestError(
            f"A request has messages; {type(request).__name__} has none.",
            hint="Pass an LLMRequest.",
        )
    return _wish(
        request.messages,
        model=getattr(request, "model", None),
        temperature=getattr(request, "temperature", None),
        max_tokens=getattr(request, "max_tokens", None),
        response_schema=getattr(request, "response_schema", None),
        response_format=getattr(request, "response_format", None),
        tools=getattr(request, "tools", ()) or (),
        options=getattr(request, "provider_options", None),
        policy=policy,
    )


def from_text(request: object, *, policy: Policy = _PLAIN) -> Wish:
    """The wish to go on with the text of a request's one message, without a chat template.

    Raises:
        LLMInvalidRequestError: Something in it cannot be right.
    """
    wish = from_request(request, policy=policy)
    if len(wish.messages) != 1 or wish.tools or wish.schema:
        raise LLMInvalidRequestError(
            "A text to go on with is one message, without tools or a response schema.",
            hint="Ask for a chat completion.",
        )
    return replace(wish, prompt=str(wish.messages[0]["content"]))


def from_prompt(
    given: object, *, tools: Any = (), params: object = None, policy: Policy = _PLAIN
) -> Wish:
    """The wish whose prompt is to be counted: of a request, or of messages and what goes with them.

    Raises:
        LLMInvalidRequestError: Something in it cannot be right.
    """
    if hasattr(given, "messages"):
        if tools or params is not None:
            raise LLMInvalidRequestError(
                "A request has its own tools and parameters.", hint="Give them in the request."
            )
        return replace(from_request(given, policy=policy), model=None)
    return from_chat(given, model=None, params=params, tools=tools, policy=policy)


def takes_long(given: object) -> bool:
    """Whether to read a request, or the parameters of a chat, off an event loop.

    A schema, be it a tool's, is checked as a whole: 0.3 s for one of a megabyte.
    """
    options = getattr(given, "provider_options", None)
    more = options if isinstance(options, Mapping) else {}
    return any(
        bool(getattr(given, name, None) or more.get(name))
        for name in ("response_schema", "response_format", "tools", "grammar")
    )


def _wish(
    messages: object,
    *,
    model: object,
    temperature: object,
    max_tokens: object,
    response_schema: object,
    response_format: object,
    tools: Any,
    options: object,
    policy: Policy,
) -> Wish:
    if not isinstance(options or {}, Mapping):
        raise LLMInvalidRequestError(
            f"provider_options is {type(options).__name__}, not a mapping."
        )
    rest: dict[str, Any] = dict(options or {})  # type: ignore[call-overload]
    request_limits.check_nesting(rest, "provider_options")
    for name in rest.keys() & _OWN.keys():
        if not (name == "n" and rest[name] == 1):
            raise LLMInvalidRequestError(
                f"provider_options cannot hold {name!r}.", hint=f"Instead, {_OWN[name]}."
            )
    bounds = {name: rest.pop(name) for name in _BOUNDS if name in rest}
    max_tokens = _one("max_tokens", max_tokens, *bounds.values())
    temperature = _one("temperature", temperature, rest.pop("temperature", None))
    response_format = _one("response_format", response_format, rest.pop("response_format", None))
    box = toolboxes.toolbox(tools, rest.pop("tool_choice", None))
    others = _schemas(rest.pop("schemas", None))
    schema, level = response_formats.wanted(response_schema, response_format, others)
    if level is not None:
        policy = replace(policy, enforcement=level)
    policy = policy.taking(rest)  # what is said for this request has the last word
    if box and schema:
        raise LLMInvalidRequestError(
            "tools and a response schema exclude one another.",
            hint="Let the model call tools first, then ask for the structured answer.",
        )
    if "grammar" in rest and (box or schema):
        raise LLMInvalidRequestError("A grammar excludes tools and a response schema.")
    if "grammar" in rest:
        grammars.check_grammar(rest["grammar"])
    wish = Wish(
        messages=openai_messages(messages),
        model=_model(model),
        temperature=_temperature(temperature),
        max_tokens=_max_tokens(max_tokens),
        seed=_seed(rest.pop("seed", None)),
        options=rest,
        tools=box,
        schema=schema,
        policy=policy,
    )
    request_limits.check_nesting(wish.messages, "messages")
    # What is not JSON is refused here and now.
    request_limits.check_size(encode({"messages": wish.messages, **wish.options}))
    return wish


def encode(value: object) -> bytes:
    """``value`` as JSON.

    Raises:
        LLMInvalidRequestError: It holds what JSON cannot: other objects, NaN, a lone surrogate.
    """
    try:
        return "".join(large_json.pieces(value, _WRITER)).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise LLMInvalidRequestError(
            f"The request cannot be written as JSON: {exc}.", hint="Use plain JSON values."
        ) from exc


def new_seed() -> int:
    """A seed by chance; below 2**31, since some servers take no larger one."""
    return secrets.randbelow(2**31 - 1)


def later_seed(seed: int, attempt: int) -> int:
    """The seed of the n-th new attempt: the same every time, so that those can be replayed too."""
    return (seed + attempt * 0x9E3779B1) % (2**31 - 1) if attempt else seed


def _one(name: str, *values: object) -> object:
    given = [value for value in values if value is not None]
    if any(value != given[0] for value in given[1:]):
        raise LLMInvalidRequestError(
            f"{name} is given twice: {given[0]!r} and {given[1]!r}.", hint="Give it once."
        )
    return given[0] if given else None


def _schemas(value: object) -> Mapping[str, object] | None:
    if value is None or isinstance(value, Mapping):
        return value
    raise LLMInvalidRequestError(
        f"provider_options holds schemas of type {type(value).__name__}.",
        hint="It is a mapping from the address of each schema to the schema.",
    )


def _model(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise LLMInvalidRequestError(
        f"model is {value!r}.", hint="Leave it out, or name one; client.default_model() is one."
    )


def _temperature(value: object) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise LLMInvalidRequestError(
            f"temperature is {value!r}.", hint="It is a number, 0 or more."
        )
    return value  # type: ignore[return-value]


def _max_tokens(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LLMInvalidRequestError(
            f"max_tokens is {value!r}.",
            hint="It is 1 or more; leave it out to use what the context leaves.",
        )
    return value


def _seed(value: object) -> int | None:
    if value is None or value == -1:  # llama.cpp's way to say "choose one"
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SEED:
        raise LLMInvalidRequestError(f"seed is {value!r}.", hint=f"It is 0 to {MAX_SEED}.")
    return value
