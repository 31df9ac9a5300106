"""Python types as shapes of answers: a schema on the way out, an instance on the way back."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typing_extensions
from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError

from runtime.contracts import LLMChatParams
from runtime.errors import LLMInvalidRequestError, SchemaViolationError
from runtime.inference.schema import pointer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import TypeForm


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A type that answers are to be instances of.

    Attributes:
        schema: Its JSON Schema.
        adapter: Makes instances.
    """

    schema: dict[str, object]
    adapter: TypeAdapter[Any]

    def params(
        self,
        temperature: float | None,
        max_tokens: int | None,
        provider_options: Mapping[str, object] | None,
    ) -> LLMChatParams:
        """The parameters that ask for an instance."""
        return LLMChatParams(
            temperature=temperature,
            max_tokens=max_tokens,
            response_schema=self.schema,
            provider_options=dict(provider_options or {}),
        )

    def instance(self, text: str) -> Any:
        """The instance that ``text`` describes.

        Raises:
            SchemaViolationError: It describes none.
        """
        try:
            return self.adapter.validate_json(text)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            path = pointer(part for part in first["loc"])
            raise SchemaViolationError(
                f"The answer is no instance at {path or 'its root'}: {first['msg']}.",
                pointer=path,
                reason=first["msg"],
                partial_text=text,
            ) from exc


def shape_of(output_type: TypeForm[Any]) -> Shape:
    """The shape of a type.

    Raises:
        LLMInvalidRequestError: Pydantic makes no schema of it.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(_readable(output_type))
        return Shape(schema=adapter.json_schema(), adapter=adapter)
    except RecursionError as exc:
        raise LLMInvalidRequestError(
            f"{output_type!r} refers to itself in a way that cannot be followed.",
            hint="Take TypedDict from typing_extensions, or use a pydantic model.",
        ) from exc
    except (PydanticUserError, PydanticUndefinedAnnotation) as exc:
        raise LLMInvalidRequestError(
            f"{output_type!r} has no JSON Schema: {exc.message}",
            hint="Use a pydantic model, a dataclass, or another type pydantic understands.",
        ) from exc


def _readable(kind: Any) -> Any:
    """The type with every ``typing.TypedDict`` in it as ``typing_extensions`` has it.

    Before Python 3.12 pydantic refuses the former, because they do not tell which of their members
    are inherited and required. Their own hints do.
    """
    if typing.is_typeddict(kind) and type(kind).__module__ == "typing":
        hints = typing_extensions.get_type_hints(kind, include_extras=True)
        members = {
            name: _readable(hint) if name in kind.__required_keys__ else _optional(hint)
            for name, hint in hints.items()
        }
        return typing_extensions.TypedDict(kind.__name__, members)  # type: ignore[operator]
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Union, types.UnionType}:
        return typing.Union[tuple(_readable(part) for part in parts)]  # noqa: UP007 - not literal
    if origin is typing.Annotated:
        return typing.Annotated[(_readable(parts[0]), *parts[1:])]
    if origin in {list, dict, tuple, set, frozenset}:
        return origin[tuple(_readable(part) for part in parts)]
    return kind


def _optional(hint: Any) -> Any:
    bare = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.NotRequired else hint
    return typing_extensions.NotRequired[_readable(bare)]
