"""Taking secrets, prompts and names out of what a user hands to others. No I/O."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

REMOVED: Final = "<removed>"
LINE_REMOVED: Final = "<a line of no known kind was left out>"

_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_SHORTEST_SECRET: Final = 4
_SHORTEST_NAME: Final = 3
_PUBLIC_NAMES: Final = frozenset({"root", "localhost", "runtime", "llama", "user", "python"})

_SECRETS: Final = (
    re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"),  # user and password of an address
    re.compile(r"(?<=\?)[^\s'\"<>]*=[^\s'\"<>]*"),  # the query of one: signed addresses
    re.compile(r"(?i)(?<=\bbearer )\S+"),
    re.compile(r"\bhf_[A-Za-z0-9]{6,}"),
    re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{6,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+"),  # JSON web tokens
    re.compile(r"(?<![\w-])[A-Za-z0-9_-]{43}(?![\w-])"),  # the runtime's own keys
    re.compile(
        r"(?i)(?<=\b)(?:api[-_ ]?key|token|password|passwd|secret)\b[\"']?\s*[:=]\s*"
        r"(?:\"[^\"]*\"|'[^']*'|[^\s\"',}]+)"
    ),
)
_HOMES: Final = re.compile(r"(?i)((?:/home|/Users|[A-Z]:\\+Users)[/\\]+)[^/\\\s'\"]+")

# What llama.cpp, its hosts and our keeper begin their lines with. A prompt may hold line breaks,
# and so may an error that quotes it: what is not known to be theirs is left out.
_LOG_LINE: Final = re.compile(
    r"^(?:[\d.]+ [A-Z] )?"
    r"(?:(?:srv|slot|cmn|que|res|main|init|load|build|sched|clip|print_info|system_info|common_\w+|"
    r"llama_\w+|ggml_\w+|gguf_\w+|load_\w+|sched_\w+)\s*[\w()~ ]*:|@llama-runtime |"
    r"\[llama-runtime\])"
)
# Our own host's facts: its words begin the line, and a user has no part in them.
_HOST_LINE: Final = re.compile(r'^(?:[\d.]+ [A-Z] )?@llama-runtime \{"(?:version|base_url)": ')
_QUOTED: Final = re.compile(r"'[^']{24,}'|\"[^\"]{24,}\"?|`[^`]{24,}`")
_TEXT_AHEAD: Final = re.compile(
    r"(?i)(prompt|content|message|input|text|generated|response|request|body|template|token_str|"
    r"exception|what\(\))(?:\W*(?:is|was))?\s*(?:\"|')?\s*[:=](?!\s*[\d.]+\s*(?:$|,|/|ms)).*"
)

# Names in snapshots and answers under which a user's own words may stand.
_WORDS: Final = frozenset(
    {"error", "errors", "messages", "message", "prompt", "text", "content", "logs", "log",
     "history", "chat_template", "api_key", "key", "input", "output", "extra_server_args"}
)  # fmt: skip


class Redactor:
    """Takes out what must not leave the machine."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        homes: Iterable[str],
        users: Iterable[str],
        hosts: Iterable[str],
    ) -> None:
        """Prepare.

        Args:
            environ: The environment: what it holds under a secret's name is one.
            homes: Home folders.
            users: The user's names.
            hosts: The machine's names.
        """
        secrets = {value for value in _secrets(environ) if len(value) >= _SHORTEST_SECRET}
        secrets |= {repr(value)[1:-1] for value in secrets}
        secrets |= {json.dumps(value)[1:-1] for value in secrets}
        self._literal = [(value, REMOVED) for value in sorted(secrets, key=len, reverse=True)]
        for home in sorted({home.rstrip("/\\") for home in homes}, key=len, reverse=True):
            if len(home) >= _SHORTEST_NAME and home != "/":
                self._literal.append((home, "~"))
        self._names = [
            (re.compile(rf"(?i)(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])"), instead)
            for names, instead in ((users, "<user>"), (hosts, "<host>"))
            for name in sorted(set(names), key=len, reverse=True)
            if len(name) >= _SHORTEST_NAME and name.lower() not in _PUBLIC_NAMES
        ]

    def text(self, text: str) -> str:
        """The text without secrets and names."""
        for literal, instead in self._literal:
            text = text.replace(literal, instead)
        for pattern in _SECRETS:
            text = pattern.sub(REMOVED, text)
        text = _HOMES.sub(r"\1<user>", text)
        for pattern, instead in self._names:
            text = pattern.sub(instead, text)
        return text

    def value(self, value: object) -> object:
        """A JSON value without secrets, names and whatever stands where words may stand."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {
                    self.text(str(key)): REMOVED
                    if held and str(key).lower() in _WORDS
                    else self.value(held)
                    for key, held in value.items()
                }
            case list() | tuple():
                return [self.value(held) for held in value]
            case _:
                return value

    def log(self, lines: Iterable[str]) -> Iterator[str]:
        """Lines of an engine's log that are known to hold no words of a user's."""
        left_out = False
        for line in lines:
            if _LOG_LINE.match(line):
                left_out = False
                yield self.text(line if _HOST_LINE.match(line) else _without_words(line))
            elif not left_out:
                left_out = True
                yield LINE_REMOVED


def _without_words(line: str) -> str:
    return _QUOTED.sub(REMOVED, _TEXT_AHEAD.sub(rf"\1: {REMOVED}", line))


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def _secrets(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if is_secret(name) or name == "LLAMA_RUNTIME_ENV":
            yield value
        if name == "LLAMA_RUNTIME_ENV":
            # Also of what is no JSON: an error may quote it in part.
            yield from re.findall(r"\"([^\"]+)\"", value)
