"""An engine process started straight from a launch specification, nothing of ours around it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

from runtime.engines.base import LaunchSpec
from runtime.engines.xllamacpp import XllamacppEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class BareEngine:
    """A running engine.

    Attributes:
        pid: Of its process.
        log: What it has printed so far.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: list[str]) -> None:
        self.pid = process.pid
        self.log = log
        self._url = url

    def post(self, path: str, **body: object) -> Any:
        """The JSON answer to a request."""
        request = Request(
            self._url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=100) as answer:
            return json.load(answer)


@contextlib.contextmanager
def bare_engine(
    model: Path, *, slot_ctx: int, parallel: int, **changes: Any
) -> Iterator[BareEngine]:
    """An xllamacpp process that is ready, as a server would be launched; ended with the block."""
    settings: dict[str, Any] = {
        "model_path": model,
        "alias": "model",
        "nonce": "nonce",
        "api_key": None,
        "host": "127.0.0.1",
        "port": 0,
        "slot_ctx": slot_ctx,
        "parallel": parallel,
        "threads": 2,
        "gpu_layers": 0,
        "embeddings": True,
        "pooling": "mean",
        "cache_type_k": "f16",
        "cache_type_v": "f16",
        "flash_attn": "auto",
    }
    engine = XllamacppEngine()
    command = engine.command(LaunchSpec(**(settings | changes)))
    process = subprocess.Popen(
        command.argv,
        env={**os.environ, **command.env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    log: list[str] = []
    reader = threading.Thread(target=_collect, args=(process.stderr, log))
    reader.start()
    try:
        process.stdin.write(command.stdin)
        process.stdin.flush()
        url = None
        # Our host prints this line on standard output, where no other line can run into it.
        for line in process.stdout:
            facts = engine.read_line(line.decode())
            if facts and facts.base_url:
                url = facts.base_url
                break
        assert url, "".join(log)
        yield BareEngine(process, url, log)
    finally:
        process.kill()
        reader.join()
        with process:
            pass


def _collect(stream: Any, log: list[str]) -> None:
    log.extend(line.decode("utf-8", "replace") for line in stream)
