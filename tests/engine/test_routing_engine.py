"""RoutingClient over tiny models on a real engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime import (
    ConfigError,
    ConnectionLostError,
    ContextOverflowError,
    LLMChatParams,
    LLMClient,
    LLMMessage,
    LLMRequest,
    ModelNotFoundError,
    NoModelFitsError,
    QueueFullError,
    RequestTimeoutError,
    RestartPolicy,
    RoutedModel,
    RoutingClient,
    ServerConfig,
    TaskProfile,
)
from runtime.settings import directories
from runtime.testing.tiny_model import TinyShape, build_tiny_model
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.engine

BRIEF = LLMChatParams(max_tokens=8, temperature=0.0)
BUDGET = 80 << 20
"""Room for either of the two models, but not for both: their plans are 42 and 54 MiB."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two chat models of different sizes."""
    folder = tmp_path_factory.mktemp("models")
    small = build_tiny_model(folder / "small.gguf")
    large = build_tiny_model(
        folder / "large.gguf", shape=TinyShape(layers=8, feed_forward_length=1024), tools=True
    )
    return {"small": str(small), "large": str(large)}


def models(files: dict[str, str]) -> list[RoutedModel]:
    return [
        RoutedModel(files["small"], tags=("fast",)),
        RoutedModel(files["large"], tags=("code", "clever")),
    ]


@pytest.fixture
def client(files: dict[str, str]) -> Iterator[RoutingClient]:
    with RoutingClient(models(files), ctx_size=512, parallel=2) as made:
        yield made


def request(**profile: Any) -> LLMRequest:
    return LLMRequest(
        messages=[LLMMessage(role="user", content="Tell me about the sea.")],
        max_tokens=8,
        temperature=0.0,
        task_profile=TaskProfile(**profile),
    )


def pids(client: RoutingClient) -> dict[str, int]:
    described: Any = client.describe()["models"]
    return {name: each["server"]["pid"] for name, each in described.items()}


def routing(response: Any) -> Any:
    return response.raw["routing"]


def test_a_profile_decides_and_says_why(client: RoutingClient) -> None:
    assert isinstance(client, LLMClient)
    assert client.server_snapshot() is None, "nothing is loaded before it is needed"

    clever = client.generate(request(priority="quality"))
    assert clever.model == "large"
    assert clever.text
    told = routing(clever)
    assert (told["chosen"], told["was_loaded"]) == ("large", False)
    assert [each["model"] for each in told["considered"]] == ["large", "small"]
    assert told["considered"][0]["size_class"] > told["considered"][1]["size_class"]
    assert told["considered"][0]["basis"] == "estimated"
    assert told["waited_ms"] > 0

    tagged = client.generate(request(tags=("fast",)))
    assert tagged.model == "small"
    assert routing(tagged)["excluded"] == {"large": "it does not carry 'fast'"}

    again = client.generate(request(priority="quality"))
    assert routing(again)["was_loaded"] is True
    assert routing(again)["considered"][0]["basis"] == "measured"
    assert again.text == clever.text
    json.dumps(again.raw)


def test_a_model_that_is_named_wins(client: RoutingClient) -> None:
    reply = client.chat("hi", model="small", params=BRIEF)
    assert reply.model == "small"
    assert routing(reply)["why"] == "the request names it"
    named = LLMRequest(
        messages=[LLMMessage(role="user", content="hi")], model="small", max_tokens=4,
        task_profile=TaskProfile(tags=("code",)),
    )  # fmt: skip
    assert client.generate(named).model == "small"
    with pytest.raises(ModelNotFoundError, match="medium"):
        client.chat("hi", model="medium")
    auto = client.chat("hi", model=client.default_model(), params=BRIEF)
    assert routing(auto)["considered"]


def test_streams_are_routed_and_say_so(client: RoutingClient) -> None:
    *deltas, last = client.stream_chat("hi", params=BRIEF)
    assert last.response is not None
    assert last.response.text == "".join(delta.delta_text or "" for delta in deltas)
    assert routing(last.response)["chosen"] == last.response.model
    with client.stream(request(tags=("code",))) as stream:
        before = stream.routing
        assert "".join(delta.text_delta or "" for delta in stream)
        after = stream.routing
    assert before is None
    assert after is not None
    assert after["chosen"] == "large"


def test_what_fits_nothing_is_refused_with_every_reason(client: RoutingClient) -> None:
    with pytest.raises(NoModelFitsError) as caught:
        client.generate(request(tags=("prose",)))
    assert caught.value.excluded == {
        "small": "it does not carry 'prose'",
        "large": "it does not carry 'prose'",
    }
    assert all(reason in caught.value.message for reason in caught.value.excluded.values())
    assert client.server_snapshot() is None, "and nothing was loaded for it"


def test_latency_is_judged_by_measurement_alone(client: RoutingClient) -> None:
    """Before the first answer nothing was measured and nothing is excluded."""
    tight = replace(request(max_latency_ms=1, tags=("fast",)), max_tokens=64)
    assert client.generate(tight).model == "small"
    with pytest.raises(NoModelFitsError, match="by measurement it takes"):
        client.generate(tight)


def test_speeds_are_learned_and_outlive_the_client(files: dict[str, str]) -> None:
    with RoutingClient(models(files), ctx_size=512) as client:
        client.generate(request(tags=("fast",)))
        for _ in client.stream(request(tags=("fast",))):
            pass
    stored = json.loads((directories().state / "routing" / "speeds.json").read_text())["models"]
    (measured,) = stored.values()
    assert measured["answers"] == 2
    assert measured["decode_tokens"] == 16
    assert measured["loads"] == 1
    assert measured["load_s"] > 0
    with RoutingClient(models(files), ctx_size=512) as client:
        told = routing(client.generate(request(tags=("fast",))))
        assert told["considered"][0]["basis"] == "measured"


def test_room_is_made_by_least_recent_use_within_the_budget(files: dict[str, str]) -> None:
    """Room for one of the two: each choice of the other ends a process."""
    with RoutingClient(models(files), ctx_size=512, memory_budget_bytes=BUDGET) as client:
        for name in ("small", "large", "small"):
            assert client.chat("hi", model=name, params=BRIEF).model == name
            (pid,) = pids(client).values()
            assert psutil.Process(pid).memory_info().rss < BUDGET
            table: Any = client.describe()["residency"]
            assert list(table) == [name]
            assert sum(each["held_bytes"] for each in table.values()) <= BUDGET


def test_an_open_stream_keeps_its_model_and_who_needs_its_room_waits(
    files: dict[str, str],
) -> None:
    long = LLMChatParams(max_tokens=400)
    with RoutingClient(
        models(files), ctx_size=512, memory_budget_bytes=BUDGET, request_timeout_s=1.0
    ) as client:
        stream = client.stream_chat("hi", model="small", params=long)
        next(stream)
        (pid,) = pids(client).values()
        with pytest.raises(RequestTimeoutError, match="no room for large") as caught:
            client.chat("hi", model="large", params=BRIEF)
        assert caught.value.phase == "room"
        assert not is_gone(pid)
        stream.close()
        with ThreadPoolExecutor(1) as threads:
            other = client.stream_chat("hi", model="small", params=BRIEF)
            next(other)
            waiting = threads.submit(client.chat, "hi", model="large", params=BRIEF)
            other.close()
            assert waiting.result(20).model == "large"
        assert is_gone(pid)


def test_a_stream_that_is_dropped_lets_its_model_go(client: RoutingClient) -> None:
    stream = client.stream_chat("hi", model="small", params=LLMChatParams(max_tokens=400))
    next(stream)
    residency: Any = client.describe()["residency"]
    assert residency["small"]["users"] == 1
    del stream, residency
    residency = client.describe()["residency"]
    assert residency["small"]["users"] == 0
    described: Any = client.describe()
    assert described["counters"]["cancelled"] == 1


def test_a_stream_that_waits_for_room_can_be_closed(files: dict[str, str]) -> None:
    with (
        RoutingClient(models(files), ctx_size=512, memory_budget_bytes=BUDGET) as client,
        client.stream_chat("hi", model="small", params=LLMChatParams(max_tokens=400)) as busy,
        ThreadPoolExecutor(1) as threads,
    ):
        next(busy)
        waits = client.stream_chat("hi", model="large", params=BRIEF)
        reading = threads.submit(list[Any], waits)
        wait_until("it waits", lambda: "large" in str(client.describe()["residency"]))
        waits.close()
        assert reading.result(5) == []
        wait_until("nobody waits", lambda: "large" not in str(client.describe()["residency"]))
        assert list(pids(client)) == ["small"]


def test_an_unused_model_goes_after_a_while_and_comes_back(files: dict[str, str]) -> None:
    with RoutingClient(models(files), ctx_size=512, idle_timeout_s=0.3) as client:
        first = client.chat("hi", model="small", params=BRIEF)
        (pid,) = pids(client).values()
        wait_until("its engine is gone", lambda: is_gone(pid))
        wait_until("the table is empty", lambda: client.describe()["residency"] == {})
        assert client.chat("hi", model="small", params=BRIEF).text == first.text


def test_threads_load_a_model_once_and_others_keep_serving(client: RoutingClient) -> None:
    client.chat("hi", model="small", params=BRIEF)
    done = threading.Event()
    served = []

    def keep_asking() -> None:
        while not done.is_set():
            served.append(client.chat("hi", model="small", params=BRIEF).text)

    with ThreadPoolExecutor(5) as threads:
        asking = threads.submit(keep_asking)
        answers = [threads.submit(client.chat, "hi", model="large", params=BRIEF) for _ in range(4)]
        loading_began = len(served)
        assert len({each.result(30).text for each in answers}) == 1
        assert len(served) > loading_began
        done.set()
        asking.result(10)
    assert len(pids(client)) == 2
    assert len(set(served)) == 1


def test_embeddings_come_from_one_model_alone(
    files: dict[str, str], tiny_embedding_path: Path
) -> None:
    embedding = RoutedModel(str(tiny_embedding_path), name="vectors")
    with RoutingClient([*models(files), embedding], ctx_size=512) as client:
        made = client.embed(["one", "two"])
        assert made.model_id == "vectors"
        assert len(made.vectors) == 2
        assert "vectors" in routing(client.generate(request()))["excluded"]
        bare = client.count_tokens("one two three")
        assert 0 < bare < client.count_tokens("one two three", params=BRIEF), "as a message"


def test_one_that_cannot_be_loaded_gives_way(files: dict[str, str], tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    build_tiny_model(gone, shape=TinyShape(layers=16), name="gone")
    with RoutingClient([str(gone), files["small"]], ctx_size=512) as client:
        gone.unlink()
        reply = client.generate(request(priority="quality"))
        assert reply.model == "small"
        assert "could not be loaded" in routing(reply)["excluded"]["gone"]
        again = routing(client.generate(request(priority="quality")))
        assert again["chosen"] == "small"
        assert "could not be loaded" in again["excluded"]["gone"], "told, but not tried again"
        with pytest.raises(ModelNotFoundError):
            client.chat("hi", model="gone")


@pytest.fixture
def narrow(files: dict[str, str]) -> Iterator[RoutingClient]:
    """A small model with a small context and one slot that nobody waits for, and a larger one."""
    few = ServerConfig(model=files["small"], ctx_size=256, parallel=1)
    with RoutingClient([few, files["large"]], max_queue=0, ctx_size=1024) as made:
        yield made


def of(text: str) -> LLMRequest:
    fast = TaskProfile(priority="latency")
    asked = [LLMMessage(role="user", content=text)]
    return LLMRequest(messages=asked, max_tokens=8, temperature=0.0, task_profile=fast)


def test_a_prompt_goes_where_there_is_room(narrow: RoutingClient) -> None:
    """Reckoned beforehand; where that was wrong, the model's own count decides."""
    assert routing(narrow.generate(of("hi")))["chosen"] == "small"
    reckoned = routing(narrow.generate(of("sea " * 250)))
    assert (reckoned["chosen"], reckoned["excluded"]) == ("large", {})
    assert reckoned["considered"][1]["lacks_room_for"] == "answer"

    dense = "".join(chr(0x4E00 + n) for n in range(130))  # three tokens each, not a quarter
    counted = routing(narrow.generate(of(dense)))
    assert counted["chosen"] == "large"
    assert "one request may hold 256" in counted["excluded"]["small"]
    with narrow.stream(of(dense)) as stream:
        assert list(stream)
        assert stream.routing is not None
        assert stream.routing["chosen"] == "large"

    for text in ("sea " * 2000, dense * 3):
        with pytest.raises(ContextOverflowError, match="large") as caught:
            narrow.generate(of(text))
        assert caught.value.context_tokens == 1024
        assert (caught.value.prompt_tokens or 0) > 1024
    with pytest.raises(ContextOverflowError) as caught:
        narrow.chat(dense, model="small")
    assert caught.value.context_tokens == 256, "one that is named gets no stand-in"


def test_a_full_line_is_refused_at_once(narrow: RoutingClient) -> None:
    with narrow.stream_chat("hi", model="small", params=LLMChatParams(max_tokens=200)) as busy:
        next(busy)
        with pytest.raises(QueueFullError) as caught:
            narrow.chat("hi", model="small", params=BRIEF)
        assert (caught.value.running, caught.value.waiting, caught.value.max_queue) == (1, 0, 0)
    with pytest.raises(ConfigError, match="max_queue"):
        RoutingClient(["smollm2-135m"], max_queue=-1)


def test_one_that_dies_and_cannot_come_back_gives_way(
    files: dict[str, str], tmp_path: Path
) -> None:
    """Its file is deleted and its engine killed: the reason is told, another one answers."""
    passing = Path(shutil.copy(files["large"], tmp_path / "passing.gguf"))
    with RoutingClient([str(passing), files["small"]], ctx_size=1024) as client:
        quality = request(priority="quality")
        assert client.generate(quality).model == "passing"
        pid = pids(client)["passing"]
        passing.unlink()
        stream = client.stream_chat("hi", model="passing", params=LLMChatParams(max_tokens=900))
        next(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionLostError, match="There is no file") as caught:
            list(stream)
        assert caught.value.partial_text
        with pytest.raises(ModelNotFoundError):
            client.chat("hi", model="passing")
        told = routing(client.generate(quality))
        assert told["chosen"] == "small"
        assert "There is no file" in told["excluded"]["passing"]


def test_a_server_that_failed_for_good_is_replaced(files: dict[str, str]) -> None:
    config = ServerConfig(model=files["small"], restart=RestartPolicy(enabled=False))
    with RoutingClient([config], ctx_size=512) as client:
        first = client.chat("hi", params=BRIEF)
        (pid,) = pids(client).values()
        os.kill(pid, signal.SIGKILL)

        def state() -> object:
            snapshot = client.server_snapshot()
            return snapshot and snapshot["state"]

        wait_until("its server has failed", lambda: state() == "failed")
        assert client.chat("hi", params=BRIEF).text == first.text
        assert state() == "ready"


def test_everything_ends_with_close(files: dict[str, str]) -> None:
    client = RoutingClient(models(files), ctx_size=512)
    client.chat("hi", model="small", params=BRIEF)
    stream = client.stream_chat("hi", model="large", params=LLMChatParams(max_tokens=400))
    next(stream)
    running = list(pids(client).values())
    assert len(running) == 2
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 10
    assert all(map(is_gone, running))
    client.close()
    assert not client.healthcheck().ok


def test_counters_include_what_was_unloaded(files: dict[str, str]) -> None:
    with RoutingClient(models(files), ctx_size=512, memory_budget_bytes=BUDGET) as client:
        for name in ("small", "large", "small"):
            client.chat("hi", model=name, params=BRIEF)
        described: Any = client.describe()
        assert described["counters"]["requests"] == described["counters"]["answered"] == 3
        assert described["counters"]["completion_tokens"] == 24
        assert described["models"]["small"]["counters"]["requests"] == 1
    closed: Any = client.describe()
    assert closed["counters"]["requests"] == 3


_PROGRAM = """
import os, sys
from runtime import LLMChatParams, RoutingClient
client = RoutingClient(sys.argv[2:], ctx_size=512)
for name in ("small", "large"):
    client.chat("hi", model=name, params=LLMChatParams(max_tokens=4))
    print(client.server_snapshot()["pid"])
stream = client.stream_chat("hi", model="small")
next(stream)
sys.stdout.flush()
exec(sys.argv[1])
"""


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)"])
def test_everything_ends_with_the_process(files: dict[str, str], end: str) -> None:
    run = [sys.executable, "-c", _PROGRAM, end, files["small"], files["large"]]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (0 if end == "pass" else -9), done.stderr
    small, large = map(int, done.stdout.split())
    wait_until("both engines are gone", lambda: is_gone(small) and is_gone(large))


def test_a_port_for_all_is_nobodys(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RUNTIME_PORT", "1")
    with pytest.raises(ConfigError, match="port"):
        RoutingClient(models(files), port=1)
    with RoutingClient(models(files), ctx_size=512) as client:
        assert client.chat("hi", model="small", params=BRIEF).text


def test_a_configuration_is_a_model_and_the_description_is_json(files: dict[str, str]) -> None:
    config = ServerConfig(model=files["small"], ctx_size=256, alias="mine")
    with RoutingClient([config, files["large"]], ctx_size=512) as client:
        assert client.chat("hi", model="mine", params=BRIEF).model == "mine"
        described: Any = client.describe()
        assert list(described["models"]) == ["mine"]
        assert {
            "name", "kind", "default_model", "base_url", "config_hash", "max_retries",
            "model_patterns", "model", "context_window",
        } <= set(described["backend"])  # fmt: skip
        assert described["models"]["mine"]["server"]["context"]["actual"] == 256
        assert described["backend"]["models"]["large"]["server"]["ctx_size"] == 512
        assert json.loads(json.dumps(described["backend"])) == described["backend"]
        json.dumps(described)
        assert described["capabilities"]["max_context_tokens"] == 512, "the router takes as much"
        assert described["context_tokens"] == {"mine": 256, "large": 512}
        assert described["backend"]["context_window"] == 512
        assert client.healthcheck().ok
