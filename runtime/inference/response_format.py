"""OpenAI's ``response_format``: which schema it asks for, and how strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from runtime.errors import LLMInvalidRequestError
from runtime.inference import schema as schemas

if TYPE_CHECKING:
    from runtime.inference.policy import EnforcementLevel
    from runtime.inference.schema import Schema

_ANY_OBJECT: Final[dict[str, object]] = {"type": "object"}


def wanted(
    response_schema: object,
    response_format: object,
    others: Mapping[str, object] | None = None,
) -> tuple[Schema | None, EnforcementLevel | None]:
    """The schema of the answer, if there is one, and what ``strict`` says of its enforcement.

    ``name`` and ``description`` are for the model's maker, and say nothing here.

    Args:
        response_schema: The contract's way to ask for a schema.
        response_format: OpenAI's.
        others: Further schemas that it may refer to, by their addresses.

    Raises:
        LLMInvalidRequestError: The schema is none, both are given, or the format is unknown.
    """
    if response_format is None or response_format == {"type": "text"}:
        if response_schema is None:
            return None, None
        return schemas.check(response_schema, others=others), None
    if response_schema is not None:
        raise LLMInvalidRequestError(
            "response_schema and response_format exclude one another.", hint="Give one of them."
        )
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": document, **rest}}:
            level = _level(rest.get("strict"))
            what = "response_format.json_schema.schema"
            return schemas.check(document, what=what, others=others), level
        case {"type": "json_object", "schema": document}:
            return schemas.check(document, what="response_format.schema", others=others), None
        case {"type": "json_object"}:
            return schemas.check(_ANY_OBJECT), None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    raise LLMInvalidRequestError(
        f"response_format is {response_format!r}.",
        hint="A json_schema format holds the schema in json_schema.schema."
        if kind == "json_schema"
        else 'Its type is "text", "json_object", or "json_schema" with json_schema.schema.',
    )


def _level(strict: object) -> EnforcementLevel | None:
    match strict:
        case None:
            return None
        case bool():
            return "strict" if strict else "best"
    raise LLMInvalidRequestError(
        f"response_format.json_schema.strict is {strict!r}.", hint="It is true or false."
    )
