"""The keeper: a small process between the owner and its engine, so that no engine is ever orphaned.

It runs by itself, with the standard library only. It is single-threaded, because PR_SET_PDEATHSIG
fires when the *thread* that forked ends. It holds the owner by a pidfd that the owner opened for
itself, so no process id can be mistaken for another; it does not rely on the end of a pipe, which
a forked child of the owner would hold open. ``watches.py`` has what takes the pidfd's place
elsewhere.

File descriptors, all given by the owner:
    0  control: one JSON line (the task: which program), then orders, a line each: ``begin`` and,
       after a space, JSON with the program's input and the log file, before which the program is
       neither told nor heard anything; ``term`` or ``kill``, and after a space the reason, for the
       log
    1  events: JSON lines: ``spawned``, ``exec_failed``, ``exited``
    2  a copy of the engine's output; an owner that does not read is not waited for: the oldest of
       what is too much is dropped here, while the log file has all of it

When the owner is gone, the engine is told to end, everything below the keeper is killed a moment
later, the owner's record of the server is removed, and the keeper ends. The last line of the log
says how the engine ended and why.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # importing typing would cost the keeper 1.6 MB
if TYPE_CHECKING:
    from runtime.server.keeper.logfile import Log
    from runtime.server.keeper.watches import watch_owner
else:
    from logfile import Log
    from watches import watch_owner

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CONTROL, EVENTS, OUTPUT = 0, 1, 2
CHUNK = 1 << 16
TERM_GRACE_S = 0.15  # for an engine whose owner is gone: nothing of it is worth more time
DRAIN_S = 0.2
LAST_WORDS_S = 1.0
BACKLOG_BYTES = 1 << 18
# Signals that are none of the keeper's business: it ends with the engine or with the owner.
KEPT_OUT = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def emit(**event: object) -> None:
    """Tell the owner; one that is gone or does not read is not waited for."""
    with contextlib.suppress(OSError):
        os.write(EVENTS, json.dumps(event).encode() + b"\n")


def spawn(task: dict, output: int) -> tuple[int, int]:  # type: ignore[type-arg]
    """Fork the engine in a session of its own; returns its pid and the pipe to its input.

    Raises:
        OSError: It cannot be executed.
    """
    keeper = os.getpid()
    stdin_read, stdin_write = os.pipe()
    failed_read, failed_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            if _libc is not None:
                _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != keeper:  # the keeper died before the line above
                    os._exit(1)
            for number in KEPT_OUT:  # an ignored signal would stay ignored in the engine
                signal.signal(number, signal.SIG_DFL)
            os.dup2(stdin_read, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if task.get("cwd"):
                os.chdir(task["cwd"])
            os.execvpe(task["argv"][0], task["argv"], task["env"])  # noqa: S606
        except OSError as exc:
            os.write(failed_write, str(exc.errno).encode())
        finally:
            os._exit(127)
    os.close(stdin_read)
    os.close(failed_write)
    code = os.read(failed_read, 32)
    os.close(failed_read)
    if code:
        os.close(stdin_write)
        os.waitpid(pid, 0)
        raise OSError(int(code), os.strerror(int(code)))
    os.set_blocking(stdin_write, False)
    return pid, stdin_write


def children() -> list[int]:
    """Processes whose parent is the keeper: the engine, and what a dead engine left to it."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children", encoding="ascii") as file:  # noqa: PTH123
            return [int(pid) for pid in file.read().split()]
    except (OSError, ValueError):
        return []


def kill_all(engine: int) -> None:
    """Kill the engine's group and whatever else has come to be below the keeper."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(engine, signal.SIGKILL)
    # A subreaper inherits the children of each process it reaps: until there are none.
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        for pid in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


class Keeper:
    """The loop: output to the log and the owner, orders to the engine, death to the engine."""

    def __init__(self, task: dict, rest: bytes) -> None:  # type: ignore[type-arg]
        self.task = task
        self.orders = rest
        self.log = Log(None, 0)
        self.owner_fd: int = task.get("owner_fd", -1)
        self.owner_pid: int = task["owner_pid"]
        self.backlog = bytearray()
        self.backlog_watched = False
        self.dropped = 0
        self.feed = b""
        self.engine = 0
        self.engine_in = -1
        self.reason = "by itself"
        self.ending: dict[str, int] = {}

    def run(self) -> None:
        """Start the engine and stay until it has ended or the owner is gone."""
        self.wake, wake_write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.output, output_write = os.pipe()
        try:
            self.engine, self.engine_in = spawn(self.task, output_write)
        except OSError as exc:
            emit(event="exec_failed", errno=exc.errno, path=self.task["argv"][0])
            return None
        os.close(output_write)
        os.set_blocking(self.output, False)
        emit(event="spawned", pid=self.engine)

        watch = self.watch = watch_owner(self.owner_pid, self.owner_fd)
        for fd in (CONTROL, self.wake):
            watch.add(fd)
        self.obey(b"")
        while not self.ending:
            ready, owner_gone = watch.wait()
            if self.output in ready and not self.copy():
                watch.remove(self.output)
            if OUTPUT in ready:
                self.forward()
            if self.engine_in in ready and self.write_input():
                watch.remove(self.engine_in)
            if self.wake in ready:
                self.awake()
            if owner_gone or (CONTROL in ready and not self.control()):
                return self.owner_gone()
            self.reap()
        return self.finish()

    def begin(self, facts: dict) -> None:  # type: ignore[type-arg]
        """Give the engine its input, and take its output from now on, with what it has said."""
        self.log = Log(facts["log_path"], facts["log_max_bytes"])
        self.feed = facts["stdin"].encode()
        self.watch.add(self.output)
        if self.feed:
            self.watch.add(self.engine_in, write=True)

    def owner_gone(self) -> None:
        """End everything, in order but soon: no one is left who could want more of it."""
        self.reason = f"its owner, process {self.owner_pid}, is gone"
        self.signal_engine(signal.SIGTERM)
        until = time.monotonic() + TERM_GRACE_S
        watched = [self.output, self.wake]
        while not self.ending and (left_s := until - time.monotonic()) > 0:
            ready, _, _ = select.select(watched, [], [], left_s)
            if self.output in ready and not self.copy():
                watched.remove(self.output)
            if self.wake in ready:
                self.awake()
            self.reap()
        self.clear_away()
        if self.task.get("record_path"):
            with contextlib.suppress(OSError):
                os.unlink(self.task["record_path"])  # noqa: PTH108 - pathlib is slow to import

    def awake(self) -> None:
        """Take note of signals: SIGCHLD tells that a child has ended."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, CHUNK)

    def finish(self) -> None:
        """The engine ended: end its leftovers, read its last words, report."""
        self.clear_away()
        until = time.monotonic() + LAST_WORDS_S
        while self.backlog and time.monotonic() < until:
            select.select([], [OUTPUT], [], 0.05)
            self.forward()
        emit(event="exited", dropped=self.dropped, **self.ending)

    def clear_away(self) -> None:
        """End what is left, read the last words, and write down how it ended and why."""
        kill_all(self.engine)
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until and self.copy():
            select.select([self.output], [], [], 0.02)
        if "code" in self.ending:
            how = f"with code {self.ending['code']}"
        else:
            how = f"by {signal.Signals(self.ending.get('signal', signal.SIGKILL)).name}"
        self.log.note(f"engine process {self.engine} ended {how}: {self.reason}")

    def copy(self) -> bool:
        """One piece of output to the log and to the owner; False at its end."""
        try:
            data = os.read(self.output, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        self.log.write(data)
        self.backlog += data
        excess = len(self.backlog) - BACKLOG_BYTES
        if excess > 0:
            # The newest is what matters: the line that says it listens, or why it dies.
            del self.backlog[:excess]
            self.dropped += excess
        self.forward()
        return True

    def forward(self) -> None:
        """As much of the backlog to the owner as it takes without waiting."""
        try:
            del self.backlog[: os.write(OUTPUT, self.backlog)]
        except BlockingIOError:
            pass
        except OSError:  # the owner is gone: its pidfd will say so
            self.backlog.clear()
        if bool(self.backlog) != self.backlog_watched:
            self.backlog_watched = not self.backlog_watched
            if self.backlog_watched:
                self.watch.add(OUTPUT, write=True)
            else:
                self.watch.remove(OUTPUT)

    def write_input(self) -> bool:
        """One piece of the engine's configuration; True when all of it is written."""
        try:
            self.feed = self.feed[os.write(self.engine_in, self.feed) :]
        except BlockingIOError:
            return False
        except OSError:  # the engine closed its input or ended: reap() will see
            self.feed = b""
        return not self.feed

    def control(self) -> bool:
        """Read orders; False when every holder of the other end is gone."""
        data = os.read(CONTROL, CHUNK)
        if not data:
            return False
        self.obey(data)
        return True

    def obey(self, data: bytes) -> None:
        """Carry out the orders that are complete."""
        *orders, self.orders = (self.orders + data).split(b"\n")
        for order in orders:
            word, _, rest = order.partition(b" ")
            number = {b"term": signal.SIGTERM, b"kill": signal.SIGKILL}.get(word)
            if word == b"begin":
                self.begin(json.loads(rest))
            elif number is not None and not self.ending:
                self.reason = rest.decode("utf-8", "replace")
                self.signal_engine(number)

    def signal_engine(self, number: signal.Signals) -> None:
        """Send a signal to the engine's process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.engine, number)

    def reap(self) -> None:
        """Collect what has ended; the engine's own end ends the loop.

        The engine is looked at but not reaped, so that its process group cannot become another's
        before the group has been killed.
        """
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            pid, status = os.waitpid(self.engine, os.WNOHANG)
            if pid and os.WIFSIGNALED(status):
                self.ending = {"signal": os.WTERMSIG(status)}
            elif pid:
                self.ending = {"code": os.WEXITSTATUS(status)}
            return
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == self.engine:
                kind = "code" if ended.si_code == os.CLD_EXITED else "signal"
                self.ending = {kind: ended.si_status}
                return
            os.waitpid(ended.si_pid, 0)


def main() -> int:
    """Read the task and keep the engine."""
    for number in KEPT_OUT:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the spawning thread may have blocked some
    os.set_blocking(OUTPUT, False)
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(OUTPUT, fcntl.F_SETPIPE_SZ, 1 << 20)
    if _libc is not None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    data = b""
    while b"\n" not in data:
        piece = os.read(CONTROL, CHUNK)
        if not piece:
            return errno.EPIPE
        data += piece
    line, _, rest = data.partition(b"\n")
    Keeper(json.loads(line), rest).run()
    return 0
