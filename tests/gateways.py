"""A gateway as its users have it: the `serve` command in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai

from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from email.message import Message


@dataclass(frozen=True)
class Answer:
    """What a gateway answered.

    Attributes:
        status: The HTTP status.
        headers: The headers, in lower case.
        body: The parsed body, or its text where it is not JSON.
    """

    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Gateway:
    """A running `serve`.

    Attributes:
        process: The command's.
        url: Where it answers, without ``/v1``.
        stderr: What it has printed.
    """

    process: subprocess.Popen[bytes]
    url: str
    stderr: Path

    def get(self, path: str) -> Answer:
        return self.ask(Request(self.url + path))

    def post(self, path: str, body: object) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask(
            Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        )

    def ask(self, request: Request) -> Answer:
        try:
            with urlopen(request, timeout=60) as reply:
                return _answer(reply.status, reply.headers, reply.read())
        except HTTPError as exc:
            with exc:
                return _answer(exc.code, exc.headers, exc.read())

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's own client; close it."""
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", **options})

    def engine_pid(self, model: str | None = None) -> int:
        """The process id of a model's engine; of the default's where none is named."""
        models = self.get("/snapshot").body["models"]
        found = next(each for each in models if model in {None, each["name"]})
        pid: int = found["snapshot"]["pid"]
        return pid

    def spare_pid(self) -> int | None:
        """The process id of the default model's next engine, while one waits."""
        pid: int | None = self.get("/snapshot").body["models"][0]["snapshot"]["spare_pid"]
        return pid

    def under_way(self) -> int:
        """Requests at work or in line, at all models."""
        queues = [each["queue"] for each in self.get("/snapshot").body["models"]]
        return sum(queue["running"] + queue["waiting"] for queue in queues if queue)


def _answer(status: int, headers: Message, data: bytes) -> Answer:
    text = data.decode()
    with contextlib.suppress(ValueError):
        return Answer(status, {k.lower(): v for k, v in headers.items()}, json.loads(text))
    return Answer(status, {k.lower(): v for k, v in headers.items()}, text)


@contextlib.contextmanager
def begun(*args: object, home: Path, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A `serve` with these arguments, perhaps not ready yet, and what it prints; ended after."""
    with tempfile.TemporaryDirectory() as folder:
        stderr = Path(folder) / "stderr"
        with stderr.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "runtime", "serve", *map(str, args), "--port", "0"],
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                env={
                    **os.environ,
                    "LLAMA_RUNTIME_HOME": str(home),
                    "LLAMA_RUNTIME_THREADS": "1",
                    **env,
                },
            )
        try:
            yield process, stderr
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(20)


@contextlib.contextmanager
def serving(*args: object, home: Path, **env: str) -> Iterator[Gateway]:
    """A `serve` with these arguments that is ready, on a port of its own; ended with the block."""
    with begun(*args, home=home, **env) as (process, stderr):
        wait_until(
            "the gateway is ready",
            lambda: b"Ctrl-C ends it" in stderr.read_bytes() or process.poll() is not None,
            timeout_s=40,
        )
        said = stderr.read_text("utf-8")
        found = re.search(r"Ready at (http://\S+)/v1", said)
        assert found, said
        yield Gateway(process, found[1], stderr)
