"""Several models behind one gateway: their memory, their names, and those that do not load."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from runtime.testing.tiny_model import build_tiny_model
from tests.conftest import is_gone, wait_until
from tests.fakes.hub import FakeHub
from tests.gateways import Answer, Gateway, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import openai

pytestmark = [pytest.mark.engine, pytest.mark.process]

HELLO: Any = [{"role": "user", "content": "Hello there."}]
BUDGET_GIB = 0.095
"""Room for two of the models, but not for three: each one's plan is 40 MiB."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models; the file of the last is ``later.gguf``."""
    made = tmp_path_factory.mktemp("models")
    for name in ("a", "b", "c", "later"):
        build_tiny_model(made / f"{name}.gguf")
    return made


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.add("acme/tiny", {"tiny-Q8_0.gguf": (folder / "a.gguf").read_bytes()})
        yield fake


@pytest.fixture(scope="module")
def gateway(
    folder: Path, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    models = ",".join(str(folder / f"{name}.gguf") for name in ("a", "b", "c", "later"))
    options = ("--models", models, "--ctx-size", "4096", "--parallel", "1")
    network = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "PIP_INDEX_URL": hub.index_url}
    with serving(
        *options,
        *("--memory-budget", BUDGET_GIB, "--allow-pull"),
        home=tmp_path_factory.mktemp("home"),
        **network,
    ) as running:
        yield running


def ask(gateway: Gateway, model: str, **more: object) -> Answer:
    body = {"model": model, "messages": HELLO, "max_tokens": 2, **more}
    return gateway.post("/v1/chat/completions", body)


def states(gateway: Gateway) -> dict[str, str]:
    found: dict[str, str] = gateway.get("/health").body["models"]
    return {name: state for name, state in found.items() if state != "unloaded"}


def begin(client: openai.OpenAI, model: str) -> Iterator[Any]:
    """A long stream that has begun; closing it ends it."""
    stream: Any = client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=4000,
        extra_body={"ignore_eos": True},
        stream=True,
    )
    next(stream)
    return stream  # type: ignore[no-any-return]


def test_the_longest_unused_makes_room_and_what_is_in_use_never_does(gateway: Gateway) -> None:
    with gateway.client(max_retries=0, timeout=30) as client, ThreadPoolExecutor(1) as pool:
        for model in ("b", "a", "b"):
            assert ask(gateway, model).body["model"] == model
        assert states(gateway) == {"a": "ready", "b": "ready"}
        assert ask(gateway, "c").status == 200
        assert states(gateway) == {"b": "ready", "c": "ready"}, "a was unused for longest"

        used, other = begin(client, "b"), begin(client, "c")
        pids = {name: gateway.engine_pid(name) for name in ("b", "c")}
        waiting = pool.submit(ask, gateway, "a")
        wait_until("it waits for room", lambda: states(gateway).get("a") == "waiting")
        for stream in (used, other):
            assert next(stream).choices, "both are in use, and answer"
        assert not waiting.done()
        assert gateway.get("/health").body["status"] == "ready"
        used.close()  # type: ignore[attr-defined]
        assert waiting.result(20).body["model"] == "a"
        assert is_gone(pids["b"])
        assert next(other).choices
        assert gateway.engine_pid("c") == pids["c"]
        other.close()  # type: ignore[attr-defined]
        memory = gateway.get("/snapshot").body["memory"]
        assert memory["held_bytes"] <= memory["budget_bytes"] == int(BUDGET_GIB * 2**30)


def test_a_model_that_cannot_be_loaded_says_so_and_leaves_the_others_alone(
    gateway: Gateway, folder: Path
) -> None:
    path = folder / "later.gguf"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    for _ in range(2):  # the second one is told at once what the first one found out
        answer = ask(gateway, "later")
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "later cannot be loaded now" in answer.body["error"]["message"]
        assert "cut off" in answer.body["error"]["message"]
    path.write_bytes(data)
    assert "cut off" in ask(gateway, "later").body["error"]["message"], "not tried again so soon"
    health = gateway.get("/health")
    assert (health.status, health.body["status"]) == (200, "degraded")
    assert health.body["models"]["later"] == "failed"
    assert ask(gateway, "a").status == 200
    path.unlink()
    assert "b.gguf" not in str(ask(gateway, "later").body), "the folder is the operator's"
    path.write_bytes(data)


@pytest.mark.outside
def test_it_is_tried_again_after_five_seconds(gateway: Gateway, folder: Path) -> None:
    path = folder / "later.gguf"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    wait_until("it fails", lambda: ask(gateway, "later", keep_alive=0).status == 503)
    path.write_bytes(data)
    failed_at = time.monotonic()
    wait_until("it loads", lambda: ask(gateway, "later").status == 200, timeout_s=8)
    assert 3 < time.monotonic() - failed_at < 7
    assert gateway.get("/health").body["status"] == "ready"


@pytest.mark.parametrize(
    "name",
    [
        *("../a.gguf", "./a.gguf", "~/a.gguf", "/etc/passwd", "file:///etc/passwd"),
        *("http://127.0.0.1:1/x.gguf", "https://example.invalid/x.gguf", "acme/tiny@../../x"),
        *("hf:acme/tiny/../../x.gguf", "pypi:x==1/../../x.gguf", "acme/..", "..", "a\x00b", ""),
        *("C:\\x.gguf", "%2e%2e/a.gguf", "nope" * 2000),
    ],
)
def test_no_name_leaves_the_store_even_where_models_may_be_fetched(
    gateway: Gateway, hub: FakeHub, name: str
) -> None:
    asked = len(hub.seen)
    answers = [ask(gateway, name), gateway.get(f"/logs?model={quote(name)}")]
    if name:
        answers.append(gateway.get(f"/v1/models/{quote(name, safe='')}"))
    for answer in answers:
        assert (answer.status, answer.body["error"]["code"]) == (404, "model_not_found")
        assert "Served here: a, b, c, later" in answer.body["error"]["message"]
        assert len(str(answer.body)) < 800
    assert len(hub.seen) == asked


def test_a_model_is_fetched_once_and_loaded_once_whatever_it_is_called(
    gateway: Gateway, hub: FakeHub
) -> None:
    assert ask(gateway, "acme/tiny").body["model"] == "acme/tiny"
    engine, fetched = gateway.engine_pid("acme/tiny"), len(hub.bodies("/cdn/"))
    for name in ("acme/tiny:Q8_0", "hf:acme/tiny/tiny-Q8_0.gguf"):
        assert ask(gateway, name).body["model"] == "acme/tiny"
    assert gateway.engine_pid("acme/tiny") == engine
    assert len(hub.bodies("/cdn/")) == fetched == 1


def test_what_cannot_be_fetched_is_no_trouble_of_the_gateway(gateway: Gateway) -> None:
    before = gateway.get("/health").body
    for name, status in (("acme/nope", 403), ("pypi:nope==1/x.gguf", 404)):
        for _ in range(2):
            assert ask(gateway, name).status == status
    assert gateway.get("/health").body == before
    listed = [each["id"] for each in gateway.get("/v1/models").body["data"]]
    assert not {"acme/nope", "pypi:nope==1/x.gguf"} & set(listed)


@pytest.mark.outside
def test_an_idle_model_is_unloaded_and_comes_back(folder: Path, tmp_path: Path) -> None:
    """With no patience at all, the start itself loads it once."""
    with serving(folder / "a.gguf", "--ctx-size", "256", "--keep-alive", "0", home=tmp_path) as it:
        wait_until("it is unloaded", lambda: states(it) == {})
        assert it.get("/health").body["status"] == "ready", "it is loaded when asked for"
        assert len(list(tmp_path.rglob("*.log"))) == 1
        assert ask(it, "a", keep_alive="10m").status == 200
        assert states(it) == {"a": "ready"}
        assert len(list(tmp_path.rglob("*.log"))) == 2
