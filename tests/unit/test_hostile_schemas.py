"""Any schema at all: an enforcement or a typed refusal, and never anything else, in time."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines.base import EngineCapabilities
from runtime.errors import LLMInvalidRequestError
from runtime.inference import closing, schema, strictness
from runtime.inference.bounds import Bounds

KEYWORDS = [
    "type", "properties", "required", "items", "prefixItems", "anyOf", "oneOf", "allOf", "not",
    "if", "then", "else", "enum", "const", "minimum", "maximum", "multipleOf", "minLength",
    "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "contains",
    "additionalProperties", "patternProperties", "propertyNames", "minProperties", "maxProperties",
    "$ref", "$defs", "$id", "$schema", "dependentRequired", "dependentSchemas", "dependencies",
    "definitions", "unevaluatedProperties", "minContains", "$anchor", "$dynamicRef", "default",
]  # fmt: skip
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["string", "object", "array", "integer", "#", "#/$defs/a", "date", "^a", "("])
    | st.text(max_size=4)
)
WILD = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYWORDS) | st.sampled_from("ab"), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    document=st.dictionaries(st.sampled_from(KEYWORDS), WILD, max_size=4), begun=st.text('{["a:1,')
)
def test_any_document_is_enforced_or_refused(document: Any, begun: str) -> None:
    started = time.monotonic()
    try:
        checked = schema.check(document)
        for capabilities in (
            EngineCapabilities(llguidance=True),
            EngineCapabilities(grammar=True),
            EngineCapabilities(),
        ):
            found = schema.enforcement(checked, capabilities, Bounds())
            try:
                strictness.demand(checked, found)
            except LLMInvalidRequestError:
                assert found.validated_only
    except LLMInvalidRequestError:
        return
    made = closing.close(begun, checked, seconds=0.5)
    if made is not None:
        schema.judge(made.text, checked)
    assert time.monotonic() - started < 5
