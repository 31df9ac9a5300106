"""Fault battery: damaged model files, and a machine without room. Nothing of it reaches an engine
that the look at the file can keep from it.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from runtime.errors import LLMError, ModelFormatError
from runtime.server.launcher import LOG_MAX_BYTES
from runtime.server.lifecycle import State
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.server.manager import ServerManager
    from tests.conftest import FakeFactory

    Saw = Callable[[object], None]

pytestmark = pytest.mark.process


def refused(manager: ServerManager) -> ModelFormatError:
    """The error of a start that must not get as far as a process."""
    with pytest.raises(ModelFormatError) as caught:
        manager.start()
    assert manager.state is State.FAILED
    assert all(step["event"] != "spawned" for step in manager.snapshot().history)
    return caught.value


@pytest.mark.faults("model cut at every 1/20, to 0 bytes, by 1 byte", "failed", "before any spawn")
def test_every_truncation_is_refused(
    fake_manager: FakeFactory, tiny_model_path: Path, tmp_path: Path, saw: Saw
) -> None:
    whole = tiny_model_path.read_bytes()
    sizes = [0, 1, 4, 23, 24, *(len(whole) * part // 20 for part in range(1, 20)), len(whole) - 1]
    model = tmp_path / "cut.gguf"
    for size in sizes:
        model.write_bytes(whole[:size])
        error = refused(fake_manager(options={"model": str(model)}))
        assert str(model) in error.message, size
    saw(f"{len(sizes)} sizes; the last: {error.message}")


@pytest.mark.parametrize("at", [4, 8, 16])
@pytest.mark.parametrize("value", [0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF])
@pytest.mark.faults("the header lies (version, counts)", "failed", "before any spawn")
def test_a_header_that_lies_is_refused(
    fake_manager: FakeFactory,
    tiny_model_path: Path,
    tmp_path: Path,
    at: int,
    value: int,
    saw: Saw,
) -> None:
    data = bytearray(tiny_model_path.read_bytes())
    if at == 4:
        struct.pack_into("<I", data, at, value & 0xFFFFFFFF)
    else:
        struct.pack_into("<Q", data, at, value)
    model = tmp_path / "lies.gguf"
    model.write_bytes(data)
    saw(refused(fake_manager(options={"model": str(model)})).message)


@pytest.mark.faults("random bytes in the header", "failed or ready", "an LLMError or a start")
def test_noise_in_the_header_never_breaks_us(
    fake_manager: FakeFactory, tiny_model_path: Path, tmp_path: Path, saw: Saw
) -> None:
    """The look at the file ends by itself, with an error of ours or with facts."""
    whole = tiny_model_path.read_bytes()
    chance = random.Random(4)
    model = tmp_path / "noise.gguf"
    outcomes = {"refused": 0, "started": 0}
    for _ in range(12):
        data = bytearray(whole)
        at = chance.randrange(24, 4000)
        data[at : at + 8] = chance.randbytes(8)
        model.write_bytes(data)
        manager = fake_manager(options={"model": str(model)})
        try:
            manager.start()
        except LLMError:
            outcomes["refused"] += 1
        else:
            outcomes["started"] += 1
            manager.stop()
    saw(outcomes)


@pytest.mark.parametrize(
    "page", ["<!DOCTYPE html><html>Not Found</html>", "version https://git-lfs"]
)
@pytest.mark.faults("a web page saved as .gguf", "failed", "says what it is")
def test_a_web_page_is_no_model(
    fake_manager: FakeFactory, tmp_path: Path, page: str, saw: Saw
) -> None:
    model = tmp_path / "page.gguf"
    model.write_text(page * 100)
    saw(refused(fake_manager(options={"model": str(model)})).message)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own at ``folder``, where this user may mount one."""
    folder.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: IO[bytes]) -> None:
    """Write until the disk takes no more."""
    with contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(OSError, match="space"):
        file.write(b"x" * 4096)


@pytest.mark.faults("disk full", "ready", "the log and the record are lost, the engine is not")
def test_a_full_disk_does_not_stop_the_engine(
    fake_manager: FakeFactory, isolated_home: Path, saw: Saw
) -> None:
    with small_disk(isolated_home, "64k"):
        (isolated_home / "state").mkdir(mode=0o700)
        with (isolated_home / "filler").open("wb", buffering=0) as filler:
            fill(filler)
        manager = fake_manager(flood_bytes=1 << 20).start()
        assert manager.health().ok
        assert manager.logs(), "the tail is in memory"
        first = manager.pid
        assert first
        os.kill(first, 9)
        wait_until("it is ready again", lambda: manager.pid not in {None, first})
        assert manager.endpoint(10)
        saw(f"{manager.state}, notes {manager.snapshot().notes}")
        manager.stop()


@pytest.mark.faults("read-only home and cache", "ready", "a note: no log file")
def test_a_read_only_home(fake_manager: FakeFactory, isolated_home: Path, saw: Saw) -> None:
    with small_disk(isolated_home, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(isolated_home)], check=True)
        manager = fake_manager().start()
        assert manager.health().ok
        notes = manager.snapshot().notes
        assert any("no log file" in note for note in notes)
        saw(notes)
        manager.stop()


@pytest.mark.parametrize(
    "size_bytes",
    [
        pytest.param(
            40 << 20,
            marks=pytest.mark.faults("40 MB of log", "ready", "neither blocked nor filled"),
        ),
        pytest.param(
            1 << 30,
            marks=pytest.mark.faults(
                "1 GB of log", "ready", "neither blocked nor filled", long=True
            ),
        ),
    ],
)
def test_a_log_is_rotated_by_its_size(
    fake_manager: FakeFactory, isolated_home: Path, size_bytes: int, saw: Saw
) -> None:
    manager = fake_manager(
        flood_bytes=size_bytes, options={"startup_stall_timeout_s": 30.0}
    ).start()
    log = Path(manager.snapshot().log_path or "")
    sizes = {path.name: path.stat().st_size for path in isolated_home.rglob("*.log*")}
    assert set(sizes) == {log.name, f"{log.name}.1"}, "rotated by size, one kept"
    assert max(sizes.values()) <= LOG_MAX_BYTES + (1 << 16)
    assert manager.health().ok
    saw(sizes)
