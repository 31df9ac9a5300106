"""Speeds that were measured: how they are learned, kept, and used to reckon others."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from runtime import LLMResponse
from runtime.client import _speeds
from runtime.client._speeds import Measured, SpeedBook, from_answer, speed_of
from runtime.settings import directories

if TYPE_CHECKING:
    from pathlib import Path

ONE = Measured(
    prompt_tokens=100.0, prompt_s=0.5, decode_tokens=50.0, decode_s=1.0, answers=1.0, loads=1.0,
    load_s=2.0, parameters=1e9, size_bytes=1e9,
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "speeds.json"


def answer(**timings: Any) -> LLMResponse:
    told = {"prompt_n": 100, "prompt_ms": 500.0, "predicted_n": 50, "predicted_ms": 1000.0}
    return LLMResponse(text="", raw={"timings": {**told, **timings}})


# --- learning ---------------------------------------------------------------------------------


def test_an_answer_tells_speeds() -> None:
    measured = from_answer(answer())
    assert measured is not None
    assert (measured.prompt_rate, measured.decode_rate) == (200.0, 50.0)
    assert measured.answers == 1


def test_a_prompt_out_of_the_cache_says_nothing_about_reading() -> None:
    measured = from_answer(answer(prompt_n=1, prompt_ms=20.0))
    assert measured is not None
    assert measured.prompt_rate is None
    assert measured.decode_rate == 50.0


@pytest.mark.parametrize(
    "response",
    [
        LLMResponse(text=""),
        LLMResponse(text="", raw={}),
        LLMResponse(text="", raw={"timings": None}),
        LLMResponse(text="", raw={"timings": {"predicted_n": "many", "predicted_ms": 3}}),
        answer(predicted_n=0),
        answer(predicted_ms=float("nan")),
        answer(predicted_ms=-1.0),
        None,
    ],
)
def test_what_tells_nothing_is_not_learned(response: object) -> None:
    assert from_answer(response) is None


def test_what_is_new_weighs_more() -> None:
    """After a long time at 50/s, 20,000 tokens at 100/s make up half of what counts."""
    slow = Measured(decode_tokens=1e5, decode_s=2000.0, answers=1000.0)
    fast = Measured(decode_tokens=2e4, decode_s=200.0, answers=100.0)
    both = Measured().plus(slow).plus(fast)
    assert both.decode_rate == pytest.approx(40_000 / 600)
    assert both.decode_tokens / both.answers == pytest.approx(133, rel=0.3)


sums = st.builds(
    Measured, **{name: st.floats(0, 1e6) for name in ("decode_tokens", "decode_s", "at")}
)


@given(st.lists(sums, max_size=20))
def test_sums_stay_bounded_and_finite(measured: list[Measured]) -> None:
    total = Measured()
    for each in measured:
        total = total.plus(each)
        assert 0 <= total.decode_tokens <= 20_000
        assert total.decode_s >= 0


def test_a_model_that_was_measured_is_told_as_such() -> None:
    speed = speed_of(ONE, [], parameters=10**9, size_bytes=10**9)
    assert speed is not None
    assert (speed.prompt_tokens_per_s, speed.decode_tokens_per_s, speed.load_s) == (200, 50, 2)
    assert speed.basis == "measured"
    assert speed.answer_tokens == 50


def test_a_model_that_was_not_is_reckoned_from_others_by_its_size() -> None:
    """Twice the bytes decode half as fast, twice the parameters are read half as fast."""
    speed = speed_of(None, [ONE], parameters=2 * 10**9, size_bytes=2 * 10**9)
    assert speed is not None
    assert speed.decode_tokens_per_s == pytest.approx(25)
    assert speed.prompt_tokens_per_s == pytest.approx(100)
    assert speed.basis == "estimated"
    alone = speed_of(None, [], parameters=2 * 10**9, size_bytes=2 * 10**9)
    assert alone is not None
    assert alone.basis == "estimated"
    assert speed_of(None, [ONE], parameters=None, size_bytes=None) is None


def test_a_load_alone_is_no_measurement_of_answers() -> None:
    loaded = Measured(loads=1.0, load_s=2.0)
    speed = speed_of(loaded, [], parameters=10**9, size_bytes=10**9)
    assert speed is not None
    assert speed.basis == "estimated"
    assert speed_of(loaded, [], parameters=None, size_bytes=None) is None


# --- keeping ----------------------------------------------------------------------------------


def test_what_was_learned_outlives_the_process(path: Path) -> None:
    book = SpeedBook(path)
    book.learn("k", ONE)
    known = book.get("k")
    assert known is not None
    assert known.decode_rate == 50
    assert SpeedBook(path).get("k") is None, "not yet"
    book.save()
    again = SpeedBook(path).get("k")
    assert again is not None
    assert (again.prompt_rate, again.decode_rate, again.mean_load_s) == (200, 50, 2)
    assert again.at > 0


def test_the_file_is_the_owners_alone(isolated_home: Path) -> None:
    directories().state.mkdir(parents=True, mode=0o755)  # as others may have made it
    book = SpeedBook()
    book.learn("k", ONE)
    book.save()
    folder = directories().state / "routing"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert {file.name for file in files} >= {"speeds.json"}
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"models": []}', b'{"models": {"k": 3}}',
        b'{"models": {"k": {"decode_tokens": 1}}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    book = SpeedBook(path)
    assert book.get("k") is None
    book.learn("k", ONE)
    book.save()
    assert SpeedBook(path).get("k") is not None


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), True, "1", None])
def test_a_record_that_makes_no_sense_is_dropped_and_others_stay(path: Path, value: object) -> None:
    book = SpeedBook(path)
    book.learn("bad", ONE)
    book.learn("good", ONE)
    book.save()
    stored = json.loads(path.read_text())
    stored["models"]["bad"]["decode_s"] = value
    path.write_text(json.dumps(stored))
    again = SpeedBook(path)
    assert again.get("bad") is None
    assert again.get("good") is not None


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    book = SpeedBook(blocked / "speeds.json")
    book.learn("k", ONE)
    book.save()
    assert book.get("k") is not None


def test_who_holds_the_lock_for_long_only_delays(path: Path) -> None:
    book = SpeedBook(path)
    book.learn("k", ONE)
    path.parent.mkdir()
    with FileLock(f"{path}.lock"):
        book.save()
        assert not path.exists()
    book.save()
    assert SpeedBook(path).get("k") is not None


def test_the_file_stays_bounded(path: Path) -> None:
    book = SpeedBook(path)
    for number in range(_speeds.MOST_MODELS + 20):
        book.learn(str(number), ONE)
    book.save()
    stored = json.loads(path.read_text())["models"]
    assert len(stored) == _speeds.MOST_MODELS
    assert "0" not in stored, "what was not used for longest goes"
    assert str(_speeds.MOST_MODELS + 19) in stored


_WRITER = """
import sys
from pathlib import Path
from runtime.client._speeds import Measured, SpeedBook
book = SpeedBook(Path(sys.argv[1]))
for _ in range(20):
    book.learn("k", Measured(decode_tokens=1.0, decode_s=0.1, answers=1.0))
    book.save()
"""


def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    run = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen(run) for _ in range(3)]
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    kept = SpeedBook(path).get("k")
    assert kept is not None
    assert (kept.decode_tokens, kept.answers) == (60, 60)


def test_others_on_the_same_engine_and_machine_are_found() -> None:
    book = SpeedBook()
    book.learn("engine 1|machine|a", ONE)
    book.learn("engine 1|machine|b", replace(ONE, decode_s=2.0))
    book.learn("engine 2|machine|a", ONE)
    (found,) = book.among("engine 1|machine|", but="engine 1|machine|a")
    assert found.decode_rate == 25
