"""Writes a tiny random-weights GGUF model: ``python scripts/make_tiny_model.py tiny.gguf``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

from runtime.errors import LLMError
from runtime.testing.tiny_model import TensorType, TinyShape, build_tiny_model


def main(arguments: list[str] | None = None) -> int:
    """Builds the model that the arguments describe; 0 when it is written, 1 when it cannot be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the .gguf file to write")
    parser.add_argument("--kind", choices=("chat", "embedding"), default="chat")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tools", action="store_true", help="a chat template that knows tools")
    for field in fields(TinyShape):
        name = "--" + field.name.replace("_", "-")
        if field.name == "tensor_type":
            parser.add_argument(name, choices=get_args(TensorType), default=field.default)
        else:
            parser.add_argument(name, type=int, default=field.default, metavar="N")
    options = vars(parser.parse_args(arguments))
    shape = TinyShape(**{field.name: options.pop(field.name) for field in fields(TinyShape)})
    try:
        path = build_tiny_model(shape=shape, **options)
    except (LLMError, ValueError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
