"""An engine without a keeper, as on Windows, in a stand-in for the job that ends its processes."""

from __future__ import annotations

import json
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime.engines.base import EngineCommand
from runtime.errors import EngineStartError
from runtime.server.launcher import ExecFailed, Exited, Spawned
from runtime.server.windows import JobProcess
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from runtime.server.launcher import ProcessEvent

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform == "win32", reason="the stand-in ends processes by signals"),
]


class TreeJob:
    """Ends a process and all that were below it."""

    creation_flags = 0

    def __init__(self, *, refuses: bool = False) -> None:
        self._refuses = refuses
        self._members: list[psutil.Process] = []

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        if self._refuses:
            raise OSError("access is denied")
        self._members.append(psutil.Process(process.pid))

    def look(self) -> None:
        """Take in what has been started since."""
        self._members += self._members[0].children(recursive=True)

    def terminate(self) -> None:
        for member in self._members:
            if not is_gone(member.pid):
                member.send_signal(signal.SIGKILL)

    close = terminate


class Engine:
    """A fake engine in a job, and what was heard of it."""

    def __init__(self, binary: Path, folder: Path, job: TreeJob, **fake: Any) -> None:
        self.events: list[ProcessEvent] = []
        self.output = b""
        self.log = folder / "engine.log"
        command = EngineCommand(
            argv=(str(binary), "--port", "0", "--alias", "a"),
            env={"FAKE": json.dumps(fake)},
            stdin=b"configuration\n",
        )
        self.process = JobProcess(command, log_path=self.log, name="it", job=job)

    def hear(self) -> None:
        select.select([self.process.events_fd, self.process.output_fd], [], [], 0.05)
        self.events += self.process.read_events()
        self.output += self.process.read_output() or b""

    def has(self, text: bytes) -> bool:
        self.hear()
        return text in self.output

    def has_ended(self) -> bool:
        self.hear()
        return isinstance(self.events[-1], Exited | ExecFailed)


def test_it_starts_is_heard_and_ends_with_all_that_it_started(
    fake_binary: Path, tmp_path: Path
) -> None:
    job = TreeJob()
    grandchild = tmp_path / "pid"
    engine = Engine(fake_binary, tmp_path, job, grandchild=str(grandchild))
    try:
        wait_until("it listens", lambda: engine.has(b"listening on"))
        assert engine.events == [Spawned(pid=engine.process.pid or 0)]
        job.look()

        engine.process.terminate("the test is over")

        wait_until("its end is told", engine.has_ended)
        assert engine.events[-1] == Exited(signal=signal.SIGKILL)
        wait_until("its child is gone", lambda: is_gone(int(grandchild.read_text())))
    finally:
        engine.process.close()
    assert "listening on" in engine.log.read_text()
    assert engine.log.read_text().splitlines()[-1].endswith(": the test is over")


def test_its_own_end_is_told_with_its_code(fake_binary: Path, tmp_path: Path) -> None:
    engine = Engine(fake_binary, tmp_path, TreeJob(), exit=3, say=["last words"])
    wait_until("its end is told", engine.has_ended)
    engine.process.close()
    assert engine.events[-1] == Exited(code=3)
    assert b"last words" in engine.output
    assert engine.log.read_text().splitlines()[-1].endswith("ended with code 3: by itself")


def test_an_owner_that_does_not_read_does_not_stop_it(fake_binary: Path, tmp_path: Path) -> None:
    engine = Engine(fake_binary, tmp_path, TreeJob(), flood_bytes=20 << 20, exit=0)
    wait_until("it has ended", lambda: Exited(code=0) in engine.process.read_events(), timeout_s=30)
    engine.process.close()


def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "none", tmp_path, TreeJob())
    wait_until("it is told", engine.has_ended)
    engine.process.close()
    assert engine.events == [ExecFailed(errno=2, path=str(tmp_path / "none"))]


def test_one_that_cannot_be_bound_to_its_owner_is_not_started(
    fake_binary: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineStartError, match="refused to bind") as caught:
        Engine(fake_binary, tmp_path, TreeJob(refuses=True))
    assert caught.value.diagnosis == "no_process"
