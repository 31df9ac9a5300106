"""What Prometheus is told."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client import exposition as text_format
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from runtime.gateway.traffic import BUCKETS_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.gateway.models import Models, Standing
    from runtime.gateway.traffic import Traffic

_P = "llama_runtime_"
_TOKENS = ("prompt_tokens", "completion_tokens")
_OUTCOMES = ("answered", "failed", "cancelled")


def exposition(models: Models, traffic: Traffic) -> tuple[bytes, str]:
    """Everything in Prometheus' text format, and its media type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gateway(models, traffic))
    return text_format.generate_latest(registry), text_format.CONTENT_TYPE_LATEST


class _Gateway(Collector):
    def __init__(self, models: Models, traffic: Traffic) -> None:
        self._models = models
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        yield from _of_traffic(self._traffic)
        yield _gauge("memory_budget_bytes", "Most memory of all models.", self._models.budget_bytes)
        yield from _of_models(self._models.listed())


def _of_traffic(traffic: Traffic) -> Iterator[Metric]:
    yield _gauge("uptime_seconds", "Since the gateway began.", time.monotonic() - traffic.began)
    yield _gauge("requests_in_flight", "Requests being answered.", traffic.in_flight)
    requests = CounterMetricFamily(
        _P + "http_requests", "Answers; 499: the client went away.", labels=["path", "status"]
    )
    for (path, status), count in traffic.answered.items():
        requests.add_metric([path, str(status)], count)
    yield requests
    times = HistogramMetricFamily(
        _P + "http_request_duration_seconds", "Until the answer was complete.", labels=["path"]
    )
    for path, counts in traffic.times.items():
        below, buckets = 0, []
        for bound, count in zip(BUCKETS_S, counts, strict=True):
            below += count
            buckets.append(("+Inf" if math.isinf(bound) else f"{bound:g}", float(below)))
        times.add_metric([path], buckets, sum_value=float(traffic.took_s[path]))
    yield times


def _of_models(standings: tuple[Standing, ...]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        _P + "model_state", "1 for the state it is in.", labels=["model", "state"]
    )
    held = GaugeMetricFamily(_P + "model_memory_bytes", "Reckoned memory.", labels=["model"])
    queue = GaugeMetricFamily(_P + "model_requests", "At work and in line.", labels=["model", "at"])
    slots = GaugeMetricFamily(_P + "model_slots", "Requests at once.", labels=["model"])
    ended = CounterMetricFamily(
        _P + "model_answers", "What became of requests.", labels=["model", "outcome"]
    )
    tokens = CounterMetricFamily(_P + "model_tokens", "Tokens.", labels=["model", "kind"])
    retries = CounterMetricFamily(_P + "model_retries", "Requests sent again.", labels=["model"])
    saved = CounterMetricFamily(
        _P + "model_recoveries", "Answers that outlived an engine.", labels=["model"]
    )
    restarts = GaugeMetricFamily(
        _P + "model_restarts", "Restarts since it was loaded.", labels=["model"]
    )
    for each in standings:
        name, counters = each.name, dict[str, Any](each.counters)
        up.add_metric([name, each.state], 1)
        held.add_metric([name], each.held_bytes)
        for outcome in _OUTCOMES:
            ended.add_metric([name, outcome], counters[outcome])
        for kind in _TOKENS:
            tokens.add_metric([name, kind.removesuffix("_tokens")], counters[kind])
        retries.add_metric([name], counters["retries"])
        saved.add_metric([name], counters["recoveries"])
        if each.served is not None and each.served.server is not None:
            counts = each.served.queue
            queue.add_metric([name, "work"], counts.running)
            queue.add_metric([name, "line"], counts.waiting)
            slots.add_metric([name], counts.slots or 0)
            restarts.add_metric([name], each.served.server.restarts)
    yield from (up, held, queue, slots, ended, tokens, retries, saved, restarts)


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(_P + name, told, value=value)
