"""From a wish to the body that one endpoint takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

from runtime.errors import LLMCapabilityError
from runtime.inference import grammars, prompted_tools, strictness
from runtime.inference import schema as schemas
from runtime.inference import thinking as thoughts
from runtime.inference import tools as toolboxes
from runtime.inference.histories import regular, with_tools, without_tools
from runtime.inference.messages import instructed

if TYPE_CHECKING:
    from runtime.engines.base import Endpoint
    from runtime.engines.thinking import Thinking
    from runtime.inference.histories import Message
    from runtime.inference.schema import Enforcement
    from runtime.inference.wishes import Wish

FOREIGN_MAX_TOKENS: Final = 2048
"""Bound on an answer of a server that is not llama.cpp, when the caller gives none: such servers
refuse a bound larger than what the prompt leaves of the context."""

LLAMA_CPP_KINDS: Final = frozenset({"xllamacpp", "llama-server"})


def body(
    wish: Wish, endpoint: Endpoint, *, seed: int, stream: bool
) -> tuple[dict[str, object], Enforcement | None]:
    """The body of the request for one endpoint, and how the schema is enforced there.

    Raises:
        LLMInvalidRequestError: The schema is to be enforced strictly, and cannot be.
        LLMCapabilityError: A grammar was given that this engine does not take, or probabilities
            are asked for that it does not tell.
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
    if endpoint.kind == "llama-cpp-python" and wish.options.get("logprobs"):
        raise LLMCapabilityError(
            "llama-cpp-python tells no logprobs: it would have to keep the probabilities of every "
            "token of every prompt.",
            hint="Use the xllamacpp or llama-server engine.",
        )
    if endpoint.capabilities.logprobs is False and wish.options.get("logprobs"):
        # The engine would tell a logarithm of 0.0 for each drafted token, HTTP 200.
        raise LLMCapabilityError(
            "This engine drafts tokens, and those that were drafted come without probabilities.",
            hint="Start the server with speculation='off' and without a draft model.",
        )
    told = prompts_tools(wish, endpoint)
    messages = _shaped(wish, told=told)
    said = {"messages": messages} if wish.prompt is None else {"prompt": wish.prompt}
    made: dict[str, object] = {
        "model": wish.model or endpoint.model,
        **said,
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
            if made.get("stop"):
                made["verbose"] = True  # the last event then says which of them came
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


def thinks(wish: Wish, endpoint: Endpoint) -> Thinking | None:
    """How the model will think before it answers; None when it will not, or that is not known."""
    switches = wish.options.get("chat_template_kwargs")
    forbidden = isinstance(switches, Mapping) and switches.get("enable_thinking") is False
    own_words = wish.continued or wish.prompt is not None
    return None if forbidden or own_words else endpoint.capabilities.thinking


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
