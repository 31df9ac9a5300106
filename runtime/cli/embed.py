"""The command ``embed``: a vector for each text."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from runtime.cli import output
from runtime.cli.asking import Backend
from runtime.cli.options import COMMON, server_options
from runtime.settings import DEFAULT_MODEL


@click.command()
@click.argument("texts", nargs=-1)
@click.option("--model", "-m", default=DEFAULT_MODEL, show_default=True, help="The model.")
@click.option("--base-url", metavar="URL", help="Use a server that runs already.")
@click.option("--truncate", is_flag=True, help="Cut what is too long instead of refusing it.")
@server_options(COMMON)
def embed(
    texts: tuple[str, ...],
    model: str,
    base_url: str | None,
    *,
    truncate: bool,
    **settings: Any,
) -> None:
    """Print a vector for each text, or for each line of stdin, as a line of JSON.

    \b
      llama-runtime embed "one text" "another"
      llama-runtime embed -m nomic-embed-v1.5 < lines.txt > vectors.jsonl
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    wanted = list(texts)
    if not wanted and not sys.stdin.isatty():
        wanted = [line for line in sys.stdin.read().splitlines() if line.strip()]
    with Backend(model=model, base_url=base_url, settings=settings).open() as client:
        made = client.embed(wanted, truncate=truncate)
        for each in getattr(made, "truncated", ()):
            output.note(f"Text {each.index}: {each.kept} of its {each.tokens} tokens are embedded.")
        for vector in made.vectors:
            output.result(json.dumps(list(vector)))
