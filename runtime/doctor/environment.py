"""Settings and variables that contradict each other, are misspelt, or steer engines unseen."""

from __future__ import annotations

import locale
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.doctor.finding import Finding
from runtime.doctor.wording import age
from runtime.engines.detect import gpu_asked_for
from runtime.engines.inspection import is_foreign
from runtime.errors import LLMError
from runtime.hardware import cpu_budget, gpu_hint
from runtime.settings import offline_wanted
from runtime.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.doctor.site import Site

# What these do to a program is decided before any of its own settings are read.
_LOADER: Final = ("LD_PRELOAD", "DYLD_INSERT_LIBRARIES")
_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_HIDING_GPUS: Final = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_PINNING: Final = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES")
_ENCODING: Final = ("PYTHONIOENCODING", "LC_ALL", "LC_CTYPE", "LANG")
_PAST: Final = 1_735_689_600  # 2025-01-01: no release of this is older
_SKEW_S: Final = 300.0


def settings(site: Site) -> Iterator[Finding]:
    """LLAMA_RUNTIME_* and options: unknown names, values that cannot be, contradictions."""
    problem = site.settings_problem
    if problem is None:
        try:
            gpu_asked_for(site.config)
        except LLMError as exc:
            problem = exc
    if problem is not None:
        yield Finding(id="settings", status="fail", found=problem.message, remedy=problem.hint)
        return
    missing = [
        f"{name} names {path}"
        for name, paths in (
            ("lora", site.config.lora),
            ("mmproj", (site.config.mmproj,)),
        )
        for path in paths
        if path is not None and not Path(path).expanduser().is_file()
    ]
    if missing:
        yield Finding(
            id="settings",
            status="fail",
            found=f"{', '.join(missing)}, which is no file: no server will start.",
            remedy="Correct the path, or leave the setting out.",
        )
        return
    given = sorted(name for name in site.environ if name.startswith("LLAMA_RUNTIME_"))
    yield Finding(
        id="settings", status="ok", found=f"from the environment: {', '.join(given) or 'none'}"
    )


def variables(site: Site) -> Iterator[Finding]:
    """Variables of others that change what engines and downloads do."""
    found = [
        *_engine_variables(site),
        *_threads(site),
        *_loading(site),
        *_network(site),
    ]
    yield from found or [
        Finding(id="environment", status="ok", found="nothing in it steers an engine unseen")
    ]


def _engine_variables(site: Site) -> Iterator[Finding]:
    foreign = sorted(name for name in site.environ if is_foreign(name))
    foreign = [
        name
        for name in foreign
        if not name.startswith("LLAMA_RUNTIME_") and name != "LLAMA_CACHE"  # a folder, no more
    ]
    if foreign:
        yield Finding(
            id="environment.engine",
            status="warn",
            found=f"{', '.join(foreign)}: llama.cpp reads such variables and becomes something "
            "else. The runtime keeps them from its engines; a llama-server that you start gets "
            "them.",
            remedy=f"unset {' '.join(foreign)}",
        )
    passed = sorted(
        name for name in site.environ if name.startswith("GGML_") and not is_foreign(name)
    )
    if passed:
        yield Finding(
            id="environment.ggml",
            status="warn",
            found=f"{', '.join(passed)}: handed to the engines, whose backends and speed they "
            "change.",
            remedy=f"Unless it is meant: unset {' '.join(passed)}",
        )


def _threads(site: Site) -> Iterator[Finding]:
    threads = site.config.threads or cpu_budget(site.root).threads
    limit = site.environ.get("OMP_THREAD_LIMIT", "")
    wrong = [name for name in _PINNING if site.environ.get(name, "false").lower() != "false"]
    if limit.isdigit() and int(limit) < threads:
        wrong.append("OMP_THREAD_LIMIT")
    if wrong:
        yield Finding(
            id="environment.openmp",
            status="warn",
            found=f"{', '.join(f'{name}={site.environ[name]}' for name in wrong)}: the engine's "
            f"{threads} threads may be put on one core or be fewer.",
            remedy=f"unset {' '.join(wrong)}",
        )


def _loading(site: Site) -> Iterator[Finding]:
    forced = [name for name in _LOADER if site.environ.get(name)]
    if site.environ.get("PYTHONHOME"):
        forced.append("PYTHONHOME")
    if forced:
        yield Finding(
            id="environment.loader",
            status="warn",
            found=f"{', '.join(forced)}: foreign code is loaded into every engine.",
            remedy=f"Unless it is meant: unset {' '.join(forced)}",
        )
    hidden = [name for name in _HIDING_GPUS if site.environ.get(name) in {"", "-1"}]
    if hidden and gpu_hint(site.root):
        yield Finding(
            id="environment.gpu",
            status="warn",
            found=f"{', '.join(hidden)} hides this machine's GPU from every program.",
            remedy=f"unset {' '.join(hidden)}",
        )


def _network(site: Site) -> Iterator[Finding]:
    gone = [
        name
        for name in _CERTIFICATES
        if (value := site.environ.get(name)) and not Path(value).exists()
    ]
    if gone:
        yield Finding(
            id="environment.certificates",
            status="fail",
            found=", ".join(f"{name} names {site.environ[name]}" for name in gone)
            + ", which does not exist: no download will be trusted.",
            remedy=f"unset {' '.join(gone)}",
        )
    if offline_wanted():
        names = [n for n in ("HF_HUB_OFFLINE", "LLAMA_RUNTIME_OFFLINE") if site.environ.get(n)]
        missing = _is_missing(site)
        yield Finding(
            id="environment.offline",
            status="warn" if missing else "ok",
            found=f"{', '.join(names)} forbids the network"
            + (f", and {site.config.model} is not on this machine." if missing else ""),
            remedy=f"Once, with a network: env -u {' -u '.join(names)} llama-runtime models pull "
            f"{site.config.model}"
            if missing
            else None,
        )
    endpoint = site.environ.get("HF_ENDPOINT")
    if endpoint and not endpoint.startswith(("https://", "http://")):
        yield Finding(
            id="environment.hub",
            status="fail",
            found="HF_ENDPOINT is no http(s) address: nothing can be fetched from the hub.",
            remedy="unset HF_ENDPOINT",
        )


def _is_missing(site: Site) -> bool:
    try:
        ModelStore(site.dirs, offline=True).resolve(site.config.model)
    except LLMError:
        return True
    return False


def encoding(site: Site) -> Iterator[Finding]:
    """Whether file names and answers in any script can be written."""
    names = {
        "file names": sys.getfilesystemencoding(),
        "standard output": sys.stdout.encoding or "utf-8",
        "files": locale.getencoding(),
    }
    narrow = {what: name for what, name in names.items() if "utf" not in name.lower()}
    if "standard output" not in narrow and "file names" not in narrow:
        yield Finding(id="locale", status="ok", found=f"{names['standard output']} everywhere")
        return
    blame = [name for name in _ENCODING if site.environ.get(name)]
    yield Finding(
        id="locale",
        status="warn",
        found="not everything can be written: "
        + ", ".join(f"{what} in {name}" for what, name in narrow.items())
        + (f" (by {blame[0]})" if blame else "")
        + ".",
        remedy="export PYTHONUTF8=1 LC_ALL=C.UTF-8"
        + (" && unset PYTHONIOENCODING" if "PYTHONIOENCODING" in blame else ""),
    )


def clock(site: Site) -> Iterator[Finding]:
    """Whether the clock is where certificates hold and our own files lie in the past."""
    now = time.time()
    if now < _PAST:
        yield Finding(
            id="clock",
            status="fail",
            found=f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}: no certificate "
            "is valid yet, and every download fails.",
            remedy="Set it: sudo timedatectl set-ntp true",
        )
        return
    newest_s, newest = 0.0, None
    for top in (site.dirs.state, site.dirs.cache):
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder, name)
                try:
                    written_s = path.lstat().st_mtime
                except OSError:
                    continue
                if written_s > newest_s:
                    newest_s, newest = written_s, path
    if newest is not None and newest_s > now + _SKEW_S:
        yield Finding(
            id="clock",
            status="warn",
            found=f"the clock was set back, or is behind: {newest} is from {age(newest_s - now)} "
            "ahead. Certificates may seem invalid, and ages are wrong.",
            remedy="Set it (sudo timedatectl set-ntp true), or, if it is right: touch the file.",
        )
    else:
        yield Finding(
            id="clock", status="ok", found=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        )
