"""The keeper's entry, run as a script by itself, without site and without this package.

What it imports comes compiled; a script would be compiled at each start.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - slow import

from keeping import main  # type: ignore[import-not-found]  # the line above finds it

if __name__ == "__main__":
    os._exit(main())  # at once: the owner waits for this end before it acts on the engine's
