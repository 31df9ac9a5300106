"""What is kept of a download, and the figures that are told about it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from runtime.store.meter import Meter
from runtime.store.partial import Partial

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.store.local import PullProgress

_SHA = "a" * 64


def _left_behind(target: Path, *, url: str, sha256: str | None, etag: str | None) -> None:
    partial = Partial(target, url=url, sha256=sha256)
    partial.remember(etag)
    with partial.appending() as take:
        take(b"GGUF")


@pytest.mark.parametrize(
    ("left", "wanted", "size"),
    [
        (("u", _SHA, None), ("u", _SHA), 4),
        (("u", _SHA, None), ("other", _SHA), 4),
        (("u", _SHA, None), ("u", "b" * 64), 0),
        (("u", _SHA, None), ("u", None), 0),
        (("u", None, '"1"'), ("u", None), 4),
        (("u", None, '"1"'), ("other", None), 0),
        (("u", None, None), ("u", None), 0),
        (("u", None, 'W/"1"'), ("u", None), 0),
        (("u", None, '"1"'), ("u", _SHA), 0),
    ],
)
def test_only_a_part_of_the_same_version_is_taken_up(
    tmp_path: Path,
    left: tuple[str, str | None, str | None],
    wanted: tuple[str, str | None],
    size: int,
) -> None:
    _left_behind(tmp_path / "m", url=left[0], sha256=left[1], etag=left[2])
    assert Partial(tmp_path / "m", url=wanted[0], sha256=wanted[1]).size_of_same_version() == size


@pytest.mark.parametrize("state", [b"", b"{}", b"[]", b"null", b'{"sha256": 1}', b"\xff"])
def test_a_part_of_an_unknown_version_is_not_taken_up(tmp_path: Path, state: bytes) -> None:
    _left_behind(tmp_path / "m", url="u", sha256=_SHA, etag=None)
    (tmp_path / "m.part.json").write_bytes(state)
    assert Partial(tmp_path / "m", url="u", sha256=_SHA).size_of_same_version() == 0


def test_a_part_taken_up_ends_as_the_whole(tmp_path: Path) -> None:
    _left_behind(tmp_path / "m", url="u", sha256=_SHA, etag='"1"')
    partial = Partial(tmp_path / "m", url="u", sha256=_SHA)
    steps: list[int] = []
    partial.take_over(steps.append)
    assert (partial.offset, sum(steps)) == (4, 4)
    with partial.appending() as take:
        take(b" and more")
    assert partial.sha256 == hashlib.sha256(b"GGUF and more").hexdigest()
    partial.put_in_place()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_bytes() == b"GGUF and more"


def test_what_is_discarded_is_gone(tmp_path: Path) -> None:
    _left_behind(tmp_path / "m", url="u", sha256=_SHA, etag='"1"')
    partial = Partial(tmp_path / "m", url="u", sha256=_SHA)
    partial.take_over(lambda count: None)
    partial.discard()
    assert (partial.offset, partial.etag) == (0, None)
    assert partial.sha256 == hashlib.sha256().hexdigest()
    assert list(tmp_path.iterdir()) == []


def test_the_speed_is_that_of_the_last_seconds() -> None:
    now = 0.0
    heard: list[PullProgress] = []
    meter = Meter(heard.append, clock=lambda: now)
    meter.source("hub")
    meter.begin("downloading", "m", total=10_000)
    for second in range(1, 21):
        now = float(second)
        meter.advance(10 if second <= 10 else 100)
    assert heard[-1].done_bytes == 1100
    assert heard[-1].speed_bytes_s == pytest.approx(100)
    assert heard[-1].eta_s == pytest.approx(89)
    assert heard[0].eta_s is None


def test_ten_times_a_second_is_enough() -> None:
    now = 0.0
    heard: list[PullProgress] = []
    meter = Meter(heard.append, clock=lambda: now)
    meter.begin("downloading", "m", total=None)
    for hundredth in range(1, 101):
        now = hundredth / 100
        meter.advance(1)
    assert 9 <= len(heard) - 1 <= 11
    meter.finish("m", 100)
    assert (heard[-1].phase, heard[-1].done_bytes, heard[-1].total_bytes) == ("done", 100, 100)
