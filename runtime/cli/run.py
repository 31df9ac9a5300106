"""The command ``run``: one answer on stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import output, prompts
from runtime.cli.asking import Backend, Sampling, conversation_options
from runtime.errors import ContextOverflowError, LLMInvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.cli.prompts import Attachment
    from runtime.client.sync import LlamaClient
    from runtime.contracts import LLMChatParams, LLMMessage, LLMResponse


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--file",
    "-f",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A text file to put into the prompt under its name. May be given repeatedly.",
)
@click.option(
    "--json-schema",
    metavar="FILE|JSON",
    help="Answer with JSON that is valid by this schema, and print that alone.",
)
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Print pieces as they come, or the whole at its end. [default: stream, but not JSON]",
)
@conversation_options
@click.option(
    "--json", "as_json", is_flag=True, help="Print the answer with all its facts as JSON."
)
def run(
    prompt: str | None,
    files: tuple[Path, ...],
    json_schema: str | None,
    model: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    base_url: str | None,
    *,
    stream: bool | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Answer PROMPT once, on stdout.

    Files come behind the prompt, and behind them what is piped in; `-` is the pipe, too.

    \b
      llama-runtime run "Name three rivers"
      cat notes.txt | llama-runtime run "Summarize this:"
      llama-runtime run "What differs?" --file old.py --file new.py
      llama-runtime run "A person" --json-schema person.schema.json | jq .name
      llama-runtime run - --temperature 0 --seed 1 --max-tokens 100 < prompt.txt
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    if as_json and stream:
        raise click.UsageError("--json prints the whole answer: it cannot be streamed.")
    schema = None if json_schema is None else read_schema(json_schema)
    attachments = [prompts.read_file(path) for path in files]
    piped = prompts.read_stdin() if prompt == "-" or not sys.stdin.isatty() else ""
    text = prompts.joined(None if prompt == "-" else prompt, attachments, piped)
    if not text:
        raise LLMInvalidRequestError(
            "There is no prompt.", hint='For example: llama-runtime run "Name three rivers"'
        )
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    params = sampling.params()
    params.response_schema = schema
    messages = _messages(system, text)
    with Backend(model=model, base_url=base_url, settings=settings).open() as client:
        try:
            if as_json:
                output.result_json(dataclasses.asdict(client.chat(messages, params=params)))
            elif stream or (stream is None and schema is None):
                _stream(client, messages, params)
            else:
                output.result(_noted(client.chat(messages, params=params)).text.strip())
        except ContextOverflowError as exc:
            if not attachments:
                raise
            raise _too_long(exc, client, attachments) from exc


def read_schema(given: str) -> dict[str, object]:
    """A JSON Schema, written out or in the file of that name.

    Raises:
        LLMInvalidRequestError: It is neither, or no JSON object.
    """
    inline = given.lstrip().startswith("{")
    name = "--json-schema" if inline else given
    text = given if inline else prompts.read_file(Path(given)).text
    try:
        schema = json.loads(text)
    except ValueError as exc:
        raise LLMInvalidRequestError(
            f"{name} is not JSON: {exc}.", hint='A JSON Schema, such as \'{"type": "object"}\'.'
        ) from exc
    if not isinstance(schema, dict):
        raise LLMInvalidRequestError(
            f"{name} is a JSON {type(schema).__name__}, not an object.",
            hint='A JSON Schema, such as \'{"type": "object"}\'.',
        )
    return schema


def _messages(system: str | None, text: str) -> list[LLMMessage]:
    from runtime.contracts import LLMMessage  # noqa: PLC0415 - the help does not need it

    first = [LLMMessage(role="system", content=system)] if system else []
    return [*first, LLMMessage(role="user", content=text)]


def _stream(client: LlamaClient, messages: Sequence[LLMMessage], params: LLMChatParams) -> None:
    """Print an answer as it comes."""
    with client.stream_chat(messages, params=params) as events:
        for event in events:
            if event.delta_text:
                output.piece(event.delta_text)
            if event.response is not None:
                output.piece("\n")
                _noted(event.response)


def _noted(response: LLMResponse) -> LLMResponse:
    if response.finish_reason == "length":
        limit = (response.raw or {}).get("length_limit") or "token limit"
        output.note(f"(cut off: {limit} was reached)")
    return response


def _too_long(
    exc: ContextOverflowError, client: LlamaClient, attachments: Sequence[Attachment]
) -> ContextOverflowError:
    """The same with the tokens of each file, and a context that would do."""
    sizes = [(each.name, client.count_tokens(each.text)) for each in attachments]
    told = ", ".join(f"{name} {tokens:,}" for name, tokens in sizes)
    wanted = -(-((exc.prompt_tokens or sum(n for _, n in sizes)) + 512) // 1024) * 1024
    return ContextOverflowError(
        f"{exc.message} Tokens of the files: {told}.",
        prompt_tokens=exc.prompt_tokens,
        context_tokens=exc.context_tokens,
        hint=f"Give less, or more context (--ctx-size {wanted}), as far as the model was "
        "trained for it.",
    )
