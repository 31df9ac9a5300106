"""The pool of loaded models, with things that only pretend to be models."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from runtime import EngineNotRunningError, ModelTooLargeError, QueueFullError, RequestTimeoutError
from runtime.client._pool import ModelPool
from runtime.client._seats import LoadError
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.client._seats import Lease

pytestmark = pytest.mark.alone


class Thing:
    """Something loaded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.users = 0
        self.ended = False


class Shelf:
    """Loads things, and notices what a pool must never do.

    Attributes:
        sizes: What each takes.
        grown: What each was seen to take, where that differs.
        ruined: Things that no longer work.
        gate: Loading waits for it.
        broken: Names that do not load.
    """

    def __init__(self, sizes: dict[str, int], budget: int) -> None:
        self.sizes = sizes
        self.budget = budget
        self.grown: dict[str, int] = {}
        self.ruined: set[Thing] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.broken: set[str] = set()
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.wrong: list[str] = []
        self.held: dict[str, int] = {}
        self._lock = threading.Lock()

    def prepare(self, name: str) -> int:
        return self.sizes[name]

    def load(self, name: str) -> Thing:
        with self._lock:
            self.loads.append(name)
            if name in self.held:
                self.wrong.append(f"{name} was loaded twice")
            self.held[name] = self.sizes[name]
            if sum(self.held.values()) > self.budget:
                self.wrong.append(f"over the budget: {self.held}")
        self.gate.wait(10)
        if name in self.broken:
            with self._lock:
                del self.held[name]
            raise OSError(f"{name} is broken")
        return Thing(name)

    def unload(self, name: str, loaded: Thing) -> None:
        with self._lock:
            if loaded.users:
                self.wrong.append(f"{name} was unloaded in use")
            loaded.ended = True
            self.unloads.append(name)
            del self.held[name]

    def usable(self, name: str, loaded: Thing) -> bool:
        return loaded not in self.ruined

    def measured_bytes(self, name: str, loaded: Thing) -> int | None:
        return self.grown.get(name)


class Pools:
    """Makes pools that are closed when the test is over."""

    def __init__(self) -> None:
        self.made: list[tuple[ModelPool[Thing], Shelf]] = []

    def __call__(
        self, sizes: dict[str, int], budget: int, *, idle_timeout_s: float | None = None
    ) -> tuple[ModelPool[Thing], Shelf]:
        shelf = Shelf(sizes, budget)
        pool = ModelPool(shelf, budget_bytes=budget, idle_timeout_s=idle_timeout_s)
        self.made.append((pool, shelf))
        return pool, shelf


@pytest.fixture
def pools() -> Iterator[Pools]:
    pools = Pools()
    yield pools
    for pool, shelf in pools.made:
        shelf.gate.set()
        pool.close()
        assert not shelf.held, "nothing survives close()"
        assert not shelf.wrong


def take(pool: ModelPool[Thing], name: str, seconds: float = 10.0) -> Lease[Thing]:
    return pool.acquire(name, until=time.monotonic() + seconds, given_up=lambda: False)


def test_a_model_is_loaded_once_for_all_who_need_it(pools: Pools) -> None:
    pool, shelf = pools({"a": 1}, 10)
    shelf.gate.clear()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(take, pool, "a") for _ in range(8)]
        wait_until("all wait", lambda: pool.table().get("a", {}).get("users") == 8)
        shelf.gate.set()
        leases = [each.result() for each in waiting]
    assert shelf.loads == ["a"]
    assert len({id(lease.loaded) for lease in leases}) == 1
    for lease in leases:
        lease.__exit__(None, None, None)
    assert pool.table()["a"]["users"] == 0


def test_the_line_for_a_load_has_a_bound(pools: Pools) -> None:
    """It holds while the model is on its way, and no longer."""
    pool, shelf = pools({"a": 1}, 10)

    def come() -> Lease[Thing]:
        return pool.acquire(
            "a", until=time.monotonic() + 10, given_up=lambda: False, most_waiting=2
        )

    shelf.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(come) for _ in range(2)]
        wait_until("two wait", lambda: pool.table().get("a", {}).get("users") == 2)
        with pytest.raises(QueueFullError, match="2 requests wait") as caught:
            come()
        assert (caught.value.waiting, caught.value.max_queue) == (2, 2)
        assert not any(each.done() for each in waiting)
        shelf.gate.set()
        leases = [each.result() for each in waiting]
    with come():
        assert pool.table()["a"]["users"] == 3
    for lease in leases:
        lease.__exit__(None, None, None)


def test_others_keep_serving_while_one_is_loaded(pools: Pools) -> None:
    pool, shelf = pools({"a": 1, "b": 1}, 10)
    with take(pool, "a"):
        pass
    shelf.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(take, pool, "b")
        wait_until("b is being loaded", lambda: "b" in shelf.loads)
        with take(pool, "a", 1.0) as lease:
            assert lease.loaded.name == "a"
        shelf.gate.set()
        slow.result().__exit__(None, None, None)


def test_the_least_recently_used_goes(pools: Pools) -> None:
    pool, shelf = pools({"a": 4, "b": 4, "c": 4}, 8)
    for name in ("a", "b", "a", "c"):
        with take(pool, name):
            pass
    assert shelf.unloads == ["b"]
    assert set(pool.loaded()) == {"a", "c"}


def test_what_is_in_use_stays_and_who_needs_its_room_waits(pools: Pools) -> None:
    pool, _ = pools({"a": 8, "b": 8}, 8)
    with ThreadPoolExecutor(1) as threads:
        with take(pool, "a") as lease:
            waiting = threads.submit(take, pool, "b")
            wait_until("b waits", lambda: "b" in pool.table())
            with pytest.raises(RequestTimeoutError):
                take(pool, "b", 0.05)
            assert not waiting.done(), "who waits longer is not given up with who does not"
            assert not lease.loaded.ended
        assert waiting.result().loaded.name == "b"


def test_waiting_for_room_ends_with_a_typed_error(pools: Pools) -> None:
    pool, _ = pools({"a": 8, "b": 8}, 8)
    with take(pool, "a") as lease:
        began = time.monotonic()
        with pytest.raises((RequestTimeoutError, LoadError)) as caught:
            take(pool, "b", 0.1)
        error = getattr(caught.value, "error", caught.value)
        assert isinstance(error, RequestTimeoutError)
        assert error.phase == "room"
        assert 0.1 <= time.monotonic() - began < 2
        assert "(a)" in error.message
        assert not lease.loaded.ended
    with take(pool, "b"):  # nothing of it is left
        pass


def test_waiting_for_a_load_ends_with_a_typed_error_and_the_load_goes_on(pools: Pools) -> None:
    pool, shelf = pools({"a": 1}, 8)
    shelf.gate.clear()
    with pytest.raises(RequestTimeoutError, match="loading") as caught:
        take(pool, "a", 0.05)
    assert caught.value.phase == "load"
    shelf.gate.set()
    with take(pool, "a"):
        assert shelf.loads == ["a"]


def test_what_never_fits_is_refused_at_once(pools: Pools) -> None:
    pool, _ = pools({"a": 9, "b": 1}, 8)
    with take(pool, "b"):
        pass
    with pytest.raises(LoadError) as caught:
        take(pool, "a")
    assert isinstance(caught.value.error, ModelTooLargeError)
    assert (caught.value.error.needed_bytes, caught.value.error.available_bytes) == (9, 8)
    assert set(pool.loaded()) == {"b"}, "nothing went for it"


def test_memory_that_was_measured_counts_where_it_is_more(pools: Pools) -> None:
    pool, shelf = pools({"a": 2, "b": 4}, 8)
    with take(pool, "a"):
        pass
    shelf.grown["a"] = 5
    with take(pool, "b"):
        pass
    assert shelf.unloads == ["a"]


def test_a_model_that_does_not_load_tells_all_who_wait_and_may_be_tried_again(
    pools: Pools,
) -> None:
    pool, shelf = pools({"a": 1}, 8)
    shelf.broken.add("a")
    shelf.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(take, pool, "a") for _ in range(4)]
        wait_until("all wait", lambda: pool.table().get("a", {}).get("users") == 4)
        shelf.gate.set()
        errors = [each.exception() for each in waiting]
    assert shelf.loads == ["a"], "not once for each"
    assert all(isinstance(each, LoadError) for each in errors)
    shelf.broken.clear()
    with take(pool, "a") as lease:
        assert lease.loaded.name == "a"


def test_what_no_longer_works_is_loaded_anew_once_nobody_uses_it(pools: Pools) -> None:
    pool, shelf = pools({"a": 8}, 8)
    with take(pool, "a") as lease:
        shelf.ruined.add(lease.loaded)
        with take(pool, "a") as other:
            assert other.loaded is lease.loaded
        assert not lease.loaded.ended
    with take(pool, "a") as again:
        assert again.loaded is not lease.loaded
    assert (shelf.loads, shelf.unloads) == (["a", "a"], ["a"])


def test_what_nobody_uses_goes_after_a_while(pools: Pools) -> None:
    pool, shelf = pools({"a": 1, "b": 1}, 8, idle_timeout_s=0.1)
    with take(pool, "a"):
        with take(pool, "b"):
            pass
        wait_until("b goes", lambda: shelf.unloads == ["b"])
        assert set(pool.loaded()) == {"a"}, "in use, however long"
    wait_until("a goes", lambda: shelf.unloads == ["b", "a"])
    with take(pool, "b") as lease:
        assert not lease.loaded.ended


def test_each_use_begins_the_idle_time_anew(pools: Pools) -> None:
    pool, shelf = pools({"a": 1}, 8, idle_timeout_s=0.3)
    began = time.monotonic()
    while time.monotonic() - began < 0.6:
        with take(pool, "a"):
            time.sleep(0.02)  # the use
    assert not shelf.unloads


def test_close_ends_what_is_in_use_and_what_is_being_loaded(pools: Pools) -> None:
    pool, shelf = pools({"a": 1, "b": 1}, 8)
    lease = take(pool, "a")
    shelf.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(take, pool, "b")
        wait_until("b is being loaded", lambda: "b" in shelf.loads)
        closing = threads.submit(pool.close)
        assert isinstance(waiting.exception(10), EngineNotRunningError), "before the load ends"
        shelf.gate.set()
        closing.result(10)
    assert lease.loaded.ended
    assert not shelf.held
    with pytest.raises(EngineNotRunningError):
        take(pool, "a")
    pool.close()


def test_who_gives_up_is_let_go(pools: Pools) -> None:
    pool, shelf = pools({"a": 1}, 8)
    shelf.gate.clear()
    given_up = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(
            pool.acquire, "a", until=time.monotonic() + 10, given_up=given_up.is_set
        )
        wait_until("it waits", lambda: pool.table().get("a", {}).get("users") == 1)
        given_up.set()
        pool.nudge()
        assert isinstance(waiting.exception(5), EngineNotRunningError)
    assert pool.table()["a"]["users"] == 0


def test_room_is_not_waited_for_when_nobody_wants_the_model_any_more(pools: Pools) -> None:
    pool, shelf = pools({"a": 8, "b": 8}, 8)
    given_up = threading.Event()
    with take(pool, "a"), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(
            pool.acquire, "b", until=time.monotonic() + 30, given_up=given_up.is_set
        )
        wait_until("it waits", lambda: pool.table().get("b", {}).get("users") == 1)
        given_up.set()
        pool.nudge()
        assert isinstance(waiting.exception(5), EngineNotRunningError)
        wait_until("b is off the table", lambda: "b" not in pool.table())
    assert shelf.loads == ["a"]


@pytest.mark.parametrize("seed", range(4))
def test_in_a_crowd_nothing_is_unloaded_in_use_or_beyond_the_budget(
    pools: Pools, seed: int
) -> None:
    """Eight threads, five models, room for two or three; idle ones go all the while."""
    sizes = {"a": 3, "b": 3, "c": 3, "d": 5, "e": 1}
    pool, shelf = pools(sizes, 8, idle_timeout_s=0.002)
    count = threading.Lock()

    def use(number: int) -> int:
        chance = random.Random(seed * 100 + number)
        for _ in range(60):
            with take(pool, chance.choice(list(sizes)), 20.0) as lease:
                with count:
                    lease.loaded.users += 1
                if lease.loaded.ended:
                    shelf.wrong.append("it had ended")
                time.sleep(chance.random() * 0.001)  # the use
                with count:
                    lease.loaded.users -= 1
        return 60

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(use, range(8))) == 480
    assert not shelf.wrong
    assert shelf.unloads
