"""Engine commands, their output, and the choice among them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.engines.base import Device, EngineCapabilities, EngineInfo, LaunchSpec
from runtime.engines.commands.llama_cpp_python import llama_cpp_python_command, nonce_name
from runtime.engines.commands.llama_server import llama_server_command
from runtime.engines.commands.xllamacpp import xllamacpp_command
from runtime.engines.detect import choose, engines, place
from runtime.engines.llama_server import LlamaServerEngine
from runtime.engines.output import listed_devices, read_host_line, read_log_line
from runtime.errors import ConfigError, EngineNotInstalledError, LLMCapabilityError
from runtime.settings import ServerConfig
from tests.unit.some_launch import FLAGS, SPEC

if TYPE_CHECKING:
    from runtime.engines.base import EngineCommand, EngineKind, LogFacts

BINARY = Path("/opt/llama-server")


def pairs(command: EngineCommand) -> str:
    return " ".join(command.argv)


def test_the_context_is_multiplied_by_the_slots() -> None:
    """ctx_size is per request; the engines divide the whole among their slots."""
    xllamacpp = json.loads(xllamacpp_command(SPEC, python="python", host=Path("h.py")).stdin)
    assert (xllamacpp["n_ctx"], xllamacpp["n_parallel"]) == (4000, 4)
    native = pairs(llama_server_command(SPEC, binary=BINARY, flags=FLAGS))
    assert "--ctx-size 4000 --parallel 4" in native
    single = llama_cpp_python_command(SPEC, python="python", host=Path("h.py"))
    assert json.loads(single.stdin)["N_CTX"] == "1000"
    assert any("one request at a time" in note for note in single.notes)


@pytest.mark.parametrize("kind", ["xllamacpp", "llama-server", "llama-cpp-python"])
def test_no_secret_on_any_command_line(kind: EngineKind) -> None:
    command = {
        "xllamacpp": lambda: xllamacpp_command(SPEC, python="python", host=Path("h.py")),
        "llama-server": lambda: llama_server_command(SPEC, binary=BINARY, flags=FLAGS),
        "llama-cpp-python": lambda: llama_cpp_python_command(
            SPEC, python="python", host=Path("h.py")
        ),
    }[kind]()
    assert "secret-key" not in pairs(command)
    assert "secret-key" in json.dumps([command.stdin.decode(), dict(command.env)])


def test_native_flags_are_those_that_its_help_lists() -> None:
    command = llama_server_command(SPEC, binary=BINARY, flags=FLAGS)
    used = {word for word in command.argv if word.startswith("--")}
    assert used <= FLAGS
    assert {"--pooling", "--cache-type-v", "--cors-origins", "--offline", "--embeddings"} <= used
    assert "--cache-type-k" not in used, "a default needs no flag"
    assert command.notes == ()


def test_an_older_build_does_without_what_it_can_and_says_so() -> None:
    old = FLAGS - {"--offline", "--no-ui", "--no-webui", "--cors-origins", "--no-kv-unified"}
    command = llama_server_command(SPEC, binary=BINARY, flags=old)
    assert not {"--offline", "--no-ui"} & set(command.argv)
    assert any("--offline" in note for note in command.notes)


def test_what_was_asked_for_and_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="--pooling"):
        llama_server_command(SPEC, binary=BINARY, flags=FLAGS - {"--pooling"})
    with pytest.raises(ConfigError, match="--frobnicate"):
        llama_server_command(
            replace(SPEC, extra_args=("--frobnicate",)), binary=BINARY, flags=FLAGS
        )


def test_xllamacpp_extra_args_are_pairs() -> None:
    spec = replace(SPEC, extra_args=("n_batch=64", "chat_template=text", "warmup=false"))
    params = json.loads(xllamacpp_command(spec, python="python", host=Path("h.py")).stdin)
    assert (params["n_batch"], params["chat_template"], params["warmup"]) == (64, "text", False)
    with pytest.raises(ConfigError, match="name=value"):
        xllamacpp_command(replace(SPEC, extra_args=("--x",)), python="p", host=Path("h"))


def test_llama_cpp_python_refuses_what_it_lacks() -> None:
    with pytest.raises(ConfigError, match="mmproj"):
        llama_cpp_python_command(
            replace(SPEC, mmproj=Path("/p.gguf")), python="python", host=Path("h.py")
        )
    command = llama_cpp_python_command(SPEC, python="python", host=Path("h.py"))
    settings = json.loads(command.stdin)
    assert settings["INTERRUPT_REQUESTS"] == "false"
    assert settings["MODEL_ALIAS"] == nonce_name(SPEC)
    assert settings["TYPE_V"] == "8"
    assert dict(command.env) == dict(SPEC.env), "the key least of all"


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("0.00.597.488 I srv          init: listening on http://127.0.0.1:34587", 34587),
        ("main: server is listening on http://127.0.0.1:8080 - starting the main loop", 8080),
        ("INFO:     Uvicorn running on http://127.0.0.1:4100 (Press CTRL+C to quit)", 4100),
        ("listening on http://127.0.0.1:8099I srv  another line broke in", None),
        ("srv: model loaded", None),
    ],
)
def test_the_listening_line_of_each_engine(line: str, url: int | None) -> None:
    facts: LogFacts | None = read_log_line(line)
    assert (facts.base_url if facts else None) == (url and f"http://127.0.0.1:{url}")


def test_only_the_host_s_own_word_tells_where_xllamacpp_listens() -> None:
    """The library's line may have run into the next one: port 42033 read as 420330."""
    assert read_host_line("srv init: listening on http://127.0.0.1:420330.00.889 I srv") is None
    facts = read_host_line('0.00.5 I srv  in@llama-runtime {"base_url": "http://127.0.0.1:42033"}')
    assert facts
    assert facts.base_url == "http://127.0.0.1:42033"
    loading = read_host_line('@llama-runtime {"version": "1", "devices": [{"name": "CPU"}]}')
    assert loading
    assert (loading.version, loading.base_url, len(loading.devices)) == ("1", None, 1)


def test_what_the_engine_may_keep_is_bounded() -> None:
    spec = replace(SPEC, prompt_cache_bytes=100 << 20, checkpoints=3)
    params = json.loads(xllamacpp_command(spec, python="p", host=Path("h")).stdin)
    assert (params["cache_ram_mib"], params["n_ctx_checkpoints"]) == (100, 3)
    native = pairs(llama_server_command(spec, binary=BINARY, flags=FLAGS))
    assert "--cache-ram 100 --slot-prompt-similarity 0.0 --ctx-checkpoints 3" in native
    assert params["slot_prompt_similarity"] == 0.0, "else those that begin alike share one slot"
    without = replace(SPEC, prompt_cache_bytes=0)
    params = json.loads(xllamacpp_command(without, python="p", host=Path("h")).stdin)
    assert "slot_prompt_similarity" not in params, "there are no copies to be looked for"


def test_offloaded_layers_and_devices_are_read() -> None:
    facts = read_log_line("load_tensors: offloaded 20/31 layers to GPU")
    assert facts
    assert (facts.layers_offloaded, facts.layers_total) == (20, 31)
    listed = listed_devices(
        "ggml_cuda_init: found 1 CUDA devices:\nAvailable devices:\n"
        "  CUDA0: NVIDIA GeForce RTX 4090 (24217 MiB, 23735 MiB free)\n"
    )
    assert [(d.name, d.kind, d.memory_total_bytes) for d in listed] == [
        ("CUDA0", "gpu", 24217 << 20)
    ]
    assert listed_devices("Available devices:\n  (none)\n") == ()


class Stub:
    """An engine that is only looked at."""

    health_path = "/health"

    def __init__(self, kind: EngineKind, *, installed: bool = True, gpu: bool = False) -> None:
        self.kind: EngineKind = kind
        gpus = (Device(name="CUDA0", kind="gpu", description="RTX"),) if gpu else ()
        self.info = EngineInfo(
            kind=kind,
            installed=installed,
            version="1",
            devices=(Device(name="CPU", kind="cpu"), *gpus),
            problem=None if installed else "not here",
            install_hint=f"install {kind}",
        )

    def inspect(self, *, devices: bool = False, timeout_s: float = 30.0) -> EngineInfo:
        return self.info if devices else replace(self.info, devices=())

    def command(self, spec: LaunchSpec) -> EngineCommand:
        raise AssertionError

    def served_name(self, spec: LaunchSpec) -> str:
        raise AssertionError

    def read_line(self, line: str) -> LogFacts | None:
        raise AssertionError


def stubs(**gpu: bool) -> list[Stub]:
    return [
        Stub("xllamacpp", gpu=gpu.get("x", False)),
        Stub("llama-server", gpu=gpu.get("n", False)),
    ]


def test_a_binary_that_is_named_comes_first() -> None:
    config = ServerConfig(engine_path="/opt/llama-server")
    choice = choose(config, gpu_present=False, candidates=stubs())
    assert choice.engine.kind == "llama-server"
    assert choice.why == "engine_path names its binary"


def test_auto_takes_the_engine_that_can_use_the_gpu() -> None:
    choice = choose(ServerConfig(), gpu_present=True, candidates=stubs(n=True))
    assert choice.engine.kind == "llama-server"
    assert "CUDA0" in choice.why


def test_auto_takes_xllamacpp_without_a_gpu_and_the_next_when_it_is_missing() -> None:
    assert choose(ServerConfig(), gpu_present=False, candidates=stubs()).engine.kind == "xllamacpp"
    missing = [Stub("xllamacpp", installed=False), Stub("llama-server")]
    choice = choose(ServerConfig(), gpu_present=False, candidates=missing)
    assert choice.engine.kind == "llama-server"


def test_auto_stays_on_the_cpu_when_told_to() -> None:
    choice = choose(ServerConfig(device="cpu"), gpu_present=True, candidates=stubs(n=True))
    assert choice.engine.kind == "xllamacpp"


def test_no_engine_at_all_says_how_to_get_one() -> None:
    with pytest.raises(EngineNotInstalledError, match="not here") as caught:
        choose(ServerConfig(), gpu_present=False, candidates=[Stub("xllamacpp", installed=False)])
    assert "install xllamacpp" in str(caught.value)


def test_a_named_engine_that_is_missing_is_not_replaced() -> None:
    with pytest.raises(EngineNotInstalledError) as caught:
        choose(
            ServerConfig(engine="llama-server"),
            gpu_present=False,
            candidates=[Stub("xllamacpp"), Stub("llama-server", installed=False)],
        )
    assert caught.value.engine == "llama-server"


def test_placement_tells_why() -> None:
    gpu = Stub("xllamacpp", gpu=True).info
    cpu = Stub("xllamacpp").info
    assert place(ServerConfig(), gpu, gpu_present=True).gpu_layers == -1
    assert place(ServerConfig(gpu_layers=7), gpu, gpu_present=True).gpu_layers == 7
    assert place(ServerConfig(gpu_layers="all"), gpu, gpu_present=True).gpu_layers > 1000
    assert place(ServerConfig(device="cpu"), gpu, gpu_present=True).gpu_layers == 0
    silent = place(ServerConfig(), cpu, gpu_present=True)
    assert silent.gpu_layers == 0
    assert "although" in silent.why
    with pytest.raises(LLMCapabilityError, match="built without"):
        place(ServerConfig(device="gpu"), cpu, gpu_present=True)
    with pytest.raises(LLMCapabilityError, match="shows no GPU"):
        place(ServerConfig(gpu_layers=3), cpu, gpu_present=False)


def test_the_native_binary_is_asked_once_and_remembered(fake_binary: Path, tmp_path: Path) -> None:
    engine = LlamaServerEngine(str(fake_binary))
    info = engine.inspect()
    assert info.installed
    assert info.version == "4242 (fake)"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    info = LlamaServerEngine(str(broken)).inspect()
    assert not info.installed
    assert info.problem
    assert "library" in info.problem
    assert not LlamaServerEngine(str(tmp_path / "none")).inspect().installed


def test_a_program_that_is_no_llama_server_is_recognised(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho I am something else\n")
    other.chmod(0o755)
    info = LlamaServerEngine(str(other)).inspect()
    assert not info.installed
    assert "no llama-server" in (info.problem or "")


def test_engines_are_found_in_order_of_preference() -> None:
    assert [e.kind for e in engines(ServerConfig())] == [
        "xllamacpp",
        "llama-server",
        "llama-cpp-python",
    ]
    assert EngineCapabilities().embeddings is None, "nothing is assumed"
