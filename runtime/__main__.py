"""``python -m runtime`` is ``llama-runtime``."""

from runtime.cli.app import main

if __name__ == "__main__":
    main()
