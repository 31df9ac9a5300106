"""What the pytest plugin costs: loaded and not used, and a hundred tests on the tiny model.

python scripts/plugin_bench.py [--workers N]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGIN = "runtime.testing.plugin"
TESTS = 100
MOST_SECONDS = 10.0

PROJECT = f"""
import pytest
from runtime import LLMChatParams

@pytest.mark.parametrize("number", range({TESTS}))
def test_an_answer(llama_client, number):
    answer = llama_client.chat(f"What is {{number}}?", params=LLMChatParams(max_tokens=32))
    assert answer.usage.completion_tokens == 32
"""

# The plugin's own time, once pytest has imported what it needs itself.
IMPORT = f"""
import time, pytest
begun = time.perf_counter()
import {PLUGIN}
print((time.perf_counter() - begun) * 1000)
"""


def environment() -> dict[str, str]:
    """This environment without other plugins, whose time is not ours."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def import_ms() -> float:
    """Milliseconds to load the plugin where nothing uses it; the best of five."""
    run = [sys.executable, "-c", IMPORT]
    return min(float(subprocess.check_output(run, env=environment())) for _ in range(5))


def hundred_tests(workers: int) -> tuple[float, float]:
    """Seconds for the whole command, and what pytest counts of them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", PLUGIN]
    if workers:
        command += ["-p", "xdist.plugin", "-n", str(workers)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pytest.ini").write_text("[pytest]\n", "utf-8")
        Path(folder, "test_hundred.py").write_text(PROJECT, "utf-8")
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
        took_s = time.monotonic() - begun
    counted = re.search(rf"{TESTS} passed in ([\d.]+)s", done.stdout)
    if counted is None:
        sys.exit(done.stdout + done.stderr)
    return took_s, float(counted[1])


def main() -> None:
    """Measure and print; exit with 1 when it takes too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=0, help="processes of pytest-xdist")
    workers = parser.parse_args().workers
    print(f"loading the plugin: {import_ms():.1f} ms")
    took_s, counted_s = hundred_tests(workers)
    print(f"{TESTS} tests on the tiny model: {counted_s:.1f} s, the whole command {took_s:.1f} s")
    sys.exit(took_s > MOST_SECONDS)


if __name__ == "__main__":
    main()
