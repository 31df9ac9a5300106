"""Who listens on a port, read from the kernel's table and from real sockets."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from runtime.server.listeners import _in_tables, holder, reached, who_listens
from runtime.server.probe import confirm
from runtime.server.sockets import TABLES, Listener, ask_kernel, parse_answer, parse_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.server.listeners import Verdict
    from runtime.server.probe import Confirmation

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp")

# Linux 6 on x86-64, as read; the second line is a connection, not a listener.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0
   1: 0100007F:1F90 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 102 1 0
   2: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 103 1 0
   3: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 104 1 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx rx tr inode
   0: 00000000000000000000000000000000:1F91 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 105 1
   1: 00000000000000000000000001000000:1F92 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 106 1
   2: 0000000000000000FFFF00000100007F:1F93 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 107 1
"""  # noqa: E501 - as the kernel prints it
ALL = [*parse_table(TCP), *parse_table(TCP6)]


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables above are of such a machine")
@pytest.mark.parametrize(
    ("host", "port", "inodes"),
    [
        ("127.0.0.1", 8080, {101}),  # not the one bound to any address
        ("127.0.0.2", 8080, {103}),
        ("0.0.0.0", 8080, {101, 103}),
        ("localhost", 8080, {101, 103}),
        ("127.0.0.1", 8081, {104}),
        ("10.1.1.1", 8081, {105}),  # dual stack
        ("::1", 8082, {106}),
        ("::1", 8080, set()),  # 0.0.0.0 is any address of IPv4 only
        ("127.0.0.1", 8082, set()),
        ("127.0.0.1", 8083, {107}),
        ("127.0.0.1", 8084, set()),
    ],
)
def test_the_sockets_that_a_connection_may_end_at(host: str, port: int, inodes: set[int]) -> None:
    assert {listener.inode for listener in reached(ALL, host, port)} == inodes


def test_what_is_no_table_has_no_listeners() -> None:
    assert list(parse_table("")) == []
    assert list(parse_table("head\n short line\n")) == []


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables above are of such a machine")
def test_addresses_are_in_network_order() -> None:
    assert ALL[0] == Listener(address=bytes([127, 0, 0, 1]), port=8080, inode=101)


@linux
@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_process_is_told_from_another(family: socket.AddressFamily, host: str) -> None:
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        port = server.getsockname()[1]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        assert who_listens(url, pid=os.getpid()) == "engine"
        assert f"process {os.getpid()}" in str(holder(port))
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            assert who_listens(url, pid=other.pid) == "other"
            other.kill()
            other.wait()
            assert who_listens(url, pid=other.pid) == "other", "a process that is gone has none"
    assert who_listens(url, pid=os.getpid()) == "unknown", "nobody listens any more"


@linux
@pytest.mark.parametrize(
    ("family", "host", "table"),
    [(socket.AF_INET, "127.0.0.1", TABLES[0]), (socket.AF_INET6, "::1", TABLES[1])],
)
def test_the_kernel_answers_what_its_table_says(
    family: socket.AddressFamily, host: str, table: Path
) -> None:
    """The question and the table are two ways to the same facts; connections are in neither."""
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with server, socket.create_connection(server.getsockname()[:2]), server.accept()[0]:
        port = server.getsockname()[1]
        try:
            answered = ask_kernel(family, port)
        except OSError as exc:
            pytest.skip(f"the kernel is not to be asked here: {exc}")
        told = [at for at in parse_table(table.read_text("ascii")) if at.port == port]
        assert answered == told
        assert [at.inode for at in answered] == [os.fstat(server.fileno()).st_ino]
        assert _in_tables(TABLES, host, port) == {at.inode for at in answered}


def test_a_kernel_that_refuses_is_no_kernel_without_listeners() -> None:
    """Taken for an empty answer, a refusal would hide who listens."""
    for kind in (2, 3):  # an error; the end of a list that broke off
        refusal = struct.pack("=IHHIIi", 20, kind, 0, 1, 0, -errno.ENOENT)
        with pytest.raises(OSError, match="No such file") as caught:
            parse_answer(refusal)
        assert caught.value.errno == errno.ENOENT
    assert parse_answer(struct.pack("=IHHIIi", 20, 3, 0, 1, 0, 0)) == ([], True)
    assert parse_answer(b"") == ([], False)


@linux
def test_a_child_of_the_engine_may_hold_the_socket() -> None:
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
    code += "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        url = f"http://127.0.0.1:{int(child.stdout.readline())}"
        assert who_listens(url, pid=os.getpid()) == "engine"
        assert who_listens(url, pid=child.pid) == "engine"
        child.kill()


@linux
def test_a_port_that_is_shared_with_another_process_is_not_the_engines() -> None:
    """llama.cpp's server sets SO_REUSEPORT: the kernel deals its connections out among all."""
    code = "import socket, sys; s = socket.socket(); "
    code += "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); "
    code += "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); print(flush=True); input()"
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        port = mine.getsockname()[1]
        with subprocess.Popen(
            [sys.executable, "-c", code, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout
            other.stdout.readline()
            # Each sees the other's socket: neither has the port for itself.
            assert who_listens(f"http://127.0.0.1:{port}", pid=other.pid) == "other"
            other.kill()
        assert who_listens(f"http://127.0.0.1:{port}", pid=os.getpid()) == "engine"


class _Server(HTTPServer):
    heard: list[str | None]


class _Open(BaseHTTPRequestHandler):
    """Answers everyone, with a name that is not the engine's."""

    server: _Server

    def do_GET(self) -> None:
        self.server.heard.append(self.headers.get("Authorization"))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "another"}]}')

    status = 200

    def log_message(self, *_: object) -> None:
        pass


class _Locked(_Open):
    status = 401


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), request.param) as server:
        server.heard = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(stranger: _Server, listens: Verdict) -> Confirmation:
    return confirm(
        f"http://127.0.0.1:{stranger.server_port}",
        listens=listens,
        health_path="/health",
        nonce="~1234",
        api_key="secret",
    )


@pytest.mark.parametrize("stranger", [_Open, _Locked], indirect=True)
def test_a_stranger_known_by_its_socket_is_asked_nothing(stranger: _Server) -> None:
    seen = ask(stranger, "other")
    assert (seen.verdict, stranger.heard) == ("stranger", [])
    if sys.platform == "linux":
        assert f"process {os.getpid()}" in seen.detail


@pytest.mark.parametrize("stranger", [_Open], indirect=True)
def test_where_nothing_tells_it_is_asked_for_the_name_without_the_key(stranger: _Server) -> None:
    assert ask(stranger, "unknown").verdict == "stranger"
    assert stranger.heard == [None]


@pytest.mark.parametrize("stranger", [_Locked], indirect=True)
def test_where_nothing_tells_and_nobody_answers_without_the_key(stranger: _Server) -> None:
    assert ask(stranger, "unknown").verdict == "stranger"
    assert stranger.heard == [None, "Bearer secret", "Bearer secret"]
