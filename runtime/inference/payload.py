"""From a request in the contract's terms to the body an engine takes.

Two steps. :func:`from_chat` and :func:`from_request` check what can be checked without an engine
and yield a :class:`Wish`; :func:`body` makes a wish concrete for one endpoint. Inputs are read by
attribute and never checked for their class, so that look-alikes from other packages work.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from runtime.errors import LLMCapabilityError, LLMInvalidRequestError, SchemaViolationError
from runtime.inference import grammars, prompted_tools, request_limits, strictness
from runtime.inference import response_format as response_formats
from runtime.inference import schema as schemas
from runtime.inference import thinking as thoughts
from runtime.inference import tools as toolboxes
from runtime.inference.histories import regular, with_tools, without_tools
from runtime.inference.messages import instructed, openai_call, openai_messages
from runtime.inference.policy import Policy

if TYPE_CHECKING:
    from runtime.contracts import ToolCall
    from runtime.engines.base import Endpoint
    from runtime.engines.thinking import Thinking
    from runtime.errors import LLMBadResponseError, LLMError
    from runtime.inference.histories import Message
    from runtime.inference.schema import Enforcement, Schema
    from runtime.inference.tools import ToolBox

MAX_SEED: Final = 2**32 - 2
"""The next larger value means "choose one" to llama.cpp, and what is larger still wraps around."""

FOREIGN_MAX_TOKENS: Final = 2048
"""Bound on an answer of a server that is not llama.cpp, when the caller gives none: such servers
refuse a bound larger than what the prompt leaves of the context."""

_MOST_BLAMED: Final = 4000
"""Characters of an invalid answer and its fault that are told to the model."""

LLAMA_CPP_KINDS: Final = frozenset({"xllamacpp", "llama-server"})

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
_REFUSED: Final = re.compile(
    r"template|expression at line|alternat|\brole|tool[ _]call|(?:user|system|assistant) message",
    re.IGNORECASE,
)
"""What servers say when a chat template does not take a conversation, in words of its own."""
_BOUNDS: Final = ("max_tokens", "max_completion_tokens", "n_predict")


_PLAIN: Final = Policy()


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

    @property
    def continued(self) -> str:
        """The assistant message that is to be continued; empty when there is none."""
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


def body(
    wish: Wish, endpoint: Endpoint, *, seed: int, stream: bool
) -> tuple[dict[str, object], Enforcement | None]:
    """The body of the request for one endpoint, and how the schema is enforced there.

    Raises:
        LLMInvalidRequestError: The schema is to be enforced strictly, and cannot be.
        LLMCapabilityError: A grammar was given that this engine does not take.
    """
    if grammar := wish.options.get("grammar"):
        known = endpoint.capabilities
        lark = grammars.is_lark(grammar)
        # Never tried on llama-cpp-python: its process dies of a grammar that it cannot parse.
        deadly = lark and endpoint.kind == "llama-cpp-python"
        if deadly or (known.llguidance if lark else known.grammar) is False:
            raise LLMCapabilityError(
                f"The engine takes no {'llguidance' if lark else 'GBNF'} grammars.",
                hint="Use the other kind of grammar, or a response schema.",
            )
    told = prompts_tools(wish, endpoint)
    messages = _shaped(wish, told=told)
    made: dict[str, object] = {
        "model": wish.model or endpoint.model,
        "messages": messages,
        **wish.recommended,
        **wish.options,
        "seed": seed,
        "max_tokens": token_bound(wish, endpoint),
    }
    if wish.temperature is not None:
        made["temperature"] = wish.temperature
    if stream:
        made |= {"stream": True, "stream_options": {"include_usage": True}}
        if endpoint.kind in LLAMA_CPP_KINDS:
            made["return_progress"] = True  # how far the prompt is, and whether a slot has it
    if wish.tools:
        if told:
            several = made.pop("parallel_tool_calls", False) is True
            known = endpoint.capabilities
            made |= prompted_tools.body(
                wish.tools, messages, known, several=several, bounds=wish.policy.bounds
            )
        else:
            made |= toolboxes.fields(wish.tools, llama_cpp=endpoint.kind in LLAMA_CPP_KINDS)
    thinking = thinks(wish, endpoint)
    if not wish.schema:
        # The last resort for a call that did not come is no place for thoughts, where they may be
        # left out: they would use up the budget again.
        if (
            wish.tools
            and thinking
            and "grammar" in made
            and (thinking.opened or not wish.tells_tools)
        ):
            made["grammar"] = thoughts.admitted(str(made["grammar"]), thinking)
        return made, None
    enforcement = schemas.enforcement(wish.schema, endpoint.capabilities, wish.policy.bounds)
    if wish.policy.enforcement == "strict":
        strictness.demand(wish.schema, enforcement)
    if enforcement.instruction:
        made["messages"] = instructed(messages, enforcement.instruction)
    made |= enforcement.fields
    if thinking and "grammar" in made:
        made["grammar"] = thoughts.admitted(str(made["grammar"]), thinking)
    return made, enforcement


def _shaped(wish: Wish, *, told: bool) -> list[Message]:
    if wish.repair:
        return regular(wish.messages, tools=not told and wish.repair == 1)
    return without_tools(wish.messages) if told else with_tools(wish.messages)


def repaired(wish: Wish, problem: LLMError) -> Wish | None:
    """The wish with its history in better order, if that may be what a template refused."""
    if wish.repair >= 2 or not _REFUSED.search(problem.message):
        return None
    further = wish.repair + 1
    return replace(wish, repair=further, tells_tools=wish.tells_tools or further == 2)


def _schemas(value: object) -> Mapping[str, object] | None:
    if value is None or isinstance(value, Mapping):
        return value
    raise LLMInvalidRequestError(
        f"provider_options holds schemas of type {type(value).__name__}.",
        hint="It is a mapping from the address of each schema to the schema.",
    )


def corrected(
    wish: Wish, problem: LLMBadResponseError, calls: Sequence[ToolCall] = ()
) -> Wish | None:
    """The wish with what was wrong with its last answer, or None where that says nothing.

    A model is told of wrong arguments as of any failure of a tool: by the result of the call.
    """
    said = problem.partial_text
    if not isinstance(problem, SchemaViolationError):
        return None
    if problem.repeated_key is not None:
        wish = _without_inventions(wish)
    if not said or wish.continued or len(said) + len(problem.reason) > _MOST_BLAMED:
        return wish if problem.repeated_key is not None else None
    place = f" at {problem.pointer}" if problem.pointer else ""
    told = f"That is not valid{place}: {problem.reason}. Answer again."
    turn: dict[str, object] = {"role": "assistant", "content": said}
    heard: list[dict[str, object]] = [{"role": "user", "content": told}]
    if calls:
        turn = {"role": "assistant", "content": "", "tool_calls": [openai_call(c) for c in calls]}
        heard = [_failure(call, told if call.arguments_json == said else "") for call in calls]
    return replace(wish, messages=(*wish.messages, turn, *heard))


def can_go_on(wish: Wish, endpoint: Endpoint) -> bool:
    """Whether an engine can go on with a text it is given the beginning of.

    Only llama.cpp's takes an assistant message for that; and what a grammar steers, it would begin
    anew.
    """
    steered = wish.schema or wish.tools or "grammar" in wish.options
    return endpoint.kind in LLAMA_CPP_KINDS and not steered


def going_on(wish: Wish, text: str, tokens: int) -> Wish:
    """The wish for the rest of an answer.

    Args:
        wish: What was asked for.
        text: The answer as far as it came.
        tokens: Tokens of that; they are taken off the bound.
    """
    before = wish.messages[:-1] if wish.continued else wish.messages
    begun: dict[str, object] = {"role": "assistant", "content": wish.continued + text}
    left = None if wish.max_tokens is None else max(1, wish.max_tokens - tokens)
    return replace(wish, messages=(*before, begun), max_tokens=left)


def _without_inventions(wish: Wish) -> Wish:
    """The wish with grammars under which no key can occur twice: a model may not invent any."""
    bounds = replace(wish.policy.bounds, named_only=True, members=1)
    return replace(wish, policy=replace(wish.policy, bounds=bounds))


def _failure(call: ToolCall, reason: str) -> dict[str, object]:
    content = f"Error: {reason or 'not carried out, because another call was wrong.'}"
    return {"role": "tool", "tool_call_id": call.call_id, "name": call.name, "content": content}


def told(wish: Wish, endpoint: Endpoint, calls: Sequence[ToolCall]) -> Wish | None:
    """The wish with its tools told in the prompt, if that promises the call that did not come.

    Where a template knows tools, llama.cpp lets a model that must call one write as much before it
    as it likes: the answer is then prose to the end of its budget.
    """
    known = endpoint.capabilities
    missing = wish.tools is not None and wish.tools.call_wanted and not calls
    if missing and not prompts_tools(wish, endpoint) and (known.llguidance or known.grammar):
        return telling(wish)
    return None


def thinks(wish: Wish, endpoint: Endpoint) -> Thinking | None:
    """How the model will think before it answers; None when it will not, or that is not known."""
    switches = wish.options.get("chat_template_kwargs")
    forbidden = isinstance(switches, Mapping) and switches.get("enable_thinking") is False
    return None if forbidden or wish.continued else endpoint.capabilities.thinking


def telling(wish: Wish) -> Wish:
    """The wish with its tools told in the prompt, whatever the template knows."""
    return replace(wish, tells_tools=True)


def prompts_tools(wish: Wish, endpoint: Endpoint) -> bool:
    """Whether tools are told in the prompt: the model's template knows none, or did not help."""
    return wish.tells_tools or endpoint.capabilities.tools is False


def tool_path(wish: Wish, endpoint: Endpoint) -> Literal["native", "prompt"] | None:
    """How the tools are offered; None when there are none."""
    if wish.tools is None:
        return None
    return "prompt" if prompts_tools(wish, endpoint) else "native"


def token_bound(wish: Wish, endpoint: Endpoint) -> int:
    """Most tokens the answer may have.

    What is sent to llama.cpp when the caller gives none is the whole context of a request: the
    engine ends the answer where the context is full.
    """
    if wish.max_tokens is not None:
        return wish.max_tokens
    if endpoint.context_tokens is None:
        return FOREIGN_MAX_TOKENS
    if endpoint.kind == "openai":
        return max(1, min(FOREIGN_MAX_TOKENS, endpoint.context_tokens // 2))
    return endpoint.context_tokens


def recommended_only(wish: Wish) -> dict[str, float]:
    """The recommended sampling that holds, because the caller says nothing about it."""
    return {
        name: value
        for name, value in wish.recommended.items()
        if name not in wish.options and not (name == "temperature" and wish.temperature is not None)
    }


def encode(value: object) -> bytes:
    """``value`` as JSON.

    Raises:
        LLMInvalidRequestError: It holds what JSON cannot: other objects, NaN, a lone surrogate.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
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
