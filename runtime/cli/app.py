"""``llama-runtime``: serve a model, talk to it, see what runs, manage models and engines.

Nothing heavy is imported before a command needs it: the help and the shell's completions come at
once.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from runtime.cli import exit_codes
from runtime.cli.lazy import LazyGroup, Place
from runtime.errors import LLMError

COMMANDS: Final = {
    "serve": Place("runtime.cli.servers", "serve", "Serve MODEL on a fixed port until Ctrl-C."),
    "chat": Place("runtime.cli.chat", "chat", "Talk with MODEL in the terminal."),
    "run": Place("runtime.cli.run", "run", "Answer PROMPT once, on stdout."),
    "embed": Place("runtime.cli.embed", "embed", "Print a vector for each text, as JSON."),
    "ps": Place("runtime.cli.running", "ps", "Show the gateways and engines that run here."),
    "top": Place("runtime.cli.top", "top", "Watch a running gateway, live."),
    "stop": Place(
        "runtime.cli.running", "stop", "End a gateway: by its name, model, process id or port."
    ),
    "logs": Place("runtime.cli.logs", "logs", "Show the last lines that a server printed."),
    "models": Place("runtime.cli.models", "models", "Find, fetch and look at models."),
    "sessions": Place("runtime.cli.sessions", "sessions", "Show and remove saved conversations."),
    "engines": Place("runtime.cli.engines", "engines_", "Show which engines are here."),
    "tune": Place("runtime.cli.tune", "tune", "Find the fastest settings for MODEL, by measuring."),
    "doctor": Place("runtime.cli.doctor", "doctor", "Look at this machine, engines and files."),
    "completion": Place(
        "runtime.cli.completion", "completion", "Print what completes commands in your shell."
    ),
    "help": Place("runtime.cli.help", "help_", "Show the help of a command, or of a topic."),
}
"""Every command; each module is imported when its command is used."""


@click.group(
    cls=LazyGroup,
    places=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`llama-runtime COMMAND --help` has examples; `llama-runtime help exit-codes` tells "
    "what the exit codes mean, `llama-runtime help environment` what the environment can say.",
)
@click.version_option(package_name="llama-runtime", message="%(package)s %(version)s")
@click.option("--offline", is_flag=True, help="Never use the network; what is on disk works.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the runtime does, on stderr.")
def cli(*, offline: bool, verbose: bool) -> None:
    """A managed llama.cpp: fetch a model, serve it, talk to it.

    \b
      llama-runtime serve                      an OpenAI-compatible server on port 8080
      llama-runtime chat                       talk in the terminal
      llama-runtime run "Name three rivers"    one answer on stdout
      llama-runtime models recommend           models that fit this machine
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    import logging  # noqa: PLC0415 - of no use to the help

    if offline:
        os.environ["LLAMA_RUNTIME_OFFLINE"] = "1"
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def main() -> None:
    """Run the command line; every failure becomes a message and an exit code.

    Raises:
        ImportError: A package that is needed is missing or broken; ``runtime.__main__`` says which.
    """
    if instruction := os.environ.get("_LLAMA_RUNTIME_COMPLETE"):
        from runtime.cli.completion import answer  # noqa: PLC0415 - for shells alone

        sys.exit(answer(instruction))
    try:
        code = cli.main(prog_name="llama-runtime", standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        from runtime.cli import output  # noqa: PLC0415

        output.note("Stopped.")
        code = exit_codes.INTERRUPTED
    except LLMError as exc:
        from runtime.cli import output  # noqa: PLC0415

        if _debugging():
            raise
        code = output.failure(exc)
    except ImportError:
        raise
    except Exception as exc:  # the top of the program: a defect is told, not traced
        from runtime.cli import output  # noqa: PLC0415

        if _debugging():
            raise
        output.err.print(f"[bold red]Defect:[/bold red] {type(exc).__name__}: {exc}", markup=True)
        output.note("This is a defect of llama-runtime. LLAMA_RUNTIME_DEBUG=1 shows where it is.")
        code = exit_codes.DEFECT
    sys.exit(code if isinstance(code, int) else 0)


def _debugging() -> bool:
    from runtime.settings import debug_wanted  # noqa: PLC0415

    return debug_wanted()
