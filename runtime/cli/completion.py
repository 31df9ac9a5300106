"""The command ``completion``, and what the shells' scripts ask when a key is pressed."""

from __future__ import annotations

import os
from typing import Final

import click
from click.shell_completion import (
    BashComplete,
    add_completion_class,
    get_completion_class,
    shell_complete,
    split_arg_string,
)

PROGRAM: Final = "llama-runtime"
VARIABLE: Final = "_LLAMA_RUNTIME_COMPLETE"

# Unlike click's, it gives the line itself, since bash splits words at colons and equals signs, and
# offers files only where no name fits.
_BASH: Final = r"""%(complete_func)s() {
    local IFS=$'\n' type value line=${COMP_LINE:0:COMP_POINT} cut=""
    local word=${line##*[[:space:]]}
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
    # bash replaces only what follows the last colon of the word
    [[ $word == *:* && $COMP_WORDBREAKS == *:* ]] && cut=${word%%"${word##*:}"}
    [[ $cut ]] && COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null ||
    complete -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """bash, told the line as it is."""

    source_template = _BASH

    def source(self) -> str:
        """The script; bash itself is not needed to write it."""
        return self.source_template % self.source_vars()

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that it is at."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        typing = bool(words) and not line[-1:].isspace()
        return words[1 : len(words) - typing], words[-1] if typing else ""


add_completion_class(_Bash)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options, models, servers and files.

    \b
    bash 4.4 or newer, with the package bash-completion; else add the line
    eval "$(llama-runtime completion bash)" to ~/.bashrc:
      mkdir -p ~/.local/share/bash-completion/completions
      llama-runtime completion bash > ~/.local/share/bash-completion/completions/llama-runtime

    \b
    zsh, in ~/.zshrc behind compinit:
      eval "$(llama-runtime completion zsh)"

    \b
    fish:
      llama-runtime completion fish > ~/.config/fish/completions/llama-runtime.fish
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - one of the choices
    click.echo(kind(click.Group(), {}, PROGRAM, VARIABLE).source(), nl=False)


def answer(instruction: str) -> int:
    """Tell the shell what the word at the cursor may become; returns the exit code."""
    from runtime.cli.outline import outline  # noqa: PLC0415 - not for the script

    return shell_complete(outline(), {}, PROGRAM, VARIABLE, instruction)
