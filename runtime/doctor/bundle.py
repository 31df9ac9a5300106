"""A report to hand to others: findings, versions, settings, servers, ends of logs; redacted."""

from __future__ import annotations

import getpass
import importlib.metadata
import io
import json
import platform
import re
import socket
import sys
import tarfile
import time
import zipfile
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.doctor.redaction import Redactor, is_secret
from runtime.errors import LLMInvalidRequestError, StorageError
from runtime.server import probe, registry
from runtime.server.listeners import who_listens
from runtime.store.disk import disk_error, private_opener

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.doctor.finding import Finding
    from runtime.doctor.site import Site

LOGS_TAKEN: Final = 5
LINES_TAKEN: Final = 300
# Other variables are none of this report's business.
_TOLD: Final = re.compile(
    r"LLAMA_|GGML_|OMP_|GOMP_|KMP_|HF_|CUDA_|HIP_|ROCR_|LC_|LANG|PYTHON|TMPDIR|XDG_CACHE_HOME|"
    r"XDG_STATE_HOME|SSL_CERT|REQUESTS_CA|LD_|(?:HTTPS?|ALL|NO)_PROXY",
    re.IGNORECASE,
)
# These are told to be set and no more: they hold words, keys or a company's addresses.
_NOT_TOLD: Final = re.compile(r"_PROXY$|CHAT_TEMPLATE$|_ENV$|EXTRA_ARGS$", re.IGNORECASE)


def write_bundle(path: Path, site: Site, findings: Sequence[Finding]) -> tuple[str, ...]:
    """Write the report to a new file that only its owner may read; returns the names in it.

    Raises:
        LLMInvalidRequestError: The name ends in neither ``.zip`` nor ``.tar.gz``, or is taken.
        StorageError: It cannot be written.
    """
    require_writable(path)
    redactor = _redactor(site)
    members = {
        "doctor.json": _json(redactor.value([asdict(finding) for finding in findings])),
        "versions.json": _json(redactor.value(_versions())),
        "settings.json": _json(redactor.value(_settings(site))),
        "servers.json": _json(redactor.value(_servers(site))),
        **_logs(site, redactor),
    }
    try:
        with open(path, "xb", opener=private_opener) as file:
            file.write(_zip(members) if path.suffix == ".zip" else _tar(members))
    except OSError as exc:
        raise disk_error(exc, path) from exc
    return tuple(members)


def require_writable(path: Path) -> None:
    """Find out before anything is looked at whether the report could be written.

    Raises:
        LLMInvalidRequestError: The name ends in neither ``.zip`` nor ``.tar.gz``, or is taken.
        StorageError: There is no such folder.
    """
    if not path.name.endswith((".zip", ".tar.gz", ".tgz")):
        raise LLMInvalidRequestError(
            f"{path} names no kind of archive.", hint="Use a name that ends in .zip or .tar.gz."
        )
    if path.exists():
        raise LLMInvalidRequestError(f"{path} exists already.", hint="Choose another name.")
    if not path.absolute().parent.is_dir():
        raise StorageError(f"There is no folder {path.absolute().parent}.", path=path)


def _redactor(site: Site) -> Redactor:
    users = {site.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    homes = {site.environ.get("HOME", ""), site.environ.get("USERPROFILE", "")}
    try:
        users.add(getpass.getuser())
        homes.add(str(Path.home()))
    except (OSError, KeyError, RuntimeError):  # a user without a name, as in some containers
        pass
    users |= {Path(home).name for home in homes if home}
    host = socket.gethostname()
    return Redactor(
        site.environ, homes=homes, users=users, hosts={host, host.split(".", maxsplit=1)[0]}
    )


def _versions() -> dict[str, object]:
    packages = {
        found.metadata["Name"]: found.version for found in importlib.metadata.distributions()
    }
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": dict(sorted(packages.items())),
    }


def _settings(site: Site) -> dict[str, object]:
    settings = {
        name: value
        for name, value in site.config.public().items()
        if name not in {"chat_template", "extra_args"}
    }
    settings["chat_template"] = "set" if site.config.chat_template else None
    # Names only: values may be anything.
    settings["extra_args"] = [
        arg.split("=")[0] if arg.startswith("-") or "=" in arg else "..."
        for arg in site.config.extra_args
    ]
    return {
        "settings": settings,
        "environment": {
            name: "set" if is_secret(name) or _NOT_TOLD.search(name) else value
            for name, value in sorted(site.environ.items())
            if _TOLD.match(name)
        },
        "offline": site.environ.get("HF_HUB_OFFLINE"),
    }


def _servers(site: Site) -> list[dict[str, object]]:
    """Each server's record, and what a gateway tells of itself."""
    found: list[dict[str, object]] = []
    for _, record, _ in registry.survey():
        if record is None:
            continue
        facts: dict[str, object] = {**asdict(record), "owner_lives": record.owner_lives}
        if record.role == "serve" and record.owner_lives and record.base_url:
            proven = who_listens(record.base_url, pid=record.owner_pid) == "engine"
            key = site.config.api_key if proven else None
            reply = probe.ask(record.base_url, "/snapshot", api_key=key)
            facts["snapshot"] = reply.body if reply.status == 200 else f"HTTP {reply.status}"
        found.append(facts)
    return found


def _logs(site: Site, redactor: Redactor) -> dict[str, bytes]:
    folder = site.config.log_dir or site.dirs.logs
    dated = []
    for path in folder.glob("*.log"):
        try:
            dated.append((path.stat().st_mtime, path))
        except OSError:
            continue
    found: dict[str, bytes] = {}
    for _, path in sorted(dated, reverse=True)[:LOGS_TAKEN]:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                last = deque((line.rstrip("\n") for line in file), maxlen=LINES_TAKEN)
        except OSError:
            continue
        found[f"logs/{redactor.text(path.name)}"] = "\n".join(redactor.log(last)).encode()
    return found


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str).encode()


def _zip(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _tar(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()
