"""The Windows job object: layouts as winnt.h has them, and the order of calls, on a stand-in."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.server.jobs import BasicLimits, ExtendedLimits, KillOnCloseJob, windows_api


class Recorder:
    """Functions that note their calls and answer what they are told to."""

    def __init__(self, **answers: int) -> None:
        self.answers = answers
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == "SetInformationJobObject":
                handle, kind, limits, size = arguments
                flags = limits._obj.BasicLimitInformation.LimitFlags
                arguments = (handle, kind, flags, size)
            self.calls.append((name, *arguments))
            return self.answers.get(name, 0 if name == "NtResumeProcess" else 7)

        return call


class Api:
    def __init__(self, **answers: int) -> None:
        self.kernel32 = self.ntdll = self.recorder = Recorder(**answers)

    def last_error(self) -> OSError:
        return OSError("refused")


CHILD: Any = SimpleNamespace(_handle=42)
MADE = [
    ("CreateJobObjectW", None, None),
    ("SetInformationJobObject", 7, 9, 0x2000, ctypes.sizeof(ExtendedLimits)),
]


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="sizes of 64-bit Windows")
def test_layouts_are_those_of_the_system() -> None:
    assert ctypes.sizeof(BasicLimits) == 64
    assert ctypes.sizeof(ExtendedLimits) == 144
    assert BasicLimits.LimitFlags.offset == 16
    assert ExtendedLimits.IoInfo.offset == 64
    assert ExtendedLimits.PeakJobMemoryUsed.offset == 136


def test_a_process_runs_only_once_it_is_in_the_job() -> None:
    api = Api()
    job = KillOnCloseJob(api)
    job.adopt(CHILD)
    job.terminate()
    job.close()
    job.close()
    assert api.recorder.calls == [
        *MADE,
        ("AssignProcessToJobObject", 7, 42),
        ("NtResumeProcess", 42),
        ("TerminateJobObject", 7, 1),
        ("CloseHandle", 7),
    ]
    assert job.creation_flags & 0x4, "created suspended"


def test_a_job_that_cannot_be_made_or_limited_is_no_job() -> None:
    with pytest.raises(OSError, match="refused"):
        KillOnCloseJob(Api(CreateJobObjectW=0))
    api = Api(SetInformationJobObject=0)
    with pytest.raises(OSError, match="refused"):
        KillOnCloseJob(api)
    assert api.recorder.calls[-1] == ("CloseHandle", 7)


def test_what_is_not_in_the_job_is_not_let_run() -> None:
    api = Api(AssignProcessToJobObject=0)
    with pytest.raises(OSError, match="refused"):
        KillOnCloseJob(api).adopt(CHILD)
    assert api.recorder.calls[-1][0] == "AssignProcessToJobObject"
    with pytest.raises(OSError, match="NtResumeProcess answered 0xc0000022"):
        KillOnCloseJob(Api(NtResumeProcess=-0x3FFFFFDE)).adopt(CHILD)


@pytest.mark.skipif(sys.platform == "win32", reason="there it is")
def test_elsewhere_there_is_no_such_thing() -> None:
    with pytest.raises(OSError, match="Windows"):
        windows_api()
