"""Command line options made from the settings, so that the two can never differ."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, Literal

import click

from runtime.settings import ServerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic.fields import FieldInfo

# Written as arguments, or fit for no command line: a key there could be read by every user.
_NOT_OPTIONS = {"model", "api_key", "env", "restart"}

# The settings that matter when a program runs one model for itself.
COMMON = ("engine", "ctx_size", "threads", "gpu_layers", "device")


def server_options(
    names: Iterable[str] | None = None, **defaults: object
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for each setting (or those named); :func:`chosen` reads them back."""
    fields = {
        name: field
        for name, field in ServerConfig.model_fields.items()
        if name not in _NOT_OPTIONS and (names is None or name in names)
    }

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(fields.items()):
            command = _option(name, field, defaults.get(name))(command)
        return command

    return decorate


def _option(name: str, field: FieldInfo, default: object) -> Any:
    flag = "--" + name.replace("_", "-")
    help_text = field.description or ""
    if field.annotation is bool:
        return click.option(
            f"{flag}/--no-{name.replace('_', '-')}", name, default=None, help=help_text
        )
    if typing.get_origin(field.annotation) is tuple:
        return click.option(flag, name, multiple=True, help=f"{help_text} May be given repeatedly.")
    choices = _choices(field.annotation)
    kind = click.Choice(choices) if choices else None
    shown = default if default is not None else field.default
    if shown not in {None, ""}:
        help_text = f"{help_text} [default: {shown}]"
    metavar = None if choices else "TEXT" if _is_text(field.annotation) else "NUMBER"
    return click.option(flag, name, type=kind, default=None, metavar=metavar, help=help_text)


def _choices(annotation: object) -> list[str]:
    """The words of a plain Literal (perhaps or None); empty for everything else."""
    parts = [part for part in (typing.get_args(annotation) or ()) if part is not type(None)]
    if typing.get_origin(annotation) is Literal:
        return [str(word) for word in parts]
    if len(parts) == 1 and typing.get_origin(parts[0]) is Literal:
        return [str(word) for word in typing.get_args(parts[0])]
    return []


def _is_text(annotation: object) -> bool:
    kinds = {annotation, *typing.get_args(annotation)}
    return not kinds & {int, float}


def chosen(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given; the rest stays with the environment and the defaults."""
    return {name: value for name, value in values.items() if value not in {None, ()}}
