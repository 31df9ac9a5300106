"""Spans and metrics by OpenTelemetry's conventions for generative AI, where its API is installed.

Source: https://github.com/open-telemetry/semantic-conventions-genai (status: development), the
documents gen-ai-spans.md and gen-ai-metrics.md; the names are those of the last release (1.44), of
which that repository is about to change the metrics. Content (``gen_ai.input.messages`` and the
like) is opt-in there and never recorded here; a failure is told by its class alone, for the
messages of some quote the answer.
"""

from __future__ import annotations

import functools
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from runtime.inference.observation import Account, Asked

PROVIDER: Final = "llama.cpp"
"""``gen_ai.provider.name``: the conventions have no name of their own for it."""

_OWN: Final = "llama_runtime"

# The bounds of the buckets are the conventions' own.
_TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))
_SECOND_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))


_MODULES: Final = ("opentelemetry.trace", "opentelemetry.metrics")
_CONFIGURED_BY: Final = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
"""By these the API finds a provider itself, in a program that never mentions it."""


def telemetry() -> Telemetry | None:
    """The way to OpenTelemetry; None where nothing in this program uses it, installed or not.

    Its API is not imported for that alone: it takes some milliseconds and 5 MB, and without a
    provider, which only who imports it can set, all that it is told goes nowhere. Asked for each
    request, as a program may set up its telemetry after its clients.
    """
    used = any(name in sys.modules for name in _MODULES)
    return _found() if used or _is_configured() else None


@functools.cache
def _is_configured() -> bool:
    return any(os.environ.get(name) for name in _CONFIGURED_BY)


@functools.cache
def _found() -> Telemetry | None:
    try:
        # Optional, so nothing is known of its types.
        trace, metrics = map(import_module, _MODULES)
    except ImportError:
        return None
    return Telemetry(trace, metrics)


class Telemetry:
    """Makes spans and metrics. Without a provider that the program has set up they go nowhere."""

    def __init__(self, trace: Any, metrics: Any) -> None:
        self._trace = trace
        self._tracer = trace.get_tracer("llama-runtime")
        meter = metrics.get_meter("llama-runtime")
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKEN_BUCKETS,
        )
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECOND_BUCKETS,
        )
        self._first_chunk = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            unit="s",
            description="Time to receive the first chunk of a streamed answer.",
            explicit_bucket_boundaries_advisory=_SECOND_BUCKETS,
        )

    def begin(self, asked: Asked) -> Any:
        """A span for a request that begins now, below the caller's own span.

        It is not made the current one: a stream's steps run wherever the caller takes them.
        """
        return self._tracer.start_span(
            f"{asked.operation} {asked.model}",
            kind=self._trace.SpanKind.CLIENT,
            attributes={**_common(asked), **asked.settings}
            | ({"gen_ai.request.stream": True} if asked.stream else {}),
        )

    def end(self, span: Any, account: Account) -> None:
        """The request is over."""
        common = _common(account.asked) | _server(account.base_url)
        if account.answered_by:
            common["gen_ai.response.model"] = account.answered_by
        error = {"error.type": account.error} if account.error else {}
        if span.is_recording():
            span.set_attributes(common | error | _of_answer(account))
            if account.error:
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
        # Inside the span's context, so that exemplars lead from a metric to a trace.
        context = self._trace.set_span_in_context(span)
        self._duration.record(account.duration_s, common | error, context=context)
        for kind, tokens in (
            ("input", account.prompt_tokens),
            ("output", account.completion_tokens),
        ):
            if tokens is not None:
                self._tokens.record(tokens, {**common, "gen_ai.token.type": kind}, context=context)
        if account.asked.stream and account.first_chunk_s is not None:
            self._first_chunk.record(account.first_chunk_s, common, context=context)
        span.end()


def _common(asked: Asked) -> dict[str, str | int]:
    return {
        "gen_ai.operation.name": asked.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": asked.model,
    }


def _server(base_url: str | None) -> dict[str, str | int]:
    if base_url is None:
        return {}
    parts = urlsplit(base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname or "", "server.port": port}


def _of_answer(account: Account) -> dict[str, Any]:
    facts = {
        "gen_ai.usage.input_tokens": account.prompt_tokens,
        "gen_ai.usage.output_tokens": account.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": account.cached_tokens,
        "gen_ai.response.finish_reasons": [account.finish_reason]
        if account.finish_reason
        else None,
        "gen_ai.response.time_to_first_chunk": account.first_chunk_s
        if account.asked.stream
        else None,
    }
    told = {name: value for name, value in facts.items() if value is not None}
    # Not of the conventions, and so under a name of ours: what a person looks for in a slow trace.
    own = {"retries": account.retries, "recoveries": account.recoveries}
    told |= {f"{_OWN}.{name}": count for name, count in own.items() if count}
    return told | ({f"{_OWN}.cancelled": True} if account.outcome == "cancelled" else {})
