"""Test files of the projects that the plugin is tried on; they run in a pytest of their own."""

from __future__ import annotations

HELPERS = """
import os, time
from pathlib import Path
from runtime import LLMChatParams

OUT = Path(os.environ["OUT"])
SHORT = LLMChatParams(max_tokens=12)

def note(name, value):
    draft = OUT / f".{name}.{os.getpid()}"
    draft.write_text(str(value))
    draft.rename(OUT / name)

def wait_for(name):
    until = time.monotonic() + 60
    while not (OUT / name).exists():
        assert time.monotonic() < until, f"no {name}"
        time.sleep(0.01)
"""

RECORDED = """
import os, pytest
from runtime import LLMMessage, LLMRequest, ToolSpec
from helpers import *

pytestmark = pytest.mark.llama_cassette
TOOL = ToolSpec(name="look", description="Look.", output_schema={}, input_schema={
    "type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]})

def test_words(llama_client):
    streamed = [e.delta_text for e in llama_client.stream_chat("hello", params=SHORT)]
    again = llama_client.chat("hello", params=SHORT).text
    request = LLMRequest(messages=[LLMMessage(role="user", content="look")], tools=[TOOL])
    calls = llama_client.generate(request).tool_calls
    said = "".join(piece for piece in streamed if piece)
    assert len(streamed) > 5 and again and again != said and calls
    secret = llama_client.chat("my key is " + os.environ["SOME_API_KEY"], params=SHORT)
    vector = llama_client.embed(["a text"]).vectors[0]
    print("ANSWERS", repr((said, again, calls[0].arguments_json, secret.text, tuple(vector))))
"""

FAULTS = """
import urllib.request, pytest
from runtime import ConnectionLostError, TooManyRequestsError
from helpers import *

def test_a_fails(llama_server, llama_faults):
    note("shared", llama_server.pid)
    llama_faults.crash(at_token=3, restart=False)
    note("private", llama_server.pid)
    with llama_server.client(max_retries=0) as client:
        with pytest.raises(ConnectionLostError) as caught:
            list(client.stream_chat("hello", params=SHORT))
    note("delivered", len(caught.value.partial_text.split()))
    llama_faults.status(503, times=None)
    assert False

def test_b_is_untouched(llama_server, llama_client):
    note("shared-later", llama_server.pid)
    assert llama_client.chat("hello", params=SHORT).text

def test_c_never_came(llama_client, llama_faults):
    llama_faults.cut(at_token=1000)
    assert llama_client.chat("hello", params=SHORT).text

def test_d_in_order(llama_client, llama_faults):
    llama_faults.status(429, retry_after_s=7)
    llama_faults.cut(at_token=2)
    llama_faults.stall(at_token=2, seconds=0.05)
    with pytest.raises(TooManyRequestsError) as caught:
        llama_client.chat("hello", params=SHORT)
    assert caught.value.retry_after_s == 7
    answer = llama_client.chat("hello", params=SHORT)
    assert answer.raw["recovery"]["interruptions"][0]["token"] == 2
    assert llama_faults.happened == ("status(429)", "cut(at_token=2)", "stall(at_token=2)")

def test_e_without_the_key(llama_server):
    with pytest.raises(OSError, match="401"):
        urllib.request.urlopen(llama_server.base_url + "/v1/models")
"""

NETWORK = """
import asyncio, errno, socket
import pytest
from helpers import *

guarded = pytest.mark.llama_block_network

def reach(address, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        return sock.connect_ex(address)

@guarded
def test_refused():
    with pytest.raises(RuntimeError, match=r"test_network.py::test_refused.*192.0.2.1:80;"):
        reach(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match="2001:db8::1"):
        reach(("2001:db8::1", 80), socket.AF_INET6)
    with pytest.raises(RuntimeError, match="example.com"):
        socket.getaddrinfo("example.com", 443)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(RuntimeError, match="192.0.2.1"):
            sock.sendto(b"x", ("192.0.2.1", 53))
    with pytest.raises(RuntimeError, match="192.0.2.1"):
        asyncio.run(asyncio.open_connection("192.0.2.1", 80))

@guarded
def test_allowed(llama_client):
    assert llama_client.chat("hello", params=SHORT).text
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(("localhost", server.getsockname()[1])): pass
    known = {errno.ECONNREFUSED, errno.EINPROGRESS, errno.EADDRNOTAVAIL}
    assert reach(("::1", 9), socket.AF_INET6) in known
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(FileNotFoundError):
        sock.connect("/nowhere/at/all.sock")

def test_undone():
    assert isinstance(reach(("192.0.2.1", 80)), int)
"""

MODELS = """
import pytest
from helpers import *

@pytest.mark.llama_model("tiny", "tiny-embedding")
def test_vectors(llama_client, llama_model):
    note(llama_client.default_model(), llama_model.name)
    assert len(llama_client.embed(["a", "b"]).vectors) == 2

@pytest.mark.llama_model(ctx_size=512)
def test_small(llama_client):
    assert llama_client.capabilities().max_context_tokens == 512

def test_usual(llama_client):
    assert llama_client.capabilities().max_context_tokens == 4096

@pytest.mark.llama_model("smollm2-135m")
def test_missing(llama_client): pass

@pytest.mark.llama_model("tiny", paralel=2)
def test_misspelt(llama_client): pass
"""

CRASHING_WORKER = """
import os, signal
from helpers import *

def test_die(llama_server, llama_client):
    if (OUT / "pid-a").exists(): return
    note("pid-a", llama_server.pid)
    wait_for("pid-b")
    os.kill(os.getpid(), signal.SIGKILL)

def test_after(llama_server, llama_client):
    assert llama_client.chat("hello", params=SHORT).text
    note("pid-c", llama_server.pid)
"""

OTHER_WORKER = """
from helpers import *

def test_live(llama_server, llama_client):
    wait_for("pid-a")
    note("pid-b", llama_server.pid)
    wait_for("pid-c")
    assert llama_client.chat("hello", params=SHORT).text
    note("pid-d", llama_server.pid)
"""

HANGING = """
from helpers import *

def test_hang(llama_server):
    note("pid", llama_server.pid)
    wait_for("never")
"""

SWALLOWING = """
import urllib.request, pytest

@pytest.mark.llama_cassette
def test_it(llama_server):
    request = urllib.request.Request(
        llama_server.base_url + "/v1/models",
        headers={"Authorization": "Bearer " + llama_server.api_key},
    )
    with pytest.raises(OSError):
        urllib.request.urlopen(request)
"""

UNUSED = """
import sys

def test_nothing():
    mine = sorted(m for m in sys.modules if m.startswith("runtime"))
    assert mine == ["runtime", "runtime.testing", "runtime.testing.plugin", "runtime.testing.run"]
    heavy = {"pydantic", "psutil", "filelock", "h11", "ssl", "asyncio"}
    assert heavy.isdisjoint(sys.modules)
"""
