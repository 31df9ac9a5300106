"""Fault battery: real engines among proxies, other owners, many requests and a killed owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from runtime import LlamaClient, LLMChatParams
from runtime.errors import LLMError, LLMProviderError
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    Saw = Callable[[object], None]

pytestmark = [pytest.mark.process, pytest.mark.engine]


@pytest.mark.faults("proxies set", "ready", "loopback does not go through them")
def test_proxies_do_not_come_between(
    real_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with LlamaClient(**real_options) as client:
        assert client.chat("Hi", params=LLMChatParams(max_tokens=4)).text


SERVE = """
import json, sys
from runtime import LlamaClient, LLMChatParams
with LlamaClient(**json.loads(sys.argv[1])) as client:
    print(client.server.pid, client.server.snapshot().keeper_pid, flush=True)
    if sys.argv[2] == "once":
        client.chat("Hi", params=LLMChatParams(max_tokens=4))
        print(client.server.state, flush=True)
    while sys.argv[2] == "streams":
        for event in client.stream_chat("Go on.", params=LLMChatParams(max_tokens=1500)):
            print(event.kind, flush=True)
"""


@pytest.mark.faults("two owners start the same model at once", "ready", "both serve")
def test_two_owners_start_the_same_model(real_options: dict[str, Any]) -> None:
    owners = [
        subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps(real_options), "once"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [owner.communicate(timeout=60)[0].splitlines() for owner in owners]
    assert [lines[-1] for lines in said] == ["ready", "ready"]
    assert said[0][0] != said[1][0], "each has its own"


@pytest.mark.skipif(sys.platform != "linux", reason="the keeper's pidfd and subreaper: Linux")
@pytest.mark.parametrize("with_keeper", [False, True], ids=["alone", "with keeper"])
@pytest.mark.faults("owner SIGKILL in mid-stream", "nothing left", "no orphan")
def test_owner_killed_in_mid_stream(real_options: dict[str, Any], *, with_keeper: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, json.dumps(real_options), "streams"],
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout
        pids = [int(word) for word in owner.stdout.readline().split()]
        for _ in range(5):
            assert owner.stdout.readline().strip() == "delta"
        if with_keeper:
            os.kill(pids[1], signal.SIGKILL)
        owner.kill()
        owner.wait(5)
        wait_until("engine and keeper are gone", lambda: all(map(is_gone, pids)), timeout_s=2)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one of many requests went."""

    began_s: float
    error: LLMError | None


def ask_from_64_threads(
    client: LlamaClient, count: int, *, after: Callable[[int], None]
) -> list[Outcome]:
    """Have ``count`` requests answered; ``after`` is told how many are done."""
    outcomes: list[Outcome] = []
    work = iter(range(count))
    lock = threading.Lock()

    def ask_on() -> None:
        while True:
            with lock:
                if next(work, None) is None:
                    return
            began_s, error = time.monotonic(), None
            try:
                reply = client.chat("Hi", params=LLMChatParams(max_tokens=2, temperature=0.0))
                assert reply.usage is not None
            except LLMError as exc:
                error = exc
            outcomes.append(Outcome(began_s, error))
            after(len(outcomes))

    threads = [threading.Thread(target=ask_on) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)
    assert not any(thread.is_alive() for thread in threads), "something hangs"
    return outcomes


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(
            240,
            marks=pytest.mark.faults("240 requests from 64 threads over a kill -9", "ready", ""),
        ),
        pytest.param(
            5000,
            marks=pytest.mark.faults(
                "5,000 requests from 64 threads over 2 kills", "ready", "", long=True
            ),
        ),
    ],
)
def test_many_requests_from_64_threads_over_a_crash(
    real_options: dict[str, Any], count: int, saw: Saw
) -> None:
    """What is in flight may fail, in our words; what is sent once it serves again must not."""
    options = {**real_options, "ctx_size": 256, "parallel": 8}
    kills = {count // 3} if count < 1000 else {count // 3, 2 * count // 3}
    ready_again_s: list[float] = []
    with LlamaClient(**options, request_timeout_s=120) as client:
        server = client.server
        assert server is not None
        killer: list[threading.Thread] = []

        def kill() -> None:
            pid = server.pid
            assert pid
            os.kill(pid, signal.SIGKILL)
            wait_until("it serves again", lambda: server.pid not in {None, pid}, timeout_s=60)
            server.endpoint(60)
            ready_again_s.append(time.monotonic())

        def after(done: int) -> None:
            if done in kills:
                kills.discard(done)
                killer.append(threading.Thread(target=kill))
                killer[-1].start()

        crashes = len(kills)
        outcomes = ask_from_64_threads(client, count, after=after)
        for thread in killer:
            thread.join(60)
        assert client.chat("Hi", params=LLMChatParams(max_tokens=2)).usage
        assert server.snapshot().restarts == crashes == len(ready_again_s)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    saw(f"{len(outcomes) - len(failed)} answers, {len(failed)} clean failures, {crashes} kills")
    assert len(outcomes) == count
    assert all(isinstance(outcome.error, LLMProviderError) for outcome in failed)
    assert all(outcome.began_s < max(ready_again_s) for outcome in failed), "sent to the new one"
    assert len(failed) <= 64 * crashes, "each thread has one request on its way"
