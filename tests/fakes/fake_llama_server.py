"""A llama-server that misbehaves on request: a real child process speaking the recorded protocol.

How it misbehaves comes in the environment variable FAKE as a JSON object, because the command line
is llama-server's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HELP = Path(__file__).parent / "recorded" / "llama-server-help.txt"
FAKE: dict[str, Any] = json.loads(os.environ.get("FAKE", "{}"))


def argument(name: str, default: str = "") -> str:
    """The value behind a flag."""
    words = sys.argv[1:]
    return words[words.index(name) + 1] if name in words else default


class Handler(BaseHTTPRequestHandler):
    """The few answers that the manager asks for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Stay quiet."""

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Health, models, properties."""
        key = os.environ.get("LLAMA_API_KEY")
        if self.path == "/health":
            loading = "never_ready" in FAKE or time.monotonic() < LOADED_AT
            self._send(503 if loading else 200, {"status": "ok"})
        elif key and self.headers.get("Authorization") != f"Bearer {key}":
            self._send(401, {"error": {"code": 401, "message": "Invalid API Key"}})
        elif self.path == "/v1/models":
            names = ["stranger"] if "stranger" in FAKE else argument("--alias").split(",")
            self._send(200, {"object": "list", "data": [{"id": names[0], "aliases": names}]})
        elif self.path == "/slots":
            time.sleep(FAKE.get("slots_delay_s", 0))
            if "drip_slots_s" in FAKE or "endless_slots" in FAKE:
                self._send_without_end()
                return
            self._send(200, [self._slot()])
        elif self.path == "/props":
            self._send(
                200,
                {
                    "total_slots": int(argument("--parallel", "1")),
                    "default_generation_settings": {"n_ctx": FAKE.get("n_ctx", 512)},
                    "chat_template": "{{ messages }}",
                    "chat_template_caps": {"supports_tools": False},
                    "modalities": {"vision": False},
                },
            )
        else:
            self._send(404, {"error": {"code": 404, "message": "File Not Found"}})

    def _slot(self) -> dict[str, object]:
        """Idle, or at work on something whose tokens stand still for a while or for ever."""
        served_s = time.monotonic() - LOADED_AT
        if served_s > FAKE.get("answered_from_s", 1e9):
            return {"id": 0, "is_processing": False, "id_task": 7}
        stuck = (
            served_s >= FAKE.get("stuck_from_s", 1e9) or Path(FAKE.get("stuck_while", "")).is_file()
        )
        if not stuck:
            return {"id": 0, "is_processing": False}
        return {
            "id": 0,
            "is_processing": True,
            "id_task": 7,
            "n_prompt_tokens_processed": 5,
            "next_token": [{"n_decoded": 2}],
        }

    def _send_without_end(self) -> None:
        """A valid beginning, then a byte now and then, or as many as are taken."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        pause_s = FAKE.get("drip_slots_s")
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" " if pause_s else b" " * (1 << 20))
                time.sleep(pause_s or 0)

    def _stream(self, answer: str) -> None:
        """A streamed answer that is wrong in one of many ways."""
        if answer in {"500", "503"}:
            self._send(int(answer), {"error": {"code": int(answer), "message": "no"}})
            return
        self.send_response(200)
        kind = "text/html" if answer == "html" else "text/event-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if answer == "html":
            self.wfile.write(b"<html>It works!</html>")
            return
        whole = "".join(
            "data: " + json.dumps({"choices": [choice]}, ensure_ascii=False) + "\n\n"
            for choice in (
                {"index": 0, "delta": {"content": "naïve 🦙"}, "finish_reason": None},
                {"index": 0, "delta": {"content": " Straße"}, "finish_reason": None},
                {"index": 0, "delta": {}, "finish_reason": "stop"},
            )
        ).encode()
        if answer == "half":
            for byte in whole + b"data: [DONE]\n\n":
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        elif answer == "broken":
            self.wfile.write(whole[:60] + b'\n\ndata: {"choices": [}\n\n')
        elif answer == "cut":
            self.wfile.write(whole[:90])
        else:
            self.wfile.write(whole[:90])
            self.wfile.flush()
            os.kill(os.getpid(), signal.SIGSEGV)

    def _tell(self, body: dict[str, Any]) -> None:
        """A long story, piece by piece; a poisonous prompt kills the engine in the middle of it."""
        asked = body["messages"][-1]["content"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        for number in range(FAKE["story"]):
            choice = {"index": 0, "delta": {"content": f"{asked} {number}. "}}
            data = json.dumps({"choices": [{**choice, "finish_reason": None}]})
            self.wfile.write(f"data: {data}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.02)
            if "poison" in asked and number == 3:
                os.kill(os.getpid(), signal.SIGSEGV)
        data = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.wfile.write(f"data: {data}\n\ndata: [DONE]\n\n".encode())

    def do_POST(self) -> None:
        """Every decoding request gets the same short answer."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        if "record_posts" in FAKE:
            with Path(FAKE["record_posts"]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(body) + "\n")
        if "no_token" in FAKE and body.get("max_tokens") == 1:
            self._send(500, {"error": {"code": 500, "message": "Compute error."}})
            return
        if "story" in FAKE and body.get("stream"):
            self._tell(body)
            return
        if "answer" in FAKE and body.get("stream"):
            self._stream(FAKE["answer"])
            return
        if "flood_on_post_bytes" in FAKE:
            flood(FAKE["flood_on_post_bytes"])
        for number in range(FAKE.get("lines_on_post", 0)):
            say(f"line {number}")
            time.sleep(0.002)
        if "die_on_post" in FAKE:
            os.kill(os.getpid(), signal.SIGSEGV)
        self._send(
            200,
            {
                "choices": [
                    {
                        "index": 0,
                        "text": "Q",
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "Q"},
                    }
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                "input_tokens": 1,
            },
        )


def is_taken(port: int) -> bool:
    """Whether a server listens there."""
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def say(text: str) -> None:
    """One line on the log."""
    print(text, file=sys.stderr, flush=True)


def flood(size_bytes: int) -> None:
    """So much on the log."""
    line = b"x" * 1023 + b"\n"
    for _ in range(size_bytes // len(line)):
        sys.stderr.buffer.write(line)
    sys.stderr.flush()


def misbehave_at_start() -> None:
    """What keeps it from ever listening."""
    if "ignore_sigterm" in FAKE:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in FAKE.get("say", ()):
        say(line)
    if "grandchild" in FAKE:
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
        )
        Path(FAKE["grandchild"]).write_text(str(child.pid))
    if "flood_bytes" in FAKE:
        flood(FAKE["flood_bytes"])
    if "signal" in FAKE:
        os.kill(os.getpid(), getattr(signal, FAKE["signal"]))
    if "exit" in FAKE:
        sys.exit(FAKE["exit"])
    if "exit_once" in FAKE:  # fails on every start but the first
        marker = Path(FAKE["exit_once"])
        if marker.exists():
            sys.exit(FAKE.get("exit_once_code", 9))
        marker.touch()
    if "take_bytes" in FAKE:
        taken = []
        for _ in range(FAKE["take_bytes"] >> 27):
            taken.append(b"x" * (1 << 27))
            time.sleep(0.05)
        signal.pause()
    if "hang" in FAKE:
        while True:
            signal.pause()
    if "busy_s" in FAKE:  # loads for long, in silence, but works
        until = time.monotonic() + FAKE["busy_s"]
        while time.monotonic() < until:
            pass


def take_for_good() -> None:
    """So much memory until the end."""
    taken = b"x" * FAKE["take_bytes_late"]
    say(f"taken {len(taken)}")
    threading.Event().wait()


def main() -> None:
    """Answer --version and --help, or serve."""
    if "--version" in sys.argv:
        say("version: 4242 (fake)\nbuilt with pride")
    elif "--help" in sys.argv:
        print(HELP.read_text("utf-8"))
    elif "--list-devices" in sys.argv:
        print("Available devices:\n" + "\n".join(FAKE.get("devices", ["  (none)"])))
    else:
        misbehave_at_start()
        if "takes_anothers_port" in FAKE:  # says that it listens as soon as another does there
            while not is_taken(int(argument("--port"))):
                time.sleep(0.01)
            say(f"srv          init: listening on http://127.0.0.1:{argument('--port')}")
            signal.pause()
        server = ThreadingHTTPServer(
            (argument("--host", "127.0.0.1"), int(argument("--port", "0"))), Handler
        )
        listening = f"srv          init: listening on http://127.0.0.1:{server.server_port}"
        say("\n".join(["srv          init: model loaded", listening, *FAKE.get("say_late", ())]))
        if "take_bytes_late" in FAKE:  # when it has long been ready
            threading.Timer(2.0, take_for_good).start()
        if "die_after_s" in FAKE:
            signal.setitimer(signal.ITIMER_REAL, FAKE["die_after_s"])
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        server.serve_forever()


LOADED_AT = time.monotonic() + FAKE.get("loading_s", 0)

if __name__ == "__main__":
    main()
