"""The benchmark's page and plot say what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from bench import loaded
from bench_plot import svg
from bench_report import COLD, OURS, Overhead, Recording, Sample, markdown, speed_ratio

if TYPE_CHECKING:
    from pathlib import Path

# Round by round: the machine is twice as slow in the second, for everybody.
OWN = (120.0, 60.0, 130.0)
RIVALS = (60.0, 30.0, 61.0)


def sample(number: int, who: str, measure: str, at_once: int = 1, **values: float) -> Sample:
    digests = ("same", f"of {who}")
    return Sample(
        round=number, competitor=who, measure=measure, at_once=at_once, values=values,
        digests=digests,
    )  # fmt: skip


RECORDING = Recording(
    machine={"processor": "x86_64, 2 cores"},
    model="a-model, 98 MB",
    command="python scripts/bench.py --rounds 3",
    competitors={OURS: "default settings", "rival": "its <own> defaults"},
    titles={"free-text": "a story", "agent-loop": "turns"},
    samples=[
        *(sample(n, OURS, "agent-loop", tokens_per_s=v, first_token_s=0.05, last_first_token_s=0.1)
          for n, v in enumerate(OWN)),
        *(sample(n, "rival", "agent-loop", tokens_per_s=v, first_token_s=0.07)
          for n, v in enumerate(RIVALS)),
        *(sample(n, OURS, COLD, first_token_s=2.0) for n in range(3)),
        sample(0, OURS, "free-text", 4, tokens_per_s=170.0),
        sample(0, OURS, "start", ready_s=0.5, first_token_s=0.6),
        sample(0, OURS, "memory", engine_bytes=300 * 2**20, beside_bytes=40 * 2**20),
    ],
    failures=["rival, free-text: it hung up"],
    overhead=[Overhead(name="start to ready", unit="ms", bare=400.0, ours=440.0, ratio=1.1)],
)  # fmt: skip


def row(page: str, head: str, nth: int = 0) -> list[str]:
    """The cells of the n-th row with that head."""
    found = [line for line in page.splitlines() if line.startswith(f"| {head} |")]
    return [cell.strip() for cell in found[nth].strip("|").split("|")][1:]


def test_a_figure_is_the_median_with_its_spread() -> None:
    assert row(markdown(RECORDING), "agent-loop") == [
        "120.0 (60.0 to 130.0)",
        "60.0 (30.0 to 61.0)",
    ]


def test_a_ratio_is_that_of_neighbours() -> None:
    """A machine that is slow for one round strikes both sides of it."""
    assert speed_ratio(RECORDING, "rival", "agent-loop", 1) == pytest.approx(
        {0: 2.0, 1: 2.0, 2: 130 / 61}
    )
    assert row(markdown(RECORDING), "agent-loop", 1) == ["2.00 (2.00 to 2.13)"]


def test_a_round_that_one_side_lacks_is_in_no_ratio() -> None:
    fewer = [each for each in RECORDING.samples if (each.round, each.competitor) != (0, "rival")]
    found = speed_ratio(replace(RECORDING, samples=fewer), "rival", "agent-loop", 1)
    assert sorted(found) == [1, 2]


def test_what_was_not_measured_is_left_open() -> None:
    assert row(markdown(RECORDING), "free-text, 4 at once") == ["170.0", "-"]


def test_the_page_tells_where_it_comes_from() -> None:
    page = markdown(RECORDING)
    for fact in ("x86_64, 2 cores", "a-model, 98 MB", "default settings", RECORDING.command):
        assert fact in page
    assert row(page, OURS) == ["100 (100 to 100)", "2000 (2000 to 2000)", "5.0 % (5.0 to 5.0)", "-"]
    assert row(page, "start to first token, ms") == ["600", "-"]
    assert row(page, "beside the engine, MiB") == ["40", "-"]
    assert row(page, "start to ready, ms", 1) == ["400.0", "440.0", "1.100"]
    assert "3 of 6 as with rival" in page  # a digest of two in each of three rounds
    assert "rival, free-text: it hung up" in page


def test_the_plot_has_a_bar_for_each_figure_in_proportion() -> None:
    drawing = svg(RECORDING)
    root = ElementTree.fromstring(drawing)
    space = {"s": "http://www.w3.org/2000/svg"}
    bars = {
        title.text: float(bar.get("width", 0))
        for bar in root.findall("s:rect", space)
        if (title := bar.find("s:title", space)) is not None
    }
    assert list(bars) == [f"{OURS}: 170.0 tok/s", f"{OURS}: 120.0 tok/s", "rival: 60.0 tok/s"]
    own, rival = bars[f"{OURS}: 120.0 tok/s"], bars["rival: 60.0 tok/s"]
    assert own == pytest.approx(2 * rival, abs=0.1)
    assert re.search(r"prefers-color-scheme: dark", drawing)
    width, height = (float(each) for each in root.get("viewBox", "").split()[2:])
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 <= float(text.get("x", -1)) < width
        assert 0 < float(text.get("y", -1)) < height


def test_a_recording_is_read_as_it_was_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(asdict(RECORDING)), "utf-8")
    assert markdown(loaded(kept)) == markdown(RECORDING)
