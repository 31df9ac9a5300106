"""A quick benchmark on a tiny model: all the way from the engines to the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENGINES

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif("xllamacpp" not in ENGINES, reason="compares with xllamacpp"),
]

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)


def test_a_quick_run_measures_and_writes_the_page(tiny_model_path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    common = ("--quick", "--scale", 0.05, "--model", tiny_model_path, "--threads", 1,
              "--only", "xllamacpp", "--also", "cache_type_k=q8_0", "--record", kept,
              "--out", tmp_path)  # fmt: skip
    done = bench(*common)
    assert done.returncode == 0, done.stderr
    told = json.loads(kept.read_text("utf-8"))
    measured = {(each["competitor"], each["measure"]) for each in told["samples"]}
    for name in ("llama-runtime", "xllamacpp"):
        for measure in ("free-text", "agent-loop", "json", "start", "memory"):
            assert (name, measure) in measured
    assert ("llama-runtime", "last turn, cold") in measured
    assert ("llama-runtime, cache_type_k=q8_0", "agent-loop") in measured
    assert "cache_type_k=q8_0" in told["competitors"]["llama-runtime, cache_type_k=q8_0"]
    for each in told["samples"]:
        assert all(value >= 0 for value in each["values"].values())
    assert {each["name"] for each in told["overhead"]} >= {
        "start to ready",
        "throughput, 1 at once",
    }
    assert not told["failures"]
    page = (tmp_path / "benchmarks.md").read_text("utf-8")
    assert "| agent-loop |" in page
    assert str(tmp_path) not in page
    *_, last = (line.split() for line in done.stderr.splitlines())
    assert last[0] == last[2]  # "26 of 26": progress has told how much there was
    assert (tmp_path / "benchmarks.svg").is_file()

    again = bench(*common)  # nothing is left to measure
    assert again.returncode == 0, again.stderr
    assert "tok/s" not in again.stderr
    assert json.loads(kept.read_text("utf-8")) == told
