"""What the gateway's process does for itself."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import gc
from runtime.gateway import running
running._spare_collector()
print(len(gc.get_objects()))
"""


def test_the_garbage_collector_does_not_walk_over_the_program() -> None:
    """Tens of thousands of objects, for which it held up every stream for 20 ms and more."""
    done = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 2_000
