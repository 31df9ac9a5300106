"""A Windows job object: all that is in it ends when its last handle is closed.

The owner holds the only handle, and the system closes it however the owner ends. Names and layouts
are those of winnt.h (JOBOBJECT_EXTENDED_LIMIT_INFORMATION).
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import subprocess

EXTENDED_LIMIT_INFORMATION: Final = 9
KILL_ON_JOB_CLOSE: Final = 0x2000
CREATE_SUSPENDED: Final = 0x4
CREATE_NO_WINDOW: Final = 0x08000000

_DWORD = ctypes.c_uint32


class BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", _DWORD),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", _DWORD),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", _DWORD),
        ("SchedulingClass", _DWORD),
    )


class ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("BasicLimitInformation", BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),  # IO_COUNTERS
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


class Job(Protocol):
    """What ends an engine with its owner where there is no keeper."""

    creation_flags: int

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        """Take in a process that was created with ``creation_flags``, and let it run.

        Raises:
            OSError: It cannot be taken in.
        """
        ...

    def terminate(self) -> None:
        """End everything in it at once."""
        ...

    def close(self) -> None:
        """Let go of it, which ends everything in it."""
        ...


class WindowsApi(Protocol):
    """The functions of the system that are used."""

    kernel32: Any
    ntdll: Any

    def last_error(self) -> OSError:
        """Why the last call failed."""
        ...


class KillOnCloseJob:
    """A job whose processes end with its last handle."""

    # Suspended, so that it is in the job before it can start anything.
    creation_flags = CREATE_SUSPENDED | CREATE_NO_WINDOW

    def __init__(self, api: WindowsApi) -> None:
        """Make it.

        Raises:
            OSError: The system refuses.
        """
        self._api = api
        self._handle = api.kernel32.CreateJobObjectW(None, None)
        if not self._handle:
            raise api.last_error()
        limits = ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = KILL_ON_JOB_CLOSE
        if not api.kernel32.SetInformationJobObject(
            self._handle,
            EXTENDED_LIMIT_INFORMATION,
            ctypes.byref(limits),
            ctypes.sizeof(limits),
        ):
            error = api.last_error()
            self.close()
            raise error

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        """Take in a suspended process and let it run.

        Raises:
            OSError: It cannot be taken in, or not be let run.
        """
        handle = int(process._handle)  # type: ignore[attr-defined]  # noqa: SLF001 - no public name
        if not self._api.kernel32.AssignProcessToJobObject(self._handle, handle):
            raise self._api.last_error()
        status = self._api.ntdll.NtResumeProcess(handle)
        if status != 0:
            raise OSError(f"NtResumeProcess answered {status & 0xFFFFFFFF:#x}")

    def terminate(self) -> None:
        """End everything in it at once, with exit code 1."""
        self._api.kernel32.TerminateJobObject(self._handle, 1)

    def close(self) -> None:
        """Close the handle."""
        if self._handle:
            self._api.kernel32.CloseHandle(self._handle)
            self._handle = None


if sys.platform == "win32":

    class _Windows:
        def __init__(self) -> None:
            self.kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
            self.ntdll = ctypes.WinDLL("ntdll")
            # A handle has the width of a pointer; without these it would be cut to an int.
            handle = ctypes.c_void_p
            self.kernel32.CreateJobObjectW.restype = handle
            self.kernel32.SetInformationJobObject.argtypes = (
                handle,
                ctypes.c_int,
                handle,
                _DWORD,
            )
            self.kernel32.AssignProcessToJobObject.argtypes = (handle, handle)
            self.kernel32.TerminateJobObject.argtypes = (handle, ctypes.c_uint)
            self.kernel32.CloseHandle.argtypes = (handle,)
            self.ntdll.NtResumeProcess.argtypes = (handle,)

        def last_error(self) -> OSError:
            return ctypes.WinError(ctypes.get_last_error())


def windows_api() -> WindowsApi:
    """The real system's.

    Raises:
        OSError: This is another system.
    """
    if sys.platform == "win32":
        return _Windows()
    raise OSError("job objects are Windows'")
