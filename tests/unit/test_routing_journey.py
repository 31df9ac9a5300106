"""A routed request's way from one model to the next, where loading fails as it is told to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import (
    ContextOverflowError,
    CrashingRequestError,
    EngineStartError,
    LLMError,
    LLMProviderError,
    ModelNotFoundError,
)
from runtime.client._journey import Failures, Journey, Route
from runtime.client._pool import ModelPool

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED: Any = SimpleNamespace(has_failed=True)
RUNS: Any = SimpleNamespace(has_failed=False)


class Shelf:
    """Loads a model, or fails as it is told to."""

    def __init__(self) -> None:
        self.broken: dict[str, LLMError] = {}

    def prepare(self, name: str) -> int:
        return 1

    def load(self, name: str) -> Any:
        if name in self.broken:
            raise self.broken[name]
        return RUNS

    def unload(self, name: str, loaded: Any) -> None:
        pass

    def usable(self, name: str, loaded: Any) -> bool:
        return True

    def measured_bytes(self, name: str, loaded: Any) -> int | None:
        return None


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def pool(shelf: Shelf) -> Iterator[ModelPool[Any]]:
    made: ModelPool[Any] = ModelPool(shelf, budget_bytes=9, idle_timeout_s=None)
    yield made
    made.close()


def begun(pool: ModelPool[Any], *names: str) -> Journey:
    route = Route(names=names, why="first")
    return Journey(route, pool=pool, failures=Failures(), timeout_s=10.0, most_waiting=lambda _: 1)


def start_error(why: str) -> EngineStartError:
    return EngineStartError(why, exit_code=1, log_tail=(), hint="Look.")


def test_when_all_fail_the_error_has_every_reason(shelf: Shelf, pool: ModelPool[Any]) -> None:
    shelf.broken = {
        "a": start_error("a crashed."), "b": ModelNotFoundError("b is gone.", reference="b"),
    }  # fmt: skip
    with pytest.raises(LLMProviderError, match=r"a: a crashed\. b: b is gone\.") as caught:
        begun(pool, "a", "b").next()
    assert caught.value.hint == "Look."
    with pytest.raises(ModelNotFoundError, match="b is gone"):
        begun(pool, "b").next()


def test_the_next_one_is_taken_and_the_reason_told(shelf: Shelf, pool: ModelPool[Any]) -> None:
    shelf.broken = {"a": start_error("a crashed.")}
    journey = begun(pool, "a", "b")
    with journey.next():
        note = journey.note()
    assert (journey.name, note["chosen"]) == ("b", "b")
    assert note["excluded"] == {"a": "it could not be loaded: a crashed."}
    assert "could be loaded" in str(note["why"])


def test_only_what_another_model_may_do_better_is_passed_on(pool: ModelPool[Any]) -> None:
    ended = start_error("It cannot be started again.")
    crashing = CrashingRequestError("It kills engines.", endings=("SIGSEGV", "SIGSEGV"))
    for error, client in ((ended, RUNS), (crashing, FAILED)):
        journey = begun(pool, "a", "b")
        with journey.next(), pytest.raises(type(error)) as caught:
            journey.give_way(error, client)
        assert caught.value is error
    journey = begun(pool, "a", "b")
    with journey.next():
        journey.give_way(ended, FAILED)
    with journey.next():
        assert journey.name == "b"


def test_when_the_prompt_fits_none_the_largest_is_told(pool: ModelPool[Any]) -> None:
    def overflow(context: int) -> ContextOverflowError:
        return ContextOverflowError(
            f"Too long for {context}.", prompt_tokens=900, context_tokens=context
        )

    journey = begun(pool, "a", "b")
    with journey.next():
        journey.give_way(overflow(512), RUNS)
    with journey.next(), pytest.raises(ContextOverflowError, match=r"512\. That is a") as caught:
        journey.give_way(overflow(256), RUNS)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (900, 512)
