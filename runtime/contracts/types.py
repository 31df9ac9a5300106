"""The provider-neutral data types.

Names, fields, defaults and their order are fixed: agent code written against them runs unchanged on
any provider of this contract. All are frozen except :class:`LLMChatParams`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

LLMRole = Literal["system", "user", "assistant", "tool"]
LLMStreamEventKind = Literal["delta", "completed"]
ToolCallingMode = Literal["native", "best_effort", "none"]
JSONMode = Literal["native", "prompt+validate", "none"]
TaskPriority = Literal["latency", "quality", "cost", "balanced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMMessage:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: The text; may be empty for an assistant turn that only called tools.
        name: The speaker's name, where the model's template knows names.
        tool_call_id: On a ``tool`` message, the call it answers.
        tool_name: On a ``tool`` message, the tool that ran.
    """

    role: LLMRole
    content: str
    name: str | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None


@dataclass(slots=True, kw_only=True)
class LLMChatParams:
    """How one chat is to be answered; mutable, so that an agent can adjust it between turns.

    Attributes:
        temperature: Sampling temperature; None leaves it to the model's recommended value.
        max_tokens: Most tokens to generate; None leaves it to the client's bound.
        response_schema: A JSON Schema the answer must validate against.
        provider_options: Anything else the engine takes (``seed``, ``top_p``, ``stop``, …).
    """

    temperature: float | None = None
    max_tokens: int | None = None
    response_schema: dict[str, object] | None = None
    provider_options: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call the model asks for.

    Attributes:
        name: The tool.
        arguments_json: Its arguments, a JSON text.
        call_id: Unique within the conversation; the tool result refers to it.
    """

    name: str
    arguments_json: str
    call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMToolResult:
    """What a tool returned.

    Attributes:
        call_id: The :attr:`ToolCall.call_id` it answers.
        output_json: The result, a JSON text.
        error: Why the tool failed, or None.
    """

    call_id: str
    output_json: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request; None where the provider did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProfile:
    """What matters for a task, for a client that can choose among models.

    Attributes:
        priority: What to favour.
        max_cost_usd: Upper bound in US dollars; a local model costs nothing.
        max_latency_ms: Upper bound in milliseconds for the whole answer.
        tags: Tags a model must carry to be considered.
    """

    priority: TaskPriority = "balanced"
    max_cost_usd: float | None = None
    max_latency_ms: int | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCostHints:
    """Rough costs of running a tool once; None where unknown."""

    token_cost_estimate: int | None = None
    latency_ms_estimate: int | None = None
    usd_cost_estimate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSideEffects:
    """What running a tool may touch."""

    filesystem_read: bool = False
    filesystem_write: bool = False
    network: bool = False
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolMetadata:
    """Where a tool comes from and how careful one must be with it.

    Attributes:
        source: Its origin.
        side_effects: What it may touch.
        timeout_s: Seconds it may run.
        max_output_bytes: Most bytes of output that are kept.
        risky: Whether to ask before running it. None at construction means: infer it; it is then
            true when the side effects write files, use the network or run commands.
        server_id: The MCP server that offers it, if one does.
    """

    source: Literal["core", "mcp", "script", "custom"] = "core"
    side_effects: ToolSideEffects = field(default_factory=ToolSideEffects)
    timeout_s: int = 30
    max_output_bytes: int = 65536
    risky: bool | None = None
    server_id: str | None = None

    def __post_init__(self) -> None:
        if self.risky is None:
            effects = self.side_effects
            inferred = effects.filesystem_write or effects.network or bool(effects.commands)
            object.__setattr__(self, "risky", inferred)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool a model may call.

    Attributes:
        name: Unique among the tools of a request.
        description: What it does, for the model.
        input_schema: JSON Schema of its arguments, an object schema.
        output_schema: JSON Schema of its result.
        metadata: Origin, side effects, limits.
        permissions: Permissions its use requires, in the agent's own vocabulary.
        cost_hints: Rough costs.
    """

    name: str
    description: str
    input_schema: dict[str, object]
    output_schema: dict[str, object]
    metadata: ToolMetadata = field(default_factory=ToolMetadata)
    permissions: tuple[str, ...] = ()
    cost_hints: ToolCostHints = field(default_factory=ToolCostHints)

    @property
    def json_schema(self) -> dict[str, object]:
        """The schema of the arguments, under the name other frameworks use."""
        return self.input_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMRequest:
    """A whole request, with tools, schema and routing wishes.

    Attributes:
        messages: The conversation so far, oldest first.
        model: The model to use; None takes the client's default.
        temperature: Sampling temperature; None leaves it to the model's recommended value.
        max_tokens: Most tokens to generate; None leaves it to the client's bound.
        tools: Tools the model may call.
        response_schema: A JSON Schema the answer must validate against.
        response_format: The same in OpenAI's form.
        metadata: The caller's own notes; never sent to the engine.
        provider_options: Anything else the engine takes.
        task_profile: What matters, for a client that can choose among models.
    """

    messages: Sequence[LLMMessage]
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    tools: Sequence[ToolSpec] = ()
    response_schema: dict[str, object] | None = None
    response_format: dict[str, object] | None = None
    metadata: dict[str, object] = field(default_factory=dict)
    provider_options: dict[str, object] = field(default_factory=dict)
    task_profile: TaskProfile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Who made an answer, and under which configuration.

    Attributes:
        backend_name: The client's name.
        backend_kind: The kind of engine or server.
        model_id: The model that answered.
        base_url: Where it was reached, or None.
        started_at: When the request began, ISO 8601, UTC.
        completed_at: When the answer was complete, ISO 8601, UTC.
        config_hash: Changes when, and only when, the client's configuration does.
    """

    backend_name: str
    backend_kind: str
    model_id: str
    base_url: str | None
    started_at: str
    completed_at: str
    config_hash: str

    @staticmethod
    def now_iso() -> str:
        """The current UTC time in ISO 8601."""
        return datetime.now(UTC).isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMResponse:
    """A complete answer.

    Attributes:
        text: The answer's text; empty when the model only called tools.
        model: The model that answered.
        provider: The client's name.
        finish_reason: ``"stop"``, ``"length"`` or ``"tool_calls"``.
        usage: Token counts.
        latency_ms: Milliseconds from sending the request to the complete answer.
        raw_output: The engine's own answer, as it came.
        tool_calls: The tool calls the model asks for, in order.
        raw: This runtime's notes: the seed used, timings, repairs.
        provenance: Who made the answer.
    """

    text: str
    model: str | None = None
    provider: str | None = None
    finish_reason: str | None = None
    usage: Usage | dict[str, int] | None = None
    latency_ms: int | None = None
    raw_output: dict[str, object] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    raw: dict[str, object] | None = None
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMStreamEvent:
    """One event of a streamed chat.

    Attributes:
        kind: ``"delta"`` for a piece of text, ``"completed"`` once at the end.
        delta_text: The piece, set on a delta.
        response: The whole answer, set on completed.
    """

    kind: LLMStreamEventKind
    delta_text: str | None = None
    response: LLMResponse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of a streamed tool call.

    Attributes:
        call_id: Which call the piece belongs to.
        name: The tool, set on the first piece.
        arguments_json_delta: The next characters of the arguments' JSON text.
    """

    call_id: str | None = None
    name: str | None = None
    arguments_json_delta: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMDelta:
    """One piece of a streamed answer; usually one of its fields is set."""

    text_delta: str | None = None
    tool_call_delta: ToolCallDelta | None = None
    usage_delta: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResult:
    """Embedding vectors.

    Attributes:
        vectors: One vector a text, in the order of the input; each has Euclidean length 1.
        model_id: The model that made them.
        usage: Token counts.
    """

    vectors: Sequence[Sequence[float]]
    model_id: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendCapabilities:
    """What a client can do.

    Attributes:
        streaming: Whether answers come token by token.
        tool_calling: ``"native"``: the model's template knows tools.
        json_mode: ``"native"``: a schema is enforced while decoding.
        vision: Whether images are understood.
        max_context_tokens: Tokens one request may hold, prompt and answer together.
    """

    streaming: bool
    tool_calling: ToolCallingMode
    json_mode: JSONMode
    vision: bool
    max_context_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    """Whether a backend works right now.

    Attributes:
        ok: Whether a request sent now would be served.
        message: One sentence for a person.
        details: Facts for a program.
        checked_at: When this was found out, ISO 8601, UTC.
    """

    ok: bool
    message: str | None = None
    details: Mapping[str, object] | None = None
    checked_at: str | None = None
