"""The command line as a person meets it: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime.server import registry
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.engine, pytest.mark.outside]


def llama(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
        check=False,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@dataclass(frozen=True)
class Serving:
    """A running `serve`."""

    process: subprocess.Popen[bytes]
    port: int
    stdout: Path
    stderr: Path


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Starts `serve` with a model and options; returns once it has said that it is ready."""
    started: list[subprocess.Popen[bytes]] = []

    def start(model: Path, *args: str) -> Serving:
        port = free_port()
        out, err = tmp_path / "serve.out", tmp_path / "serve.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "runtime", "serve", str(model), "--port", str(port),
                 "--ctx-size", "256", *args],
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        started.append(process)
        wait_until("it is ready", lambda: b"Ctrl-C ends it" in err.read_bytes(), timeout_s=40)
        return Serving(process, port, out, err)

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(20)


def get(port: int, path: str, key: str | None = None) -> int:
    """The status of a GET; 0 when nothing answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code
    except OSError:
        return 0


def post(port: int, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def test_serve_answers_and_ctrl_c_ends_everything_within_two_seconds(
    tiny_model_path: Path, serving: Callable[..., Serving]
) -> None:
    served = serving(tiny_model_path)
    answer = post(
        served.port,
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    )
    assert answer["choices"][0]["message"]["role"] == "assistant"
    (record,) = registry.running()
    assert record.role == "serve"
    below = psutil.Process(served.process.pid).children(recursive=True)
    assert below
    began = time.monotonic()
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(10) == 0, "the usual way to end it"
    assert time.monotonic() - began < 2.0
    assert not any(child.is_running() for child in below)
    assert served.stdout.read_bytes() == b"", "stdout is for results"
    err = served.stderr.read_text("utf-8")
    assert f"http://127.0.0.1:{served.port}/v1" in err
    assert "curl " in err
    assert "cpu" in err
    assert "Traceback" not in err
    assert registry.running() == ()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_serve_ends_in_order_by_other_signals(
    tiny_model_path: Path, serving: Callable[..., Serving], number: int
) -> None:
    process = serving(tiny_model_path).process
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.wait(5)
    _, alive = psutil.wait_procs(below, timeout=1)
    assert not alive


def test_ps_logs_and_stop_see_a_server(
    tiny_model_path: Path, serving: Callable[..., Serving]
) -> None:
    served = serving(tiny_model_path)
    process, port = served.process, served.port
    record, engine = json.loads(llama("ps", "--json").stdout)
    assert engine["role"] == "engine"
    assert record["base_url"] == f"http://127.0.0.1:{port}"
    assert record["owner_pid"] == process.pid
    assert str(port) in llama("ps").stdout
    assert len(llama("logs", "-n", "3").stdout.splitlines()) == 3
    assert llama("stop", "nobody").returncode == 2
    stopped = llama("stop", record["model"])
    assert stopped.returncode == 0
    assert process.wait(5) == 0
    assert "No managed server" in llama("ps").stderr


def test_serve_asks_for_the_key_it_is_given(
    tiny_model_path: Path, tmp_path: Path, isolated_home: Path, serving: Callable[..., Serving]
) -> None:
    key = tmp_path / "key"
    key.write_text("canary-0123456789\n")
    served = serving(tiny_model_path, "--api-key-file", str(key))
    process, port = served.process, served.port
    assert get(port, "/snapshot") == 401
    assert get(port, "/snapshot", "canary-0123456789") == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
        assert set(json.load(reply)) == {"status", "instance"}, "no more without the key"
    kept = [path for path in isolated_home.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if b"canary" in path.read_bytes()]
    assert b"canary" not in served.stderr.read_bytes()
    for child in psutil.Process(process.pid).children(recursive=True):
        assert "canary" not in " ".join(child.cmdline())


def test_serve_on_an_open_address_demands_a_key(tiny_model_path: Path) -> None:
    done = llama("serve", str(tiny_model_path), "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "LLAMA_RUNTIME_API_KEY" in done.stderr


def test_two_servers_on_one_port(tiny_model_path: Path, serving: Callable[..., Serving]) -> None:
    port = serving(tiny_model_path).port
    second = llama("serve", str(tiny_model_path), "--port", str(port))
    assert second.returncode == 5
    assert f"Port {port}" in second.stderr
    assert "held by" in second.stderr
    assert get(port, "/health") == 200


def test_run_pipes_well(tiny_model_path: Path) -> None:
    """The answer on stdout, everything else on stderr; the same seed, the same answer."""
    command = ("run", "-m", str(tiny_model_path), "--ctx-size", "256", "--max-tokens", "8")
    first = llama(*command, "--seed", "7", "Say something")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    again = llama(*command, "--seed", "7", stdin="Say something")
    assert again.stdout == first.stdout
    as_json = json.loads(llama(*command, "--json", "Say something").stdout)
    assert as_json["usage"]["completion_tokens"] == 8


def test_run_without_a_prompt_says_how(tiny_model_path: Path) -> None:
    done = llama("run", "-m", str(tiny_model_path))
    assert done.returncode == 2
    assert "no prompt" in done.stderr


def test_chat_reads_lines_until_the_end(tiny_model_path: Path) -> None:
    done = llama(
        "chat", str(tiny_model_path), "--ctx-size", "256", "--max-tokens", "4",
        stdin="Hello\n\nAnd again\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stderr
    assert done.stdout.count("\n") >= 2


def test_embed_prints_a_vector_a_line(tiny_model_path: Path) -> None:
    done = llama("embed", "-m", str(tiny_model_path), "--ctx-size", "256", "one", "two")
    assert done.returncode == 0, done.stderr
    vectors = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(vectors) == 2
    assert abs(sum(x * x for x in vectors[0]) - 1) < 1e-3


def test_engines_tells_what_is_here_and_what_auto_takes() -> None:
    shown = json.loads(llama("engines", "--json").stdout)
    kinds = {engine["kind"]: engine for engine in shown["engines"]}
    assert kinds["xllamacpp"]["installed"]
    assert kinds["xllamacpp"]["devices"][0]["name"] == "CPU"
    assert shown["auto"]["engine"] == "xllamacpp"
    assert shown["auto"]["why"]
    assert "xllamacpp" in llama("engines").stdout


def test_an_engine_with_known_holes_is_warned_about(fake_binary: Path) -> None:
    """The fake calls itself build 4242."""
    named = {"LLAMA_RUNTIME_ENGINE_PATH": str(fake_binary)}
    told = llama("engines", **named)
    assert "llama-server: its llama.cpp is b4242; CVE-2025-53630" in told.stderr
    assert "xllamacpp: its" not in told.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("serve", "smollm2-153m"), 2, "smollm2-135m"),
        (("serve", "/nowhere/model.gguf"), 2, "/nowhere/model.gguf"),
        (("serve", "MODEL", "--ctx-size", "0"), 2, "ctx_size"),
        (("serve", "MODEL", "--device", "gpu", "--gpu-layers", "all"), 7, "GPU"),
        (("serve", "MODEL", "--engine", "llama-server", "--engine-path", "/none"), 5, "install"),
        (("serve", "MODEL", "--frobnicate"), 2, "frobnicate"),
        (("models", "pull", "smollm2-153m"), 2, "smollm2-135m"),
        (("run", "hi", "-m", "TEXT"), 2, "GGUF"),
        (("run", "hi", "-m", "CUT"), 2, "cut off"),
        (("run", "hello " * 400, "-m", "MODEL", "--ctx-size", "256"), 2, "256"),
    ],
)
def test_bad_input_is_a_clear_error_with_a_code(
    tiny_model_path: Path, tmp_path: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "text.gguf").write_text("not a model " * 100)
    whole = tiny_model_path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    named = {
        "MODEL": str(tiny_model_path),
        "TEXT": str(tmp_path / "text.gguf"),
        "CUT": str(tmp_path / "cut.gguf"),
    }
    done = llama(*(named.get(arg, arg) for arg in args), LLAMA_RUNTIME_PORT="0")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unwritable_cache_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = llama("models", "pull", "smollm2-135m", LLAMA_RUNTIME_HOME=str(tmp_path / "file" / "x"))
    assert done.returncode == 5
    assert "LLAMA_RUNTIME_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_traceback_only_on_request(tmp_path: Path) -> None:
    done = llama("run", "hi", "-m", str(tmp_path / "none.gguf"), LLAMA_RUNTIME_DEBUG="1")
    assert "Traceback" in done.stderr


def test_models_list_show_verify_on_a_path(tiny_model_path: Path) -> None:
    shown = json.loads(llama("models", "show", str(tiny_model_path), "--json").stdout)
    assert shown["facts"]["architecture"] == "llama"
    listed = json.loads(llama("models", "list", "--json").stdout)
    assert "smollm2-135m" in {*listed["available"], *(m["name"] for m in listed["models"])}


def test_a_model_s_memory_is_shown_and_what_cannot_fit_is_named(tiny_model_path: Path) -> None:
    shown = json.loads(llama("models", "show", str(tiny_model_path), "--json").stdout)
    assert shown["memory"]["host_bytes"] > 0
    text = llama("models", "show", str(tiny_model_path), "--ctx-size", "auto").stdout
    assert "KV cache" in text
    assert "in all" in text


def test_recommend_puts_what_fits_first() -> None:
    found = json.loads(llama("models", "recommend", "--json").stdout)
    assert len(found) >= 20
    fits = [one["fits"] for one in found]
    assert fits == sorted(fits, reverse=True)


def test_rm_asks_and_tells_what_it_frees(tmp_path: Path, isolated_home: Path) -> None:
    refused = llama("models", "rm", "smollm2-135m")
    assert refused.returncode == 2
    kept = llama("models", "pull", "smollm2-135m")
    assert kept.returncode == 0, kept.stderr
    assert llama("models", "rm", "smollm2-135m", stdin="n\n").returncode == 130
    assert list((isolated_home / "cache" / "models").rglob("*.gguf"))
    removed = json.loads(llama("models", "rm", "smollm2-135m", "--yes", "--json").stdout)
    assert removed["freed_bytes"] > 90_000_000
    assert not list((isolated_home / "cache" / "models").rglob("*.gguf"))


def test_verify_names_a_flipped_byte_and_a_pull_repairs_it(isolated_home: Path) -> None:
    path = llama("models", "pull", "smollm2-135m").stdout.strip()
    assert llama("models", "verify", "smollm2-135m").stdout.startswith("ok")
    with open(path, "r+b") as file:  # noqa: PTH123
        file.seek(50_000_000)
        byte = file.read(1)
        file.seek(50_000_000)
        file.write(bytes([byte[0] ^ 1]))
    found = llama("models", "verify", "smollm2-135m")
    assert found.returncode == 1
    assert f"damaged  {path}" in found.stdout
    assert llama("models", "pull", "smollm2-135m").returncode == 0
    assert llama("models", "verify", "smollm2-135m").returncode == 0


def test_a_reader_that_goes_away_is_no_error(tiny_model_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "runtime", "run", "hi", "-m", str(tiny_model_path),
         "--ctx-size", "256", "--max-tokens", "200"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        process.stdout.close()
        process.wait(20)
        said = process.stderr.read().decode()
    assert "Traceback" not in said
    assert "Defect" not in said
    assert process.returncode in {0, 1}, "0 when all of it had been written before"
