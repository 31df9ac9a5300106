"""Freeze one thread of a process by ptrace, and hold it until the process ends (Linux, x86 or arm).

Usage: freeze_thread.py TID. Prints "frozen" once it is.
"""

from __future__ import annotations

import ctypes
import os
import sys

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000  # __WALL: also threads that are no leader


def main() -> None:
    """Seize, interrupt, wait for the end."""
    tid = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if libc.ptrace(request, tid, None, None):
            number = ctypes.get_errno()
            print(f"cannot: {os.strerror(number)}", flush=True)
            return
    os.waitpid(tid, WALL)
    print("frozen", flush=True)
    # A traced thread that ends must be collected here before its process can be by its parent.
    os.waitpid(tid, WALL)


if __name__ == "__main__":
    main()
