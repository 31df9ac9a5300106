"""The doctor against real faults: each is named, with its remedy, in under five seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from click.testing import CliRunner
from filelock import FileLock

from runtime.cli.doctor import doctor as doctor_command
from runtime.doctor import CHECKS, examine, site, write_bundle
from runtime.errors import LLMCapabilityError, LLMInvalidRequestError
from runtime.server import registry
from runtime.settings import directories, private_folder
from runtime.store.records import FileRecord, ModelRecord, file_record, write_record
from runtime.testing.tiny_model import TinyShape, build_tiny_model
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runtime.doctor import Finding

pytestmark = [pytest.mark.outside, pytest.mark.process]

LIMIT_S = 5.0
# These start children; a fault elsewhere does not need them.
CHILDREN = {"engines", "packages"}


@pytest.fixture(autouse=True)
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment and models that the doctor would rightly name."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(
            (
                "OMP_",
                "GOMP_",
                "KMP_",
                "GGML_",
                "LLAMA_S",
                "AIP_",
                "LD_PRELOAD",
                "SSL_CERT",
                "REQUE",
                "XDG_",
                "HF_",
            )
        ):
            monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("LLAMA_RUNTIME_PORT", str(free.getsockname()[1]))


def look(
    *ids: str,
    model: str | None = None,
    root: Path = Path("/"),
    patience_s: float = 4.0,
    full: bool = False,
) -> tuple[Finding, ...]:
    """Examine the machine: the checks of that name, or all that start no children."""
    began_s = time.monotonic()
    findings = examine(
        site(
            build_model=build_tiny_model, model=model, patience_s=patience_s, full=full, root=root
        ),
        [check for check in CHECKS if (check.id in ids if ids else check.id not in CHILDREN)],
    )
    assert time.monotonic() - began_s < LIMIT_S
    return findings


def named(findings: tuple[Finding, ...], *only: str) -> Finding:
    """The finding of the first of those names; nothing but these is wrong."""
    wrong = {finding.id: finding for finding in findings if finding.status != "ok"}
    # Engines that other runs of these tests leave for a moment are none of this one's.
    strangers = {"state.orphans"} - set(only)
    assert set(wrong) - strangers == set(only), wrong
    finding = wrong[only[0]]
    assert finding.remedy
    return finding


def test_a_healthy_machine_is_called_healthy() -> None:
    findings = look(*(check.id for check in CHECKS))
    found = {finding.id: finding for finding in findings}
    assert not [finding for finding in findings if finding.status == "fail"]
    assert not [f for f in findings if f.status != "ok" and f.id.startswith(("gen", "disk"))]
    assert "a token after" in found["generation.xllamacpp"].found
    assert found["engine"].found.startswith("takes xllamacpp")
    assert {"python", "packages", "memory", "disk.cache", "port", "model"} <= set(found)


# --- settings and environment ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "id_", "said", "remedy"),
    [
        ({"LLAMA_RUNTIME_THREDS": "2"}, "settings", "THREDS", "LLAMA_RUNTIME_THREADS"),
        ({"LLAMA_RUNTIME_CTX_SIZE": "many"}, "settings", "ctx_size", "serve --help"),
        (
            {"LLAMA_RUNTIME_DEVICE": "cpu", "LLAMA_RUNTIME_GPU_LAYERS": "all"},
            "settings",
            "contradict",
            "Leave out one",
        ),
        (
            {"LLAMA_SERVER_ROUTER_PORT": "1"},
            "environment.engine",
            "LLAMA_SERVER_ROUTER_PORT",
            "unset LLAMA_SERVER_ROUTER_PORT",
        ),
        (
            {"GGML_CUDA_FORCE_MMQ": "1"},
            "environment.ggml",
            "GGML_CUDA_FORCE_MMQ",
            "unset GGML_CUDA_FORCE_MMQ",
        ),
        (
            {"OMP_PROC_BIND": "true"},
            "environment.openmp",
            "OMP_PROC_BIND=true",
            "unset OMP_PROC_BIND",
        ),
        (
            {"SSL_CERT_FILE": "/nowhere/ca.pem"},
            "environment.certificates",
            "/nowhere/ca.pem",
            "unset SSL_CERT_FILE",
        ),
        (
            {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere", "LLAMA_RUNTIME_MODEL": "qwen3-4b"},
            "environment.offline",
            "qwen3-4b is not on this machine",
            "models pull qwen3-4b",
        ),
        ({"HF_ENDPOINT": "hub.example"}, "environment.hub", "HF_ENDPOINT", "unset HF_ENDPOINT"),
        (
            {"HTTP_PROXY": "http://proxy.example:3128"},
            "proxy.loopback",
            "lacks 127.0.0.1 and localhost",
            "export NO_PROXY=127.0.0.1,localhost",
        ),
        (
            {"https_proxy": "proxy.example:port"},
            "proxy.address",
            "HTTPS_PROXY is no address",
            "unset HTTPS_PROXY",
        ),
        (
            {"LLAMA_RUNTIME_LORA": '["/nowhere/lora.gguf"]'},
            "settings",
            "lora names /nowhere/lora.gguf",
            "Correct the path",
        ),
        (
            {"LLAMA_RUNTIME_LOG_DIR": "/dev/null/logs"},
            "disk.logs",
            "/dev/null/logs",
            "Make it writable",
        ),
        ({"TMPDIR": "/nowhere"}, "disk.tmp", "/nowhere", "unset TMPDIR"),
    ],
)
def test_a_variable_that_does_harm_is_named(
    monkeypatch: pytest.MonkeyPatch,
    variables: Mapping[str, str],
    id_: str,
    said: str,
    remedy: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finding = named(look(), id_)
    assert said in finding.found
    assert remedy in (finding.remedy or "")


def test_openmp_may_have_as_many_threads_as_we_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RUNTIME_THREADS", "3")
    monkeypatch.setenv("OMP_THREAD_LIMIT", "3")
    assert look("environment")[0].status == "ok"
    monkeypatch.setenv("OMP_THREAD_LIMIT", "2")
    assert "OMP_THREAD_LIMIT=2" in named(look("environment"), "environment.openmp").found


def test_offline_with_the_model_here_is_fine(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LLAMA_RUNTIME_MODEL", str(tiny_model_path))
    (finding,) = look("environment")
    assert (finding.id, finding.status) == ("environment.offline", "ok")


def test_a_proxy_that_leaves_this_machine_alone_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8, localhost")
    assert look("proxy")[0].status == "ok"


# --- the machine -------------------------------------------------------------------------------


def test_a_memory_limit_is_named(tmp_path: Path) -> None:
    finding = named(look("memory", root=a_root(tmp_path, ("memory.max", "400000000"))), "memory")
    assert "a control group allows 0.37 GiB" in finding.found
    assert "--memory=" in (finding.remedy or "")


def test_less_than_one_processor_is_named(tmp_path: Path) -> None:
    root = a_root(tmp_path, ("cpu.max", "50000 100000"))
    finding = named(look("cpu", root=root), "cpu.threads")
    assert "CPU quota 0.5" in finding.found
    assert "--cpus=" in (finding.remedy or "")


def test_more_threads_than_cores_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RUNTIME_THREADS", "64")
    finding = named(look("cpu", root=a_root(tmp_path)), "cpu.threads")
    assert "threads=64 is more" in finding.found
    assert "set 4" in (finding.remedy or "")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AVX2 is of x86")
def test_a_processor_without_avx2_is_named(tmp_path: Path) -> None:
    root = a_root(tmp_path, flags="fpu sse4_2 avx")
    finding = named(look("cpu", root=root), "cpu.instructions")
    assert "AVX2" in finding.found
    assert "--no-binary xllamacpp" in (finding.remedy or "")


def test_swapping_is_named(tmp_path: Path) -> None:
    root = a_root(tmp_path, available_kb=900_000, swap_free_kb=10)
    finding = named(look("memory", root=root), "memory.swap")
    assert "memory is short" in finding.found


def test_a_low_limit_of_open_files_is_named() -> None:
    import resource  # noqa: PLC0415 - not on Windows

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        finding = named(look("limits"), "limits")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "open files 200" in finding.found
    assert "ulimit -n 4096" in (finding.remedy or "")


def a_root(
    tmp_path: Path,
    *group: tuple[str, str],
    flags: str = "fpu avx2",
    available_kb: int = 7_000_000,
    swap_free_kb: int = 1_000_000,
) -> Path:
    """Files of a machine with four cores and 8 GB, in a control group of version 2."""
    files = {
        "sys/devices/system/cpu/online": "0-3",
        "proc/self/status": "Cpus_allowed_list:\t0-3\n",
        "proc/cpuinfo": f"processor : 0\nflags\t\t: {flags}\n",
        "proc/meminfo": f"MemTotal: 8000000 kB\nMemAvailable: {available_kb} kB\n"
        f"SwapTotal: 1000000 kB\nSwapFree: {swap_free_kb} kB\n",
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
        **{f"sys/fs/cgroup/{name}": text for name, text in group},
    }
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "root"


# --- folders and files -------------------------------------------------------------------------


@contextmanager
def a_disk(folder: Path, options: str) -> Iterator[None]:
    """A small disk of its own at ``folder``; only root can have one."""
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("left_bytes", [48_000, 4_000_000])
def test_a_full_disk_is_named(left_bytes: int) -> None:
    """One that takes no more, and one that takes no model any more."""
    with a_disk(directories().cache, "size=8m"):
        (directories().cache / "big").write_bytes(bytes((8 << 20) - left_bytes))
        finding = named(look(), "disk.cache")
    assert finding.status == "fail"
    assert "disk is full" in finding.found
    assert "models rm" in (finding.remedy or "")


def test_a_folder_that_cannot_be_written_is_named() -> None:
    private_folder(directories().cache)
    with a_disk(directories().state, "ro,size=1m"):
        finding = named(look(), "disk.state")
    assert "Read-only file system" in finding.found
    assert "LLAMA_RUNTIME_HOME" in (finding.remedy or "")


def test_a_file_in_the_folders_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LLAMA_RUNTIME_HOME", str(tmp_path / "file"))
    finding = named(look(), "disk.cache", "disk.state")
    assert "Not a directory" in finding.found


@pytest.mark.parametrize("mode", ["0755", "0710"])
def test_a_folder_open_to_others_is_named(mode: str) -> None:
    private_folder(directories().state).chmod(int(mode, 8))
    finding = named(look(), "disk.state")
    assert f"mode {mode}" in finding.found
    assert finding.remedy == f"chmod 700 '{directories().state}'"


def test_a_file_that_others_may_read_is_named() -> None:
    path = private_folder(directories().logs) / "tiny.log"
    path.write_text("")
    path.chmod(0o644)
    assert str(path) in named(look(), "disk.private").found


def test_a_clock_that_was_set_back_is_named() -> None:
    path = private_folder(directories().state) / "written"
    path.touch(0o600)
    tomorrow = time.time() + 3 * 86_400
    os.utime(path, (tomorrow, tomorrow))
    finding = named(look(), "clock")
    assert "3 d ahead" in finding.found
    assert "set-ntp" in (finding.remedy or "")


# --- models ------------------------------------------------------------------------------------


@pytest.fixture
def stored(tiny_model_path: Path) -> tuple[Path, ModelRecord]:
    """A model in the store: its file and its record."""
    folder = private_folder(directories().models / "tiny")
    path = folder / "tiny.gguf"
    shutil.copy(tiny_model_path, path)
    digest = subprocess.run(["sha256sum", path], capture_output=True, check=True, text=True).stdout
    record = ModelRecord(
        name="tiny",
        reference="owner/tiny",
        origin="owner/tiny",
        source="hub",
        files=(file_record(path, digest.split()[0]),),
    )
    write_record(folder, record)
    return path, record


def test_a_whole_model_is_whole(stored: tuple[Path, ModelRecord]) -> None:
    assert stored[0].exists()
    assert [f.found[:14] for f in look("models")] == ["1 in the store"]


def test_a_model_that_was_cut_off_is_named(stored: tuple[Path, ModelRecord]) -> None:
    path, _ = stored
    os.truncate(path, 1000)
    finding = named(look(), "models.damaged")
    assert f"{path} is cut off: 1000 of " in finding.found
    assert finding.remedy == "llama-runtime models pull owner/tiny"


def test_a_changed_byte_is_named(stored: tuple[Path, ModelRecord]) -> None:
    path, _ = stored
    change_a_byte(path)
    assert "its SHA-256 is not" in named(look(), "models.damaged").found


def test_a_changed_byte_of_an_unchanged_time_is_found_in_full(
    stored: tuple[Path, ModelRecord],
) -> None:
    path, record = stored
    change_a_byte(path)
    os.utime(path, ns=(record.files[0].mtime_ns, record.files[0].mtime_ns))
    assert look("models")[0].status == "ok"
    assert "its SHA-256 is not" in named(look("models", full=True), "models.damaged").found


def test_what_is_no_gguf_is_named(stored: tuple[Path, ModelRecord]) -> None:
    """As a hub's error page under the model's name would be, recorded and all."""
    path, record = stored
    path.write_bytes(b"<html>" * 100)
    file = FileRecord(**{**asdict(file_record(path, "")), "sha256": sha256(path)})
    write_record(path.parent, ModelRecord(**{**shallow(record), "files": (file,)}))
    assert "GGUF" in named(look(), "models.damaged").found


def test_a_model_of_another_program_that_was_cut_off_is_named(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "llama.cpp" / "owner_repo_model.gguf"
    path.parent.mkdir()
    path.write_bytes(tiny_model_path.read_bytes()[:-2000])
    monkeypatch.setenv("LLAMA_CACHE", str(path.parent))
    finding = named(look("models", "environment"), "models.foreign")
    assert "of llama.cpp" in finding.found
    assert str(path) in (finding.remedy or "")


def test_a_damaged_record_of_a_model_is_named(stored: tuple[Path, ModelRecord]) -> None:
    record = stored[0].parent / "model.json"
    record.write_text('{"name": "ti')
    finding = named(look(), "models.record")
    assert str(record) in finding.found
    assert f"rm '{record}'" in (finding.remedy or "")


def test_half_a_download_is_named_with_its_size() -> None:
    folder = private_folder(directories().models / "qwen3-4b")
    part = folder / "model.gguf.part"
    part.write_bytes(bytes(1_500_000))
    assert look("models")[0].status == "ok", "one that is arriving is none"
    os.utime(part, (1, time.time() - 10_800))
    finding = named(look(), "models.partial")
    assert "1.5 MB" in finding.found
    assert "untouched for 3 h" in finding.found
    assert "llama-runtime models pull qwen3-4b" in (finding.remedy or "")
    assert f"rm -r '{folder}'" in (finding.remedy or "")


def test_a_context_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build_tiny_model(tmp_path / "vast.gguf", shape=TinyShape(context=1_000_000_000))
    monkeypatch.setenv("LLAMA_RUNTIME_CTX_SIZE", "1000000000")
    finding = named(look("model", model=str(path)), "model")
    assert finding.status == "fail"
    assert "ctx_size" in (finding.remedy or "")


def test_a_model_that_nobody_has_is_named_only_when_it_is_asked_for() -> None:
    assert look("model")[0].status == "ok"
    finding = named(look("model", model="smollm2-153m"), "model")
    assert "smollm2-135m" in (finding.remedy or "")


def test_the_memory_of_a_model_is_told(tiny_model_path: Path) -> None:
    (finding,) = look("model", model=str(tiny_model_path))
    assert "4 slots of 4096 tokens" in finding.found
    assert "KV cache" in finding.found


def change_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path)


def sha256(path: Path) -> str:
    import hashlib  # noqa: PLC0415

    return hashlib.sha256(path.read_bytes()).hexdigest()


def shallow(record: ModelRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


# --- what earlier processes left ---------------------------------------------------------------


def a_record(
    name: str,
    *,
    owner_pid: int,
    engine_pid: int | None = None,
    base_url: str | None = None,
    role: str = "client",
) -> None:
    registry.write(
        registry.ServerRecord(
            name=name,
            role=role,
            owner_pid=owner_pid,
            owner_birth=registry.birth(owner_pid) or "long gone",
            engine_pid=engine_pid,
            engine_birth=registry.birth(engine_pid) if engine_pid else None,
            model="tiny",
            engine="xllamacpp",
            base_url=base_url,
            state="ready",
            started_at=None,
            log_path=None,
        )
    )


def gone_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(10)
    return process.pid


@contextmanager
def a_child(code: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **env}, stdin=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_record_of_a_dead_owner_is_named_and_left_in_place() -> None:
    a_record("1-dead", owner_pid=gone_pid())
    a_record("2-alive", owner_pid=os.getpid())
    finding = named(look(), "state.records")
    assert "1-dead (tiny)" in finding.found
    assert "2-alive" not in finding.found
    assert "llama-runtime ps" in (finding.remedy or "")
    assert registry.path_of("1-dead").exists(), "looking changes nothing"


@pytest.mark.parametrize("recorded", [True, False])
def test_an_engine_without_an_owner_is_named_and_left_alive(recorded: bool) -> None:
    with a_child("input()", **{registry.MARK: "1-dead"}) as engine:
        if recorded:
            a_record("1-dead", owner_pid=gone_pid(), engine_pid=engine.pid)
        wrong = ["state.orphans", "state.records"] if recorded else ["state.orphans"]
        wait_until("it is there", lambda: registry.MARK in psutil.Process(engine.pid).environ())
        finding = named(look(), *wrong)
        assert engine.poll() is None
        assert str(engine.pid) in finding.found.replace(".", " ").split()
        assert str(engine.pid) in (finding.remedy or "").split()


def test_an_engine_under_its_keeper_is_no_orphan(fake_manager: Any) -> None:
    with fake_manager() as manager:
        said = " ".join(f.found for f in look("state") if f.id == "state.orphans")
        assert str(manager.pid) not in said.replace(".", " ").split()


@pytest.mark.parametrize("where", ["facts", "servers"])
def test_a_state_file_that_cannot_be_read_is_named(where: str) -> None:
    dirs = directories()
    folder = private_folder(dirs.cache / "facts" / "gguf" if where == "facts" else dirs.servers)
    path = folder / "broken.json"
    path.write_text('{"key": "va')
    path.chmod(0o600)
    finding = named(look(), "state.files")
    assert str(path) in finding.found
    assert finding.remedy == f"rm '{path}'"
    assert path.exists()


def test_a_lock_that_nobody_holds_is_none() -> None:
    (private_folder(directories().models / ".locks") / "tiny.lock").touch(0o600)
    assert "1 free" in look("locks")[0].found


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists locks")
def test_a_lock_that_a_stopped_process_holds_is_named() -> None:
    folder = private_folder(directories().models / ".locks")
    path = folder / "smollm2-135m.lock"
    code = f"""
from filelock import FileLock
with FileLock({str(path)!r}, mode=0o600):
    print("held", flush=True)
    input()
"""
    with a_child(code) as holder:
        wait_until("it is held", lambda: not is_free(path))
        assert look("locks")[0].found.startswith("1 held")
        holder.send_signal(signal.SIGSTOP)
        wait_until("it stands", lambda: psutil.Process(holder.pid).status() == "stopped")
        finding = named(look(), "locks")
    assert f"process {holder.pid}, which is stopped" in finding.found
    assert f"kill -CONT {holder.pid}" in (finding.remedy or "")


def is_free(path: Path) -> bool:
    if not path.exists():
        return True
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except TimeoutError:
        return False
    lock.release()
    return True


# --- the network -------------------------------------------------------------------------------


def test_a_taken_port_is_named_with_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("LLAMA_RUNTIME_PORT", str(port))
        finding = named(look(), "port")
    assert f"process {os.getpid()} (this process)" in finding.found
    words = (finding.remedy or "").split()
    assert words[:-1] == ["llama-runtime", "serve", "--port"]
    assert int(words[-1]) > port


def test_a_port_of_our_own_server_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("LLAMA_RUNTIME_PORT", str(port))
        a_record("2-alive", owner_pid=os.getpid(), base_url=f"http://127.0.0.1:{port}")
        (finding,) = look("port")
    assert finding.status == "ok"
    assert "2-alive" in finding.found


def test_a_port_that_a_dead_server_had_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("LLAMA_RUNTIME_PORT", str(port))
        a_record("1-dead", owner_pid=gone_pid(), base_url=f"http://127.0.0.1:{port}")
        assert "(this process)" in named(look("port"), "port").found


def test_an_address_of_another_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RUNTIME_HOST", "192.0.2.1")
    finding = named(look("port"), "port")
    assert "192.0.2.1" in finding.found
    assert "unset LLAMA_RUNTIME_HOST" in (finding.remedy or "")


def test_a_loopback_that_is_down_is_named() -> None:
    """In a network of its own, where nothing is up."""
    code = """
from runtime.doctor import CHECKS, examine, site
checks = [check for check in CHECKS if check.id == "loopback"]
print(examine(site(build_model=print), checks)[0])
"""
    apart = ["unshare", "--net", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("no network of its own can be had here")
    done = subprocess.run(
        [*apart, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "status='fail'" in done.stdout
    assert "127.0.0.1 cannot be reached" in done.stdout
    assert "ip link set lo up" in done.stdout


# --- engines -----------------------------------------------------------------------------------


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_old_build_is_named(fake_binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it hangs when it has to generate, for it knows no completions."""
    monkeypatch.setenv("LLAMA_RUNTIME_ENGINE_PATH", str(fake_binary))
    found = {f.id: f for f in look("engines")}
    assert found["engine.llama-server"].status == "warn"
    assert "b4242; CVE-2025-53630" in found["engine.llama-server"].found
    assert "newer" in (found["engine.llama-server"].remedy or "")
    assert found["generation.xllamacpp"].status == "ok"


def test_a_file_that_is_no_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path / "bin", "llama-server", "")
    path.chmod(0o644)
    monkeypatch.setenv("LLAMA_RUNTIME_ENGINE_PATH", str(path))
    finding = named(look("engines"), "engine.llama-server")
    assert f"chmod +x '{path}'" in (finding.remedy or "")
    path.write_bytes(b"\x7fELF of another machine")
    path.chmod(0o755)
    finding = named(look("engines"), "engine.llama-server")
    assert "built for another kind of machine" in (finding.remedy or "")


def test_without_the_means_to_make_a_model_the_smallest_one_here_is_taken(
    stored: tuple[Path, ModelRecord],
) -> None:
    assert stored[0].exists()

    def no_means(_path: Path) -> None:
        raise LLMCapabilityError("Building a model needs the package gguf.")

    checks = [check for check in CHECKS if check.id == "engines"]
    found = {f.id: f for f in examine(site(build_model=no_means), checks)}
    assert "a token after" in found["generation.xllamacpp"].found
    shutil.rmtree(stored[0].parent)
    finding = named(examine(site(build_model=no_means), checks), "generation.xllamacpp")
    assert "needs the package gguf" in finding.found
    assert "llama-runtime[testing]" in (finding.remedy or "")


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        ("kill -ILL $$", "SIGILL", "built for this processor"),
        (
            "echo 'llama-server: error while loading shared libraries: libggml.so: no'; exit 127",
            "a shared library is missing: llama-server: error while loading",
            "ldd ",
        ),
        ("echo I am something else", "it is no llama-server", "install llama.cpp"),
    ],
)
def test_a_broken_binary_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str, remedy: str
) -> None:
    path = script(tmp_path / "bin", "llama-server", text)
    monkeypatch.setenv("LLAMA_RUNTIME_ENGINE_PATH", str(path))
    finding = named(look("engines"), "engine.llama-server")
    assert finding.status == "fail", "the user named it"
    assert str(path) in finding.found
    assert said in finding.found
    assert remedy in (finding.remedy or "")


def test_a_broken_binary_that_nobody_asked_for_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path / "bin", "llama-server", "exit 3")
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    finding = named(look("engines"), "engine.llama-server")
    assert finding.status == "warn"
    assert "it ended with code 3" in finding.found


def test_programs_that_hang_are_named_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine and all GPU tools, each with a child that hangs as well."""
    path = script(tmp_path / "bin", "llama-server", "sleep 100; true")
    for name in ("nvidia-smi", "amd-smi", "rocm-smi", "vulkaninfo"):
        script(tmp_path / "bin", name, "sleep 100; true")
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    findings = look("engines", patience_s=1.8)
    found = {f.id: f for f in reversed(findings)}
    assert found["engine.llama-server"].status == "warn"
    assert "did not answer" in found["engine.llama-server"].found
    assert f"{path} --version" in (found["engine.llama-server"].remedy or "")
    assert found["gpu"].status == "warn"
    assert "nvidia-smi: it gave no answer" in found["gpu"].found
    assert "run nvidia-smi by hand" in (found["gpu"].remedy or "")


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        ({"exit_at_start": 11, "say": "loading"}, "crashed"),
        ({"never_ready": True, "silent": True}, "hangs"),
    ],
)
def test_an_engine_that_answers_but_does_not_serve_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Mapping[str, object], said: str
) -> None:
    """It tells its version and its flags; only the trial shows that it is of no use."""
    recorded = Path(__file__).parent.parent / "fakes" / "recorded" / "llama-server-help.txt"
    serve = "kill -SEGV $$" if "exit_at_start" in fake else "exec sleep 100"
    path = script(
        tmp_path / "bin",
        "llama-server",
        f"""case "$1" in
--version) echo 'version: 11434 (abc)';;
--help) cat '{recorded}';;
--list-devices) ;;
*) {serve};;
esac""",
    )
    monkeypatch.setenv("LLAMA_RUNTIME_ENGINE_PATH", str(path))
    found = {f.id: f for f in look("engines", patience_s=1.6)}
    assert found["engine.llama-server"].status == "ok"
    assert found["generation.llama-server"].status == "fail"
    assert said in found["generation.llama-server"].found
    assert found["generation.llama-server"].remedy


def test_a_wheel_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "xllamacpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libgomp.so.1: cannot open it')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("LLAMA_RUNTIME_ENGINE", "xllamacpp")
    finding = named(look("engines"), "engine.xllamacpp", "engine")
    assert "libgomp.so.1: cannot open it" in finding.found
    assert finding.remedy == "pip install --force-reinstall xllamacpp"


def test_a_gpu_that_no_engine_can_use_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path / "bin", "nvidia-smi", "echo '0, NVIDIA RTX 4000, 20475'")
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    finding = named(look("engines"), "gpu")
    assert finding.found.startswith("NVIDIA RTX 4000 (nvidia-smi) is there, but no engine")


def test_a_package_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h11.py").write_text("import nothing_like_it")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    finding = named(look("packages"), "packages")
    assert "h11 cannot be imported (ModuleNotFoundError" in finding.found
    assert "'h11>=" in (finding.remedy or "")


@pytest.mark.parametrize(
    ("end", "said"),
    [("os.kill(os.getpid(), 11)", "it ended by SIGSEGV"), ("os._exit(0)", "its import ends the")],
)
def test_a_package_whose_import_ends_the_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, said: str
) -> None:
    (tmp_path / "llguidance.py").write_text(f"import os; {end}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    finding = named(look("packages"), "packages")
    assert f"llguidance cannot be imported ({said}" in finding.found


def test_a_package_that_is_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "h11-0.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: h11\nVersion: 0.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = named(look("packages"), "packages")
    assert "h11 is 0.9, and 0.16 or newer is needed" in finding.found
    assert "'h11>=0.16'" in (finding.remedy or "")


# --- the command -------------------------------------------------------------------------------


def doctor(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", "doctor", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
        check=False,
    )


def test_the_command_names_faults_with_their_remedies_and_ends_with_1() -> None:
    """Only a fresh interpreter takes its encoding from the environment."""
    done = doctor(LLAMA_RUNTIME_THREDS="2", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = {line.split()[1]: i for i, line in enumerate(lines) if line[:4] in {"fail", "warn"}}
    assert "LLAMA_RUNTIME_THREDS is not a setting" in lines[at["settings"]]
    remedy = lines[at["settings"] + 1].strip()
    assert remedy == "-> Did you mean LLAMA_RUNTIME_THREADS? Unset it."
    assert "standard output in ascii (by PYTHONIOENCODING)" in lines[at["locale"]]
    assert "unset PYTHONIOENCODING" in lines[at["locale"] + 1]
    assert "1 will not work, 1 may surprise" in done.stderr


def test_a_package_without_which_nothing_starts_is_named(tmp_path: Path) -> None:
    """Not even the doctor: so every command says it."""
    (tmp_path / "click.py").write_text("raise ImportError('libclick.so: cannot open')")
    done = doctor(PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 5
    assert "the package click, which llama-runtime needs, is broken: libclick" in done.stderr
    assert "pip install --force-reinstall click" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_warning_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    done = CliRunner().invoke(doctor_command, ["--json", "--patience", "4"])
    assert done.exit_code == 0
    found = {finding["id"]: finding for finding in json.loads(done.stdout)}
    assert set(found["environment.openmp"]) == {"id", "status", "found", "remedy"}
    assert found["environment.openmp"]["status"] == "warn"


LOG = """@llama-runtime {"version": "1"}
0.00.273.460 I srv    load_model: initializing, n_slots = 2, n_ctx_slot = 1024
0.00.275.394 I srv          init: model loaded
0.00.280.000 E srv    operator(): got exception: {"error": "parse error near 'canary-said'"}
0.00.281.000 I slot launch_slot_: id  1 | prompt: canary-prompt and more
and a second line of it, canary-second
canary-third
[llama-runtime] 2026-01-01T00:00:00Z ended, key canary-key-123456
"""


def test_a_bundle_tells_much_and_betrays_nothing(tmp_path: Path) -> None:
    home = tmp_path / "canaryuser"
    state = home / "llama" / "state"
    (state / "logs").mkdir(parents=True)
    (state / "logs" / "tiny.log").write_text(LOG)
    bundle = tmp_path / "report.zip"
    done = doctor(
        "--bundle",
        str(bundle),
        HOME=str(home),
        USER="canaryuser",
        LLAMA_RUNTIME_HOME=str(home / "llama"),
        LLAMA_RUNTIME_API_KEY="canary-key-123456",
        LLAMA_RUNTIME_ENV='{"MY_THING": "canary-env"',
        LLAMA_RUNTIME_CHAT_TEMPLATE="{{ canary-template }}",
        LLAMA_RUNTIME_STATE="/home/canaryother/logs",
        HF_TOKEN="hf_canaryCanary123",
        HTTP_PROXY="http://canaryname:canarypass@proxy.canary.example:3128",
    )
    assert done.returncode == 1, "the settings cannot be used"
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {"doctor.json", "versions.json", "settings.json", "servers.json"} <= set(members)
    everything = "\n".join([*members, *members.values()])
    assert "canary" not in everything.lower(), everything
    findings = {f["id"]: f for f in json.loads(members["doctor.json"])}
    assert findings["settings"]["status"] == "fail"
    assert json.loads(members["settings.json"])["environment"]["HF_TOKEN"] == "set"
    assert "xllamacpp" in json.loads(members["versions.json"])["packages"]
    assert "n_ctx_slot = 1024" in members["logs/tiny.log"]


def test_a_bundle_tells_of_servers_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the other form of archive; without the words of requests that settings may hold."""
    monkeypatch.setenv("LLAMA_RUNTIME_CHAT_TEMPLATE", "{{ canary }}")
    monkeypatch.setenv("LLAMA_RUNTIME_EXTRA_ARGS", '["--x", "canary", "y=canary"]')
    monkeypatch.setenv("LLAMA_RUNTIME_ENV", '{"A": "canary"}')
    a_record("2-alive", owner_pid=os.getpid())
    where = site(build_model=build_tiny_model)
    bundle = tmp_path / "report.tar.gz"
    write_bundle(bundle, where, ())
    with tarfile.open(bundle) as tar:
        files = {entry.name: tar.extractfile(entry) for entry in tar.getmembers()}
        members = {name: file.read().decode() for name, file in files.items() if file}
    assert "canary" not in "".join(members.values())
    assert json.loads(members["servers.json"])[0]["name"] == "2-alive"
    settings = json.loads(members["settings.json"])["settings"]
    assert settings["extra_args"] == ["--x", "...", "y"]
    assert settings["env"] == ["A"]
    with pytest.raises(LLMInvalidRequestError, match="exists already"):
        write_bundle(bundle, where, ())
    with pytest.raises(LLMInvalidRequestError, match="no kind of archive"):
        write_bundle(tmp_path / "report.txt", where, ())


def test_the_key_is_sent_to_our_own_gateway_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of a living owner may name a port that somebody else has by now."""
    monkeypatch.setenv("LLAMA_RUNTIME_API_KEY", "the-key")
    told: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.append(self.headers.get("Authorization"))
            self.send_response(401)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, a_child("input()") as other:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for name, owner in (("a", os.getpid()), ("b", other.pid)):
                url = f"http://127.0.0.1:{server.server_port}"
                a_record(name, owner_pid=owner, base_url=url, role="serve")
                write_bundle(tmp_path / f"{name}.zip", site(build_model=build_tiny_model), ())
                registry.erase(name)
        finally:
            server.shutdown()
            thread.join()
    assert told == ["Bearer the-key", None]
