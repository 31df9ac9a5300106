"""A small HTTP server on loopback that speaks the protocol recorded from llama.cpp's server.

Real sockets, no library: what it sends is under the test's control to the byte, and it misbehaves
on request. A :data:`Behaviour` answers one chat request; those given to :meth:`FakeServer.will` are
used up in order, and after them every chat is answered as it should be.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import struct
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

LOOPBACK = Path(__file__).with_name("loopback.pem")
"""A key, and a certificate for 127.0.0.1 that it signed itself; it keeps nothing secret."""

MODEL = "fake-model"
CONTEXT = 256
USAGE = {"completion_tokens": 3, "prompt_tokens": 32, "total_tokens": 35}
TIMINGS = {"cache_n": 31, "prompt_n": 1, "prompt_ms": 3.3, "predicted_n": 3, "predicted_ms": 6.5}
_HEAD = {"created": 1795354021, "id": "chatcmpl-fake", "system_fingerprint": "b0-unknown"}


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Peer:
    """The other end of one connection."""

    def __init__(self, sock: socket.socket, closing: threading.Event) -> None:
        self.sock = sock
        self.closing = closing

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def head(self, status: int, content_type: str, *extra: str) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {content_type}", *extra]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def whole(
        self, status: int, body: bytes, content_type: str = "application/json", *extra: str
    ) -> None:
        self.head(status, content_type, f"Content-Length: {len(body)}", *extra)
        self.send(body)

    def open_stream(self) -> None:
        self.head(200, "text/event-stream", "Transfer-Encoding: chunked")

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """End the connection as a killed process does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def hangs_up_within(self, seconds: float) -> bool:
        """Wait for the other side to close the connection."""
        self.sock.settimeout(seconds)
        try:
            return self.sock.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True


Behaviour = Callable[[Peer, Request], None]


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def piece(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """A chunk with one piece of the answer, as llama.cpp sends it."""
    choice = {"finish_reason": reason, "index": 0, "delta": delta}
    return {"choices": [choice], **_HEAD, "model": MODEL, "object": "chat.completion.chunk"}


def closing_chunks(reason: str = "stop") -> list[dict[str, Any]]:
    usage = {"usage": USAGE, "timings": TIMINGS}
    return [piece({}, reason), {**piece({}), "choices": [], **usage}]


def events_of(pieces: Sequence[str], reason: str = "stop") -> list[bytes]:
    """A whole streamed answer, event by event."""
    opening = piece({"role": "assistant", "content": None})
    chunks = [opening, *(piece({"content": text}) for text in pieces), *closing_chunks(reason)]
    return [*(event(chunk) for chunk in chunks), b"data: [DONE]\n\n"]


def says(*pieces: str, reason: str = "stop", message: dict[str, Any] | None = None) -> Behaviour:
    """Answer, streamed or whole as asked."""

    def behave(peer: Peer, request: Request) -> None:
        if request.body.get("stream"):
            streams(*events_of(pieces, reason))(peer, request)
            return
        content = message or {"role": "assistant", "content": "".join(pieces)}
        choice = {"finish_reason": reason, "index": 0, "message": content}
        whole = {"choices": [choice], **_HEAD, "model": MODEL, "object": "chat.completion"}
        body = json.dumps({**whole, "usage": USAGE, "timings": TIMINGS}).encode()
        peer.whole(200, body)

    return behave


def streams(*chunks: bytes, end: bool = True) -> Behaviour:
    """Stream exactly these bytes, each as one HTTP chunk."""

    def behave(peer: Peer, request: Request) -> None:
        peer.open_stream()
        for chunk in chunks:
            peer.chunk(chunk)
        if end:
            peer.end_stream()

    return behave


def byte_by_byte(*pieces: str) -> Behaviour:
    """Answer with one byte in each HTTP chunk, so that every character is cut."""
    whole = b"".join(events_of(pieces))
    return streams(*(bytes([byte]) for byte in whole))


def refuses(status: int, body: object = None, *headers: str) -> Behaviour:
    """Answer with a status and a JSON body."""
    encoded = b"" if body is None else json.dumps(body).encode()
    return lambda peer, request: peer.whole(status, encoded, "application/json", *headers)


def sends(body: bytes, content_type: str = "application/json") -> Behaviour:
    """Answer 200 with these bytes."""
    return lambda peer, request: peer.whole(200, body, content_type)


def cuts_before_answering(peer: Peer, request: Request) -> None:
    """Die with the request in hand."""
    peer.reset()


def cuts_after(*pieces: str) -> Behaviour:
    """Die in the middle of a streamed answer."""

    def behave(peer: Peer, request: Request) -> None:
        streams(*events_of(pieces)[: len(pieces) + 1], end=False)(peer, request)
        peer.send(b"f")  # the beginning of a chunk that never comes
        # Let what was sent arrive: a reset takes unread bytes away from the receiver.
        peer.sock.shutdown(socket.SHUT_WR)

    return behave


@dataclass
class Stalls:
    """Say this much, then nothing (or only comments) until the other side hangs up."""

    pieces: tuple[str, ...] = ()
    comment_every_s: float | None = None
    answers: bool = True
    hung_up: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __call__(self, peer: Peer, request: Request) -> None:
        if self.answers:
            streams(*events_of(self.pieces)[: len(self.pieces) + 1], end=False)(peer, request)
        self.begun.set()
        while not peer.closing.is_set():
            if peer.hangs_up_within(self.comment_every_s or 0.05):
                self.hung_up.set()
                return
            if self.comment_every_s:
                try:
                    peer.chunk(b": ping\n\n")
                except OSError:
                    self.hung_up.set()
                    return


class FakeServer:
    """The server. A context manager; every thread and socket ends with it.

    Args:
        llama_cpp: Whether it has what llama.cpp's server has beyond OpenAI's API.
        llguidance: Whether it compiles llguidance grammars, refuses them, or ignores them.
        tools: Whether its model's template knows tools.
        prompt_end: How its template begins the model's turn; None for a template that knows nothing
            of thoughts.
        separates: Whether it keeps thoughts apart from the text.
        api_key: The key it asks for.
        listed: The models it lists.
        slots: How many requests it says to work on at once.
        tls: Whether it speaks TLS, with the certificate of ``LOOPBACK``.
    """

    def __init__(
        self,
        *,
        llama_cpp: bool = True,
        llguidance: Literal["compiled", "refused", "ignored"] = "compiled",
        tools: bool = False,
        prompt_end: str | None = None,
        separates: bool = False,
        api_key: str | None = None,
        listed: Sequence[str] = (MODEL,),
        slots: int = 4,
        tls: bool = False,
    ) -> None:
        self.llama_cpp = llama_cpp
        self.llguidance = llguidance
        self.tools = tools
        self.prompt_end = prompt_end
        self.separates = separates
        self.api_key = api_key
        self.listed = list(listed)
        self.slots = slots
        self.healthy = True
        self.stalling: set[str] = set()
        """Paths that are never answered."""
        self.requests: list[Request] = []
        self._script: deque[Behaviour] = deque()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if self._tls is not None:
            self._tls.load_cert_chain(LOOPBACK)
        self.url = f"http{'s' * tls}://127.0.0.1:{self._listener.getsockname()[1]}"

    def will(self, *behaviours: Behaviour) -> None:
        """Answer the next chat requests so."""
        self._script.extend(behaviours)

    @property
    def chats(self) -> list[Request]:
        """The chat requests that arrived."""
        return [each for each in self.requests if each.path == "/v1/chat/completions"]

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a connection of the fake server did not end"

    def _begin(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            try:
                if self._tls is not None:
                    sock = stack.enter_context(self._tls.wrap_socket(sock, server_side=True))
                request = _read(sock)
                if request is not None:
                    self.requests.append(request)
                    self._answer(Peer(sock, self._closing), request)
            except OSError:
                return  # the client left

    def _answer(self, peer: Peer, request: Request) -> None:
        given = request.headers.get("authorization")
        if self.api_key is not None and given != f"Bearer {self.api_key}":
            error = {"message": "Invalid API Key", "type": "authentication_error", "code": 401}
            peer.whole(401, json.dumps({"error": error}).encode())
        elif request.path in self.stalling:
            Stalls(answers=False)(peer, request)
        elif request.path == "/v1/chat/completions":
            self._chat(peer, request)
        else:
            status, body = self._other(request)
            peer.whole(status, json.dumps(body).encode())

    def _chat(self, peer: Peer, request: Request) -> None:
        grammar = request.body.get("grammar", "")
        if request.body["messages"] == [{"role": "user", "content": "."}]:  # a client's probe
            if "</think>" in grammar:
                apart = {"content": "z", "reasoning_content": "q"}
                message = {"role": "assistant", **(apart if self.separates else {"content": "qz"})}
                says(message=message)(peer, request)
                return
            if self.llguidance != "refused":
                said = '"' if self.llguidance == "compiled" else "The"
                says(said, reason="length")(peer, request)
            else:
                error = {"code": 400, "message": "failed to parse grammar", "type": "invalid"}
                peer.whole(400, json.dumps({"error": error}).encode())
            return
        assert self.llguidance == "compiled" or "%llguidance" not in grammar
        behaviour = self._script.popleft() if self._script else says("I", "'m", " glad")
        behaviour(peer, request)

    def _other(self, request: Request) -> tuple[int, object]:
        body = request.body
        missing = {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
        match request.path:
            case "/v1/models":
                return 200, {"object": "list", "data": [{"id": name} for name in self.listed]}
            case "/v1/embeddings":
                vectors = [_vector(text) for text in body["input"]]
                if body.get("encoding_format") == "base64":
                    made: list[Any] = [base64.b64encode(array("f", v)).decode() for v in vectors]
                else:
                    made = vectors
                data = [{"index": i, "embedding": vector} for i, vector in enumerate(made)]
                usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
                return 200, {"data": data[::-1], "usage": usage}
            case _ if not self.llama_cpp:
                return 404, missing
            case "/health":
                loading = {"error": {"message": "Loading model", "code": 503}}
                return (200, {"status": "ok"}) if self.healthy else (503, loading)
            case "/props":
                caps = {"supports_tools": self.tools, "supports_tool_calls": self.tools}
                return 200, {
                    "default_generation_settings": {"n_ctx": CONTEXT},
                    "total_slots": self.slots,
                    "modalities": {"vision": False},
                    "endpoint_slots": True,
                    "endpoint_metrics": True,
                    "chat_template_caps": caps,
                    "chat_template": "" if self.prompt_end is None else "<think></think>",
                }
            case "/apply-template":
                return 200, {"prompt": f"user: {self.prompt_end or ''}"}
            case "/tokenize":
                return 200, {"tokens": list(range(len(body["content"].split())))}
            case "/v1/chat/completions/input_tokens":
                words = sum(len(message["content"].split()) for message in body["messages"])
                return 200, {"input_tokens": words + 10}
        return 404, missing


def _vector(text: str) -> list[float]:
    """Two numbers that tell texts apart; not of unit length, as llama-cpp-python's are not."""
    return [float(len(text)), float(sum(text.encode()) % 97 + 1)]


def _read(sock: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part or part.startswith(b"\x16\x03"):  # a TLS greeting
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        part = sock.recv(65536)
        if not part:
            return None
        body += part
    method, path, _ = first.split(" ")
    return Request(method, path, headers, json.loads(body) if body else None)
