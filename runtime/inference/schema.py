"""JSON Schemas: checked before a request, turned into a grammar, and enforced on the answer.

What an engine enforces while decoding is a help; what counts is the validation of the answer
against the caller's own schema, because engines widen or drop constraints silently.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

from runtime.errors import LLMInvalidRequestError, SchemaViolationError
from runtime.inference import gbnf, grammars, preparation, request_limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import jsonschema_rs

    from runtime.engines.base import EngineCapabilities
    from runtime.inference.bounds import Bounds

_MOST_CONVERTED: Final = 65_536
"""Characters of the longest schema that an engine's own converter is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A JSON Schema that is valid as such.

    Attributes:
        document: The caller's schema, parsed.
        text: The same as JSON, properties in the caller's order.
        validator: Judges values by it.
    """

    document: Mapping[str, object]
    text: str
    validator: jsonschema_rs.Validator = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforcement:
    """How an engine is asked to keep to a schema.

    Attributes:
        kind: ``"llguidance"``, ``"gbnf"`` (made here), ``"json_schema"`` (the server's own
            converter) or ``"prompt"`` (the model is only told).
        fields: What is added to the request.
        instruction: What is said to the model, or None.
        validated_only: Why the grammar admits more than the schema does, or None when it does not,
            as far as is known.
    """

    kind: Literal["llguidance", "gbnf", "json_schema", "prompt"]
    fields: Mapping[str, object]
    instruction: str | None = None
    validated_only: str | None = None


def check(
    document: object,
    *,
    what: str = "response_schema",
    others: Mapping[str, object] | None = None,
) -> Schema:
    """The schema, ready for use; compiled once for each text.

    Args:
        document: The schema.
        what: What it is called in errors.
        others: Further schemas that it may refer to, by their addresses. Nothing is ever fetched.

    Raises:
        LLMInvalidRequestError: It is no JSON Schema, refers to something that is neither in it nor
            in ``others``, or exceeds a limit.
    """
    if not isinstance(document, dict):
        raise LLMInvalidRequestError(
            f"{what} is {type(document).__name__}, not a JSON Schema object.",
            hint="Give the schema as a dict.",
        )
    whole: Mapping[str, object] = preparation.bundled(document, others) if others else document
    request_limits.check_nesting(whole, what)
    try:
        text = json.dumps(whole, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise LLMInvalidRequestError(f"{what} is not JSON: {exc}") from exc
    try:
        return _checked(text, what)
    except ValueError as exc:  # jsonschema_rs.ValidationError is one
        path = pointer(getattr(exc, "instance_path", ()))
        reason = getattr(exc, "message", str(exc))
        raise LLMInvalidRequestError(
            f"{what} is not a valid JSON Schema: {reason} (at {path or 'its root'}).",
            hint='Correct the schema. What it refers to must be in it, or in "schemas" of '
            "provider_options, by its address; nothing is fetched.",
        ) from exc


@lru_cache(maxsize=256)
def _checked(text: str, what: str) -> Schema:
    import jsonschema_rs  # noqa: PLC0415 - a compiled library, needed only by those who use schemas

    given = json.loads(text)
    preparation.check_chains(given, what)
    document = preparation.flattened(given)
    validator = jsonschema_rs.validator_for(dict(document), validate_formats=True, offline=True)
    if document is not given:
        text = json.dumps(document, ensure_ascii=False)
    return Schema(document=document, text=text, validator=validator)


def enforcement(
    schema: Schema,
    capabilities: EngineCapabilities,
    bounds: Bounds | None = None,
) -> Enforcement:
    """The strongest way an engine has to keep to ``schema`` while decoding.

    Args:
        schema: What to keep to.
        capabilities: What the engine can do.
        bounds: What else is bounded, where the engine can do that.
    """
    if capabilities.llguidance:
        rule, problem = grammars.json_rule(schema.text, bounds)
        # What it cannot express, the engine's own converter drops, or takes half a minute for.
        rule = rule or grammars.plain_rule(_outline(schema))
        fields = {"grammar": grammars.HEAD + rule}
        return Enforcement(kind="llguidance", fields=fields, validated_only=problem)
    if capabilities.grammar:
        # Ours, not the engine's converter: that leaves strings, arrays and digits without an end,
        # drops patterns and ranges, and some schemas end the process of llama-cpp-python.
        made = gbnf.of_schema(schema.text, bounds)
        made = made or gbnf.of_schema(json.dumps(_outline(schema)), bounds)
        return Enforcement(
            kind="gbnf",
            fields={"grammar": made},
            validated_only="GBNF expresses a part of what a schema can say.",
        )
    if capabilities.json_schema is not False:
        # llama.cpp's converter answers 400 to a reference to the whole document.
        bearable = len(schema.text) <= _MOST_CONVERTED and '"$ref": "#"' not in schema.text
        document = schema.document if bearable else _outline(schema)
        wrapped = {"name": "answer", "schema": document, "strict": True}
        return Enforcement(
            kind="json_schema",
            fields={"response_format": {"type": "json_schema", "json_schema": wrapped}},
            validated_only="The engine's own converter drops constraints without saying so.",
        )
    return _told(schema)


def _told(schema: Schema) -> Enforcement:
    return Enforcement(
        kind="prompt",
        fields={},
        instruction="Answer with one JSON value only, no other text. It must be valid against this "
        f"JSON Schema: {schema.text}",
        validated_only="The engine enforces no schema.",
    )


def _outline(schema: Schema) -> dict[str, object]:
    """The type that a schema asks for, and nothing else."""
    kind = schema.document.get("type")
    return {"type": kind} if isinstance(kind, str | list) else {}


def judge(text: str, schema: Schema) -> Any:
    """The value that ``text`` is, valid against ``schema``.

    Raises:
        SchemaViolationError: It is not JSON, repeats a key, or violates the schema.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if "\\ud" in text.lower():  # half a surrogate pair is an escape, but no character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise SchemaViolationError(
            f"The answer is not JSON: {exc}.",
            pointer="",
            reason=str(exc),
            repeated_key=exc.key if isinstance(exc, _RepeatedKeyError) else None,
            partial_text=text,
        ) from exc
    error = next(iter(schema.validator.iter_errors(value)), None)
    if error is not None:
        path = pointer(error.instance_path)
        raise SchemaViolationError(
            f"The answer violates its schema at {path or 'its root'}: {error.message}.",
            pointer=path,
            reason=error.message,
            partial_text=text,
        )
    return value


def ends_by_itself(text: str) -> bool:
    """Whether a valid JSON text, cut off here, is whole: only a number might have gone on."""
    return not text.rstrip()[-1:].isdigit()


def pointer(path: Iterable[str | int]) -> str:
    """A JSON Pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


class _RepeatedKeyError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} occurs twice in one object")
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RepeatedKeyError(twice)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
