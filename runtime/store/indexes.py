"""Which package indexes the user has configured, for pip or for uv.

Read by ourselves, for pip need not be installed where this runs. Left out of pip's configuration:
keyrings and client certificates.
"""

from __future__ import annotations

import configparser
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DEFAULT: Final = "https://pypi.org/simple"
_SECTIONS: Final = ("global", "install", "download")  # the later ones win, as in pip


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """Where packages come from.

    Attributes:
        indexes: Addresses of simple indexes (PEP 503, PEP 691), in the order to ask.
        find_links: Folders or pages with links to files, asked first.
        ca_file: Certificates to trust instead of the system's, or None.
    """

    indexes: tuple[str, ...] = (_DEFAULT,)
    find_links: tuple[str, ...] = ()
    ca_file: str | None = None


def index_settings(
    environ: Mapping[str, str] | None = None,
    *,
    pip_files: Sequence[Path] | None = None,
    uv_files: Sequence[Path] | None = None,
) -> IndexSettings:
    """The configured indexes: pip's settings, else uv's for what pip's leave open, else PyPI.

    Args:
        environ: Instead of the process's environment.
        pip_files: Instead of pip's configuration files, the later one winning.
        uv_files: Instead of uv's.
    """
    environ = os.environ if environ is None else environ
    pip = _pip_values(environ, _pip_files(environ) if pip_files is None else pip_files)
    uv = _uv_values(environ, _uv_files(environ) if uv_files is None else uv_files)

    def words(name: str) -> list[str]:
        return pip.get(name, "").split() or uv.get(name, "").split()

    main = words("index-url")[:1] or [_DEFAULT]
    if pip.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        main, extra = [], []
    else:
        extra = words("extra-index-url")
    return IndexSettings(
        indexes=tuple(dict.fromkeys(url.rstrip("/") for url in [*main, *extra])),
        find_links=tuple(words("find-links")),
        ca_file=pip.get("cert") or None,
    )


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    home = Path.home()
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    system = [Path(part) / "pip" for part in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    if sys.platform == "darwin":
        system = [Path("/Library/Application Support/pip")]
        mac_home = home / "Library/Application Support/pip"
        config_home = mac_home.parent if mac_home.is_dir() else config_home
    folders = [
        *reversed(system),
        Path("/etc"),
        home / ".pip",
        config_home / "pip",
        Path(sys.prefix),
    ]
    return [folder / "pip.conf" for folder in folders] + ([Path(named)] if named else [])


def _pip_values(environ: Mapping[str, str], files: Sequence[Path]) -> dict[str, str]:
    values: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue  # pip complains of it loudly enough
        for section in _SECTIONS:
            if parser.has_section(section):
                values.update({k.replace("_", "-"): v for k, v in parser.items(section)})
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            values[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return values


def _uv_files(environ: Mapping[str, str]) -> list[Path]:
    config_home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    named = environ.get("UV_CONFIG_FILE")
    return [Path("/etc/uv/uv.toml"), config_home / "uv/uv.toml"] + ([Path(named)] if named else [])


def _uv_values(environ: Mapping[str, str], files: Sequence[Path]) -> dict[str, str]:
    values: dict[str, str] = {}
    for file in files:
        try:
            document = tomllib.loads(file.read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            continue
        extra = document.get("extra-index-url", [])
        tables = [t for t in document.get("index", []) if isinstance(t, dict) and t.get("url")]
        main = [str(t["url"]) for t in tables if t.get("default")] or [
            str(document.get("index-url", ""))
        ]
        values["index-url"] = main[0] or values.get("index-url", "")
        more = [str(t["url"]) for t in tables if not t.get("default")]
        more += [str(url) for url in extra] if isinstance(extra, list) else []
        values["extra-index-url"] = " ".join([values.get("extra-index-url", ""), *more])
    values["index-url"] = (
        environ.get("UV_DEFAULT_INDEX")
        or environ.get("UV_INDEX_URL")
        or values.get("index-url", "")
    )
    named = f"{environ.get('UV_INDEX', '')} {environ.get('UV_EXTRA_INDEX_URL', '')}".strip()
    values["extra-index-url"] = named or values.get("extra-index-url", "")
    values["find-links"] = environ.get("UV_FIND_LINKS", "").replace(",", " ")
    # uv lets an index have a name: name=https://…
    return {
        key: " ".join(
            word.split("=", 1)[1] if "=" in word.split("://")[0] else word for word in value.split()
        )
        for key, value in values.items()
    }
