"""The provider-neutral contract, name by name: agent code was written against exactly this."""

from __future__ import annotations

import dataclasses
import inspect
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

import runtime
from runtime import contracts, errors

# name -> ((field, type, default as Python writes it), ...); "—" stands for "required".
TYPES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "LLMMessage": (
        ("role", "LLMRole", "—"),
        ("content", "str", "—"),
        ("name", "str | None", "None"),
        ("tool_call_id", "str | None", "None"),
        ("tool_name", "str | None", "None"),
    ),
    "LLMChatParams": (
        ("temperature", "float | None", "None"),
        ("max_tokens", "int | None", "None"),
        ("response_schema", "dict[str, object] | None", "None"),
        ("provider_options", "dict[str, object]", "{}"),
    ),
    "ToolCall": (
        ("name", "str", "—"),
        ("arguments_json", "str", "—"),
        ("call_id", "str", "—"),
    ),
    "LLMToolResult": (
        ("call_id", "str", "—"),
        ("output_json", "str", "—"),
        ("error", "str | None", "None"),
    ),
    "Usage": (
        ("prompt_tokens", "int | None", "None"),
        ("completion_tokens", "int | None", "None"),
        ("total_tokens", "int | None", "None"),
    ),
    "TaskProfile": (
        ("priority", "TaskPriority", "'balanced'"),
        ("max_cost_usd", "float | None", "None"),
        ("max_latency_ms", "int | None", "None"),
        ("tags", "tuple[str, ...]", "()"),
    ),
    "LLMRequest": (
        ("messages", "Sequence[LLMMessage]", "—"),
        ("model", "str | None", "None"),
        ("temperature", "float | None", "None"),
        ("max_tokens", "int | None", "None"),
        ("tools", "Sequence[ToolSpec]", "()"),
        ("response_schema", "dict[str, object] | None", "None"),
        ("response_format", "dict[str, object] | None", "None"),
        ("metadata", "dict[str, object]", "{}"),
        ("provider_options", "dict[str, object]", "{}"),
        ("task_profile", "TaskProfile | None", "None"),
    ),
    "Provenance": (
        ("backend_name", "str", "—"),
        ("backend_kind", "str", "—"),
        ("model_id", "str", "—"),
        ("base_url", "str | None", "—"),
        ("started_at", "str", "—"),
        ("completed_at", "str", "—"),
        ("config_hash", "str", "—"),
    ),
    "LLMResponse": (
        ("text", "str", "—"),
        ("model", "str | None", "None"),
        ("provider", "str | None", "None"),
        ("finish_reason", "str | None", "None"),
        ("usage", "Usage | dict[str, int] | None", "None"),
        ("latency_ms", "int | None", "None"),
        ("raw_output", "dict[str, object] | None", "None"),
        ("tool_calls", "tuple[ToolCall, ...]", "()"),
        ("raw", "dict[str, object] | None", "None"),
        ("provenance", "Provenance | None", "None"),
    ),
    "LLMStreamEvent": (
        ("kind", "LLMStreamEventKind", "—"),
        ("delta_text", "str | None", "None"),
        ("response", "LLMResponse | None", "None"),
    ),
    "ToolCallDelta": (
        ("call_id", "str | None", "None"),
        ("name", "str | None", "None"),
        ("arguments_json_delta", "str | None", "None"),
    ),
    "LLMDelta": (
        ("text_delta", "str | None", "None"),
        ("tool_call_delta", "ToolCallDelta | None", "None"),
        ("usage_delta", "Usage | None", "None"),
    ),
    "EmbeddingResult": (
        ("vectors", "Sequence[Sequence[float]]", "—"),
        ("model_id", "str | None", "None"),
        ("usage", "Usage | None", "None"),
    ),
    "BackendCapabilities": (
        ("streaming", "bool", "—"),
        ("tool_calling", "ToolCallingMode", "—"),
        ("json_mode", "JSONMode", "—"),
        ("vision", "bool", "—"),
        ("max_context_tokens", "int | None", "—"),
    ),
    "BackendStatus": (
        ("ok", "bool", "—"),
        ("message", "str | None", "None"),
        ("details", "Mapping[str, object] | None", "None"),
        ("checked_at", "str | None", "None"),
    ),
    "ToolSpec": (
        ("name", "str", "—"),
        ("description", "str", "—"),
        ("input_schema", "dict[str, object]", "—"),
        ("output_schema", "dict[str, object]", "—"),
        ("metadata", "ToolMetadata", "ToolMetadata()"),
        ("permissions", "tuple[str, ...]", "()"),
        ("cost_hints", "ToolCostHints", "ToolCostHints()"),
    ),
    "ToolCostHints": (
        ("token_cost_estimate", "int | None", "None"),
        ("latency_ms_estimate", "int | None", "None"),
        ("usd_cost_estimate", "float | None", "None"),
    ),
    "ToolSideEffects": (
        ("filesystem_read", "bool", "False"),
        ("filesystem_write", "bool", "False"),
        ("network", "bool", "False"),
        ("commands", "tuple[str, ...]", "()"),
    ),
    "ToolMetadata": (
        ("source", "Literal['core', 'mcp', 'script', 'custom']", "'core'"),
        ("side_effects", "ToolSideEffects", "ToolSideEffects()"),
        ("timeout_s", "int", "30"),
        ("max_output_bytes", "int", "65536"),
        ("risky", "bool | None", "None"),
        ("server_id", "str | None", "None"),
    ),
}

LITERALS = {
    "LLMRole": ("system", "user", "assistant", "tool"),
    "LLMStreamEventKind": ("delta", "completed"),
    "ToolCallingMode": ("native", "best_effort", "none"),
    "JSONMode": ("native", "prompt+validate", "none"),
    "TaskPriority": ("latency", "quality", "cost", "balanced"),
}

CHAT = "(self, messages: Sequence[LLMMessage], *, model: str, params: LLMChatParams)"
PROTOCOLS = {
    "LLMClient": {
        "chat": f"{CHAT} -> LLMResponse",
        "stream_chat": f"{CHAT} -> Iterator[LLMStreamEvent]",
        "generate": "(self, request: LLMRequest) -> LLMResponse",
        "stream": "(self, request: LLMRequest) -> Iterator[LLMDelta]",
        "close": "(self) -> None",
        "__enter__": "(self) -> Self",
        "__exit__": "(self, exc_type: type[BaseException] | None, exc: BaseException | None, "
        "traceback: TracebackType | None) -> None",
        "default_model": "(self) -> str",
        "capabilities": "(self) -> BackendCapabilities",
        "config_snapshot": "(self) -> Mapping[str, object]",
        "server_snapshot": "(self) -> Mapping[str, object] | None",
        "describe": "(self) -> Mapping[str, object]",
    },
    "LLMProviderAdapter": {
        "chat": f"{CHAT} -> LLMResponse",
        "stream_chat": f"{CHAT} -> Iterator[LLMStreamEvent]",
    },
}

ERRORS = {
    "LLMError": "Exception",
    "LLMAuthError": "LLMError",
    "LLMRateLimitError": "LLMError",
    "LLMInvalidRequestError": "LLMError",
    "LLMProviderError": "LLMError",
    "LLMBadResponseError": "LLMError",
    "LLMCapabilityError": "LLMError",
}

EXAMPLES: dict[str, Any] = {
    "str": "x",
    "LLMRole": "user",
    "Sequence[LLMMessage]": (),
    "dict[str, object]": {},
    "str | None": None,
    "LLMStreamEventKind": "delta",
    "Sequence[Sequence[float]]": (),
    "bool": True,
    "ToolCallingMode": "none",
    "JSONMode": "none",
    "int | None": None,
}


def made(name: str) -> Any:
    """An instance with the required fields alone."""
    required = {field: EXAMPLES[kind] for field, kind, default in TYPES[name] if default == "—"}
    return getattr(contracts, name)(**required)


def written(kind: object) -> str:
    return str(kind).replace('"', "'").replace("typing.", "")


@pytest.mark.parametrize("name", TYPES)
def test_a_type_has_its_fields_in_order(name: str) -> None:
    found = dataclasses.fields(getattr(contracts, name))
    assert [(field.name, written(field.type)) for field in found] == [
        (field, kind) for field, kind, _ in TYPES[name]
    ]


@pytest.mark.parametrize("name", TYPES)
def test_a_field_that_is_left_out_has_its_default(name: str) -> None:
    instance = made(name)
    for field, _, default in TYPES[name]:
        if default == "—":
            others = [(each, kind) for each, kind, d in TYPES[name] if d == "—" and each != field]
            with pytest.raises(TypeError, match=field):
                getattr(contracts, name)(**{each: EXAMPLES[kind] for each, kind in others})
        elif (name, field) == ("ToolMetadata", "risky"):
            assert instance.risky is False  # None at construction: inferred
        else:
            value = eval(default, vars(contracts))
            assert getattr(instance, field) == value
            assert type(getattr(instance, field)) is type(value)


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_frozen_slotted_and_keyword_only(name: str) -> None:
    cls = getattr(contracts, name)
    assert cls.__dataclass_params__.frozen is (name != "LLMChatParams")
    assert "__slots__" in vars(cls)
    assert not hasattr(made(name), "__dict__")
    assert all(field.kw_only for field in dataclasses.fields(cls))


@pytest.mark.parametrize(
    ("name", "field"), [("LLMChatParams", "provider_options"), ("LLMRequest", "metadata")]
)
def test_mutable_defaults_are_fresh_per_instance(name: str, field: str) -> None:
    assert getattr(made(name), field) is not getattr(made(name), field)


def test_chat_params_can_be_changed() -> None:
    params = contracts.LLMChatParams()
    params.temperature = 0.5
    assert params.temperature == 0.5


@pytest.mark.parametrize("name", LITERALS)
def test_a_literal_has_its_values(name: str) -> None:
    assert get_args(getattr(contracts, name)) == LITERALS[name]


@pytest.mark.parametrize(
    ("effects", "risky"),
    [
        ({}, False),
        ({"filesystem_read": True}, False),
        ({"filesystem_write": True}, True),
        ({"network": True}, True),
        ({"commands": ("ls",)}, True),
    ],
)
def test_risk_is_inferred_from_side_effects(effects: dict[str, Any], risky: bool) -> None:
    side_effects = contracts.ToolSideEffects(**effects)
    assert contracts.ToolMetadata(side_effects=side_effects).risky is risky
    assert contracts.ToolMetadata(side_effects=side_effects, risky=not risky).risky is not risky


def test_a_tools_schema_goes_by_two_names() -> None:
    tool = contracts.ToolSpec(
        name="f", description="", input_schema={"type": "object"}, output_schema={}
    )
    assert tool.json_schema is tool.input_schema


def test_now_is_iso_utc() -> None:
    instant = datetime.fromisoformat(contracts.Provenance.now_iso())
    assert instant.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - instant) < timedelta(seconds=10)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_its_methods(name: str) -> None:
    protocol = getattr(contracts, name)
    attributes = {"provider_name"} if name == "LLMProviderAdapter" else set()
    members = {
        member
        for member in vars(protocol)
        if not member.startswith("_") or member in {"__enter__", "__exit__"}
    }
    assert getattr(protocol, "_is_protocol", False)
    assert members == set(PROTOCOLS[name])
    assert set(inspect.get_annotations(protocol)) == attributes
    for method, signature in PROTOCOLS[name].items():
        text = str(inspect.signature(getattr(protocol, method))).replace("'", "")
        assert text == signature


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_its_parent(name: str) -> None:
    error = getattr(errors, name)
    assert [base.__name__ for base in error.__bases__] == [ERRORS[name]]


def test_every_other_error_is_below_one_of_the_contract() -> None:
    contract = tuple(getattr(errors, name) for name in ERRORS if name != "LLMError")
    own = [
        cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__name__ not in ERRORS
    ]
    assert own
    for cls in own:
        assert issubclass(cls, contract), cls


@pytest.mark.parametrize("name", [*TYPES, *LITERALS, *PROTOCOLS, *ERRORS])
def test_the_package_exports_it(name: str) -> None:
    home = errors if name in ERRORS else contracts
    assert getattr(runtime, name) is getattr(home, name)
    assert name in runtime.__all__
