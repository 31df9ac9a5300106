"""How the keeper waits: for descriptors and for its owner's end, by poll and by kqueue.

A system without kqueue runs the kqueue watch on a stand-in whose events are real ones, of real
descriptors and processes.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from runtime.server.keeper.watches import KqueueWatch, PollWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Watch = PollWatch | KqueueWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd_open")


@dataclass(frozen=True)
class Kevent:
    """As :class:`select.kevent`."""

    ident: int
    filter: int
    flags: int
    fflags: int = 0


class Kqueue:
    """The part of :class:`select.kqueue` that is used, over poll and pidfds."""

    def __init__(self) -> None:
        self._events: dict[int, Kevent] = {}

    def control(
        self, changes: Sequence[Kevent] | None, most: int, timeout_s: float | None = None
    ) -> list[Kevent]:
        for change in changes or ():
            if change.filter == KqueueApi.KQ_FILTER_PROC:
                assert change.fflags == KqueueApi.KQ_NOTE_EXIT
                fd = os.pidfd_open(change.ident)  # ESRCH, as kqueue has it
            else:
                fd = change.ident
            if change.flags == KqueueApi.KQ_EV_DELETE:
                del self._events[fd]
            else:
                self._events[fd] = change
        if not most:
            return []
        poll = select.poll()
        for fd, event in self._events.items():
            write = event.filter == KqueueApi.KQ_FILTER_WRITE
            poll.register(fd, select.POLLOUT if write else select.POLLIN)
        ready = poll.poll(None if timeout_s is None else timeout_s * 1e3)
        return [self._events[fd] for fd, _ in ready][:most]


class KqueueApi:
    """The part of the module :mod:`select` that is used; numbers from sys/event.h."""

    KQ_FILTER_READ, KQ_FILTER_WRITE, KQ_FILTER_PROC = -1, -2, -5
    KQ_EV_ADD, KQ_EV_DELETE = 1, 2
    KQ_NOTE_EXIT = 0x80000000
    kqueue = Kqueue
    kevent = Kevent


def by_poll(owner: int) -> Watch:
    return PollWatch(owner, os.pidfd_open(owner))


def by_parent(owner: int) -> Watch:
    return PollWatch(owner, -1)


def by_kqueue(owner: int) -> Watch:
    return KqueueWatch(owner, KqueueApi)


WATCHES = [by_poll, by_parent, by_kqueue]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("make", WATCHES)
def test_descriptors_are_told_while_the_owner_lives(
    make: Callable[[int], Watch], pipe: tuple[int, int]
) -> None:
    read, write = pipe
    watch = make(os.getppid())
    watch.add(read)
    assert watch.wait(0) == ([], False)
    watch.add(write, write=True)
    assert watch.wait(5) == ([write], False)
    watch.remove(write)
    os.write(write, b"x")
    assert watch.wait(5) == ([read], False)
    assert os.read(read, 10) == b"x"
    assert watch.wait(0) == ([], False)


CHILD = """
import os, sys
from tests.unit import test_keeper_watches as these
read, write = os.pipe()
owner = os.getpid()
if os.fork() == 0:
    watch = getattr(these, sys.argv[1])(owner)
    watch.add(read)
    print(watch.wait(0), flush=True)
    print(watch.wait(), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("make", WATCHES)
def test_the_end_of_the_owner_is_told(make: Callable[[int], Watch]) -> None:
    """The pipe stays open on the other side: its end could not tell."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, make.__name__], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == "([], False)\n"
        owner.send_signal(signal.SIGKILL)
        assert owner.stdout.readline() == "([], True)\n"


def test_an_owner_that_ended_before_it_was_watched() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    with pytest.raises(ProcessLookupError) as caught:
        os.pidfd_open(process.pid)
    assert caught.value.errno == errno.ESRCH
    assert by_kqueue(process.pid).wait() == ([], True)


@pytest.mark.parametrize("make", [by_parent, by_kqueue])
def test_a_process_that_is_not_the_parent_is_no_owner(make: Callable[[int], Watch]) -> None:
    """Its id may have become another's before the watch was set."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as stranger:
        assert make(stranger.pid).wait() == ([], True)
        stranger.kill()
