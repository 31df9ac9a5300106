"""What is told of each request: a log record, counters, spans and metrics; never its content."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime import (
    ConnectionLostError,
    CutOffError,
    LlamaClient,
    LLMChatParams,
    LLMError,
    LLMResponse,
    ServerStatusError,
)
from runtime.inference.effects import BrokenError, Emit, Flow, HttpHead, HttpRequest, Open, Read
from runtime.inference.observation import Asked, Observer
from tests.fakes.openai_server import (
    MODEL,
    FakeServer,
    Stalls,
    cuts_after,
    cuts_before_answering,
    refuses,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED = Asked(operation="chat", model="m", backend="b")
RECORDS = "runtime.inference.observation"
SECRET = "the sea is green"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as made:
        yield made


@pytest.fixture
def client(server: FakeServer) -> Iterator[LlamaClient]:
    with LlamaClient(base_url=server.url, name="mine") as made:
        yield made


def counters(client: LlamaClient) -> Any:
    return client.describe()["counters"]


def told(caplog: pytest.LogCaptureFixture) -> Any:
    (record,) = [each for each in caplog.records if each.name == RECORDS]
    return record


# --- the log record ---------------------------------------------------------------------------


def test_an_answer_leaves_one_record(client: LlamaClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, RECORDS)
    client.chat(SECRET)
    record = told(caplog)
    assert record.levelno == logging.DEBUG
    assert (record.operation, record.model, record.backend) == ("chat", MODEL, "mine")
    assert (record.outcome, record.error, record.finish_reason) == ("answered", None, "stop")
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (32, 31, 3)
    assert 0 < record.first_token_ms <= record.duration_ms < 10_000
    assert (record.retries, record.recoveries, record.stream) == (0, 0, False)


def test_nothing_is_recorded_above_debug(
    client: LlamaClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, RECORDS)
    client.chat("hi")
    assert not caplog.records


def test_a_record_holds_no_content(
    client: LlamaClient, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.will(says(SECRET), says('{"n":', reason="length"))
    schema: dict[str, object] = {"type": "object", "required": ["n"]}
    client.chat(SECRET)
    with pytest.raises(CutOffError):
        client.chat(SECRET, params=LLMChatParams(response_schema=schema))
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert SECRET not in str(vars(record))
        assert '"n"' not in str(vars(record))


def test_a_failure_is_named_by_its_class(
    client: LlamaClient, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, RECORDS)
    server.will(refuses(500, {"error": {"message": SECRET}}))
    with pytest.raises(ServerStatusError):
        client.chat("hi")
    record = told(caplog)
    assert (record.outcome, record.error, record.completion_tokens) == (
        "failed", "ServerStatusError", None,
    )  # fmt: skip
    assert "ServerStatusError" in record.getMessage()


def test_a_request_sent_again_says_so(
    client: LlamaClient, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, RECORDS)
    server.will(cuts_before_answering)
    client.chat("hi")
    assert told(caplog).retries == 1
    assert counters(client)["retries"] == 1


def test_an_answer_that_was_asked_for_anew_is_a_retry(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(says("[]"), says("1"))
    client.chat("hi", params=LLMChatParams(response_schema={"type": "integer"}))
    assert counters(client)["retries"] == 1
    assert counters(client)["requests"] == 1


# --- counters ---------------------------------------------------------------------------------


def test_counters_add_up(client: LlamaClient, server: FakeServer) -> None:
    assert counters(client) == {
        "requests": 0, "under_way": 0, "answered": 0, "cancelled": 0, "failed": 0, "failures": {},
        "prompt_tokens": 0, "completion_tokens": 0, "retries": 0, "recoveries": 0,
    }  # fmt: skip
    server.will(says("a"), refuses(500), refuses(500), *[cuts_after("x")] * 3)
    client.chat("hi")
    for _ in range(2):
        with pytest.raises(ServerStatusError):
            client.chat("hi")
    with pytest.raises(ConnectionLostError):
        list(client.stream_chat("hi"))
    client.embed(["x"])
    assert counters(client) == {
        "requests": 5, "under_way": 0, "answered": 2, "cancelled": 0, "failed": 3,
        "failures": {"ServerStatusError": 2, "ConnectionLostError": 1},
        "prompt_tokens": 33, "completion_tokens": 3, "retries": 2, "recoveries": 0,
    }  # fmt: skip


def test_a_stream_that_is_left_counts_as_cancelled(client: LlamaClient, server: FakeServer) -> None:
    stalls = Stalls(("one", "two"))
    server.will(stalls)
    with client.stream_chat("hi") as events:
        next(events)
        assert counters(client)["under_way"] == 1
    assert counters(client)["cancelled"] == 1
    assert counters(client)["failures"] == {}
    assert counters(client)["under_way"] == 0


def test_what_the_clients_end_ends_counts_as_cancelled(
    client: LlamaClient, server: FakeServer
) -> None:
    stalls = Stalls(answers=False)
    server.will(stalls)
    failed: list[LLMError] = []

    def ask() -> None:
        try:
            client.chat("hi")
        except LLMError as exc:
            failed.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    assert stalls.begun.wait(10)
    client.close()
    thread.join(10)
    assert failed
    assert counters(client)["cancelled"] == 1


def test_a_stream_that_is_never_begun_is_no_request(client: LlamaClient) -> None:
    client.stream_chat("hi").close()
    assert counters(client)["requests"] == 0


def test_texts_in_several_requests_are_no_retries(client: LlamaClient, server: FakeServer) -> None:
    client.embed(["x"] * 300)
    posted = sum(request.path == "/v1/embeddings" for request in server.requests)
    assert posted > 1
    assert counters(client)["retries"] == 0
    assert counters(client)["requests"] == 1


def test_recoveries_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, RECORDS)
    observer = Observer()

    def recovered() -> Flow[LLMResponse]:
        yield from ()
        return LLMResponse(text="", raw={"recovery": {"count": 2}})

    list(observer.watch(recovered(), ASKED))
    assert observer.counters()["recoveries"] == 2
    assert told(caplog).recoveries == 2


def test_threads_lose_no_count() -> None:
    observer = Observer()

    def none() -> Flow[None]:
        return
        yield

    def many() -> None:
        for _ in range(500):
            list(observer.watch(none(), ASKED))

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert observer.counters()["requests"] == observer.counters()["answered"] == 4000


# --- the wrapper ------------------------------------------------------------------------------


def test_a_watched_flow_behaves_as_it_would_alone() -> None:
    """Its effects, the results and errors they get, its result, and its end."""
    ended = []

    def inner() -> Flow[str]:
        try:
            head = yield Open(
                request=HttpRequest(base_url="http://h", path="/p"), connect_timeout_s=1, until=1
            )
            assert head.status == 200
            try:
                yield Read(1)
            except BrokenError as exc:
                return f"lost: {exc}"
            return "whole"
        finally:
            ended.append(True)

    observer = Observer()
    flow = observer.watch(inner(), ASKED)
    assert isinstance(next(flow), Open)
    assert isinstance(flow.send(HttpHead(status=200, headers={})), Read)
    with pytest.raises(StopIteration) as stop:
        flow.throw(BrokenError("gone"))
    assert stop.value.value == "lost: gone"
    assert ended == [True]

    flow = observer.watch(inner(), ASKED)
    next(flow)
    flow.close()
    assert ended == [True, True]
    assert observer.counters()["cancelled"] == 1


def test_watching_costs_microseconds_a_piece() -> None:
    """100 tokens: two effects each. Generous, for machines under load; it is about 60 µs."""
    observer = Observer()

    def answer() -> Flow[None]:
        for _ in range(100):
            yield Read(1.0)
            yield Emit(None)  # type: ignore[arg-type]

    def took(flow: Flow[None]) -> float:
        begun = time.perf_counter()
        for _ in flow:
            pass
        return time.perf_counter() - begun

    watched = min(took(observer.watch(answer(), ASKED)) for _ in range(20))
    alone = min(took(answer()) for _ in range(20))
    assert watched - alone < 0.001


# --- OpenTelemetry ----------------------------------------------------------------------------

_PROGRAM = """
import json, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from runtime import LlamaClient, LLMChatParams, LLMError

spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
client = LlamaClient(base_url=sys.argv[1])  # a provider that is set later is found, too
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
with trace.get_tracer("caller").start_as_current_span("caller"):
    client.chat("the sea is green", params=LLMChatParams(temperature=0.5, max_tokens=9))
list(client.stream_chat("the sea is green"))
try:
    client.chat("the sea is green")
except LLMError:
    pass
client.embed(["the sea is green"])
with client.stream_chat("the sea is green") as left:
    next(left)
recovered = list(client.stream_chat("the sea is green"))
client.close()
told = [json.loads(span.to_json()) for span in spans.get_finished_spans()]
print(json.dumps({"spans": told, "metrics": json.loads(reader.get_metrics_data().to_json())}))
"""


@pytest.fixture(scope="module")
def telemetry() -> Any:
    """What a program with the SDK exports; in a process of its own, for providers are global."""
    pytest.importorskip("opentelemetry.sdk")
    with FakeServer() as server:
        server.will(says("a"), says("b", "c"), refuses(500))
        server.will(Stalls(("a", "b")), cuts_after("a"), says("a", "b"))
        run = [sys.executable, "-c", _PROGRAM, server.url]
        done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) | {"port": int(server.url.rsplit(":", 1)[1])}


def test_each_request_is_a_span(telemetry: Any) -> None:
    chat, caller, stream, failed, embedding, left, recovered = telemetry["spans"]
    assert chat["name"] == f"chat {MODEL}"
    assert chat["kind"] == "SpanKind.CLIENT"
    assert chat["parent_id"] == caller["context"]["span_id"]
    assert chat["attributes"] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.output.type": "text",
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 32,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 31,
        "server.address": "127.0.0.1",
        "server.port": telemetry["port"],
    }
    assert chat["status"]["status_code"] == "UNSET"
    assert stream["attributes"]["gen_ai.request.stream"] is True
    assert 0 < stream["attributes"]["gen_ai.response.time_to_first_chunk"] < 10
    assert failed["attributes"]["error.type"] == "ServerStatusError"
    assert failed["status"] == {"status_code": "ERROR"}
    assert embedding["name"] == f"embeddings {MODEL}"
    assert embedding["attributes"]["gen_ai.usage.input_tokens"] == 1
    for span, mark in ((left, "cancelled"), (recovered, "recoveries")):
        assert span["status"]["status_code"] == "UNSET"
        assert "error.type" not in span["attributes"]
        assert span["attributes"][f"llama_runtime.{mark}"] == 1
        assert span["end_time"]
    assert recovered["attributes"]["gen_ai.response.finish_reasons"] == ["stop"]
    assert "gen_ai.response.finish_reasons" not in left["attributes"]


def test_each_request_is_measured(telemetry: Any) -> None:
    (resource,) = telemetry["metrics"]["resource_metrics"]
    (scope,) = resource["scope_metrics"]
    measured = {metric["name"]: metric for metric in scope["metrics"]}
    assert set(measured) == {
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.client.token.usage",
    }
    durations = measured["gen_ai.client.operation.duration"]
    assert durations["unit"] == "s"
    points = durations["data"]["data_points"]
    assert sum(point["count"] for point in points) == 6
    assert points[0]["explicit_bounds"][:3] == [0.01, 0.02, 0.04]
    failed = [point for point in points if "error.type" in point["attributes"]]
    assert [point["attributes"]["error.type"] for point in failed] == ["ServerStatusError"]
    usage = measured["gen_ai.client.token.usage"]["data"]["data_points"]
    chats = {
        point["attributes"]["gen_ai.token.type"]: point["sum"]
        for point in usage
        if point["attributes"]["gen_ai.operation.name"] == "chat"
    }
    assert chats == {"input": 96, "output": 9}
    first = measured["gen_ai.client.operation.time_to_first_chunk"]["data"]["data_points"]
    assert sum(point["count"] for point in first) == 3, "the streams alone"


def test_telemetry_holds_no_content(telemetry: Any) -> None:
    assert SECRET not in json.dumps(telemetry)


_UNUSED = """
import sys
from runtime import LlamaClient
with LlamaClient(base_url=sys.argv[1]) as client:
    client.chat("hi")
    print(*(name for name in sys.modules if name.startswith("opentelemetry")))
    import opentelemetry.trace
    client.chat("hi")
    print("opentelemetry.metrics" in sys.modules)
"""


def test_telemetry_that_nobody_uses_is_not_imported() -> None:
    """Also where it is installed; a program that begins to use it later is seen."""
    pytest.importorskip("opentelemetry.trace")
    environment = {name: value for name, value in os.environ.items() if "OTEL" not in name}
    with FakeServer() as server:
        run = [sys.executable, "-c", _UNUSED, server.url]
        done = subprocess.run(
            run, check=True, capture_output=True, text=True, timeout=60, env=environment
        )
    assert done.stdout.split("\n")[:2] == ["", "True"]
