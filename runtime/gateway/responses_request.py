"""What the input, the tools and the format of a request to OpenAI's Responses API mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import Field

from runtime.contracts import ToolSpec
from runtime.gateway.content import parts as content_parts
from runtime.gateway.content import text_of, unfit
from runtime.gateway.dialect import Body, Turn, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_TEXTS: Final = frozenset({"input_text", "output_text", "text", "refusal", "summary_text"})
_FREE_FORM: Final[dict[str, object]] = {"type": "object", "properties": {}}


class Message(Body):
    """What somebody said."""

    role: str
    content: Any


class FunctionCall(Body):
    """A call that the model made."""

    call_id: str
    name: str
    arguments: str


class FunctionOutput(Body):
    """What came of a call."""

    call_id: str
    output: Any


class Reference(Body):
    """An item of an answer that is kept."""

    id: str


class _Function(Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Named(Body):
    name: str


class _Allowed(Body):
    mode: str
    tools: list[dict[str, Any]]


class _Text(Body):
    format: dict[str, Any] | None = None


class _JsonFormat(Body):
    schema_: dict[str, Any] = Field(alias="schema")
    name: str | None = None
    strict: bool | None = None


class Reasoning(Body):
    """How much to think."""

    effort: str | None = None


def message_of(message: Message, at: str) -> Turn:
    """A message of the input, which stands at ``at``, as a turn."""
    role: Any = "system" if message.role == "developer" else message.role
    if role not in {"system", "user", "assistant"}:
        raise unfit(
            f"{at}.role",
            f"it is {message.role!r}.",
            hint='It is "user", "assistant", "system" or "developer".',
        )
    return Turn(role=role, content=text_in(message.content, f"{at}.content"))


def text_in(content: object, at: str) -> str:
    """The text of a message or a result.

    Raises:
        InvalidFieldError: It holds something else, such as images.
    """
    texts = []
    for number, part in enumerate(content_parts(content, at=at)):
        here = f"{at}[{number}]"
        if str(part.get("type")) not in _TEXTS:
            raise unfit(
                f"{here}.type",
                f"parts of type {part.get('type')!r} are not supported.",
                hint="This gateway takes text: input_text and output_text.",
            )
        field = "refusal" if part["type"] == "refusal" else "text"
        texts.append(text_of(part, at=here, field=field))
    return "\n".join(texts)


def tool_of(tool: Mapping[str, object], at: str) -> ToolSpec:
    """A tool that the client runs.

    Raises:
        InvalidFieldError: It is one of the provider's own.
    """
    if tool.get("type") != "function":
        raise unfit(
            f"{at}.type",
            f"tools of type {tool.get('type')!r} are not supported.",
            hint="Switch it off in the client, or describe it as a function and run it yourself.",
        )
    function = parsed(_Function, tool, at=at)
    return ToolSpec(
        name=function.name,
        description=function.description or "",
        input_schema=function.parameters or _FREE_FORM,
        output_schema={},
    )


def chosen(
    tools: Sequence[ToolSpec], choice: object, options: dict[str, object]
) -> Sequence[ToolSpec]:
    """The tools on offer; which of them to call goes into ``options``."""
    given = cast("Mapping[str, object]", choice)
    match choice:
        case None:
            return tools
        case "auto" | "none" | "required":
            options["tool_choice"] = choice
            return tools
        case {"type": "function"}:
            name = parsed(_Named, given, at="tool_choice").name
            options["tool_choice"] = {"type": "function", "function": {"name": name}}
            return tools
        case {"type": "allowed_tools"}:
            allowed = parsed(_Allowed, given, at="tool_choice")
            options["tool_choice"] = allowed.mode
            names = [tool.get("name") for tool in allowed.tools]
            return [tool for tool in tools if tool.name in names]
    raise unfit(
        "tool_choice",
        f"it is {choice!r}.",
        hint='It is "auto", "none", "required", a function, or allowed_tools.',
    )


def format_of(text: Mapping[str, object] | None) -> dict[str, object] | None:
    """The format of the text, in the form of chat completions; None where nothing is said."""
    wanted = parsed(_Text, text or {}, at="text").format
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    given = parsed(_JsonFormat, wanted, at="text.format")
    named = {"name": given.name, "schema": given.schema_, "strict": given.strict}
    return {"type": "json_schema", "json_schema": named}
