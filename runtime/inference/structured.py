"""Python types as shapes of answers: a schema on the way out, an instance on the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from runtime.errors import LLMInvalidRequestError, SchemaViolationError
from runtime.inference.schema import pointer

if TYPE_CHECKING:
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
        adapter: TypeAdapter[Any] = TypeAdapter(output_type)
        return Shape(schema=adapter.json_schema(), adapter=adapter)
    except PydanticUserError as exc:
        raise LLMInvalidRequestError(
            f"{output_type!r} has no JSON Schema: {exc.message}",
            hint="Use a pydantic model, a dataclass, or another type pydantic understands.",
        ) from exc
