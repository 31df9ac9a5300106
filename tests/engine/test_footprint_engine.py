"""What a client with its supervisor takes beside the engine."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.engine

BARE = "import sys; print('ready', flush=True); sys.stdin.read()"
WORKING = """
import sys, time
from runtime import LlamaClient, LLMChatParams
schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}}
with LlamaClient(sys.argv[1], use_gateway=False, threads=1, ctx_size=512) as client:
    cut = {"on_truncation": "keep"}
    shaped = LLMChatParams(max_tokens=32, response_schema=schema, provider_options=cut)
    for params in (LLMChatParams(max_tokens=2), shaped):
        for _ in range(20):
            client.chat("hi", params=params)
            list(client.stream_chat("hi", params=params))
    client.embed(["hi"] * 20)
    until = time.monotonic() + 10
    while (spare := client.server.snapshot().spare_pid) is None and time.monotonic() < until:
        time.sleep(0.05)
    print("ready", client.server.snapshot().keeper_pid, spare, flush=True)
    sys.stdin.read()
"""
RESIDENT_LIMIT_BYTES = 60e6
SHARE_LIMIT_BYTES = 45e6
SPARE_SHARE_LIMIT_BYTES = 25e6


@pytest.mark.skipif(sys.platform != "linux", reason="the share of shared memory: Linux")
def test_client_and_supervisor_take_less_than_60_mb_beyond_the_engine(
    tiny_model_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The keeper, and what an owner has grown by over a Python that does nothing.

    Resident counts shared pages whole in each process; the proportional share counts them once. The
    spare engine process, which loads no model until it is needed, has a limit of its own.
    """

    def sizes(code: str) -> tuple[int, int, int]:
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tiny_model_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as owner:
            assert owner.stdout
            ready, *others = owner.stdout.readline().split()
            assert ready == "ready"
            keeper, spare = map(psutil.Process, map(int, others)) if others else (None, None)
            ours = [psutil.Process(owner.pid), *([keeper] if keeper else [])]
            beside = [spare, spare.parent()] if spare else []
            taken = [each.memory_full_info() for each in ours]
            spared = sum(each.memory_full_info().pss for each in beside if each)
            return sum(each.rss for each in taken), sum(each.pss for each in taken), spared

    bare, working = sizes(BARE), sizes(WORKING)
    resident, share, spared = (after - before for before, after in zip(bare, working, strict=True))
    record_property("client_resident_bytes", resident)
    record_property("client_share_bytes", share)
    record_property("spare_share_bytes", spared)
    assert 5e6 < resident < RESIDENT_LIMIT_BYTES
    assert 5e6 < share < SHARE_LIMIT_BYTES
    assert 5e6 < spared < SPARE_SHARE_LIMIT_BYTES
