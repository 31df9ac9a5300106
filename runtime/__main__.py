"""``python -m runtime`` is ``llama-runtime``."""

import os
import sys

from runtime.cli import broken


def main() -> None:
    """Run the command line, or say which package keeps it from running."""
    try:
        from runtime.cli import app  # noqa: PLC0415 - what it needs may be broken

        app.main()
    except ImportError as exc:
        if os.environ.get("LLAMA_RUNTIME_DEBUG"):
            raise
        code = broken.tell(exc)
        if code is None:
            raise
        sys.exit(code)


if __name__ == "__main__":
    main()
