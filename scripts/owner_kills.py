"""Kill owners of engines at random moments and see what is left: with the keeper, and without.

Each owner starts a server, streams answers from it, rests, stops it, and begins again; half of them
have a forked child that holds every pipe open. It is killed by SIGKILL, every other time at any
instant, else soon after it has come to a moment that would seldom be hit. Counted for each moment
are the kills, those with something below the owner, processes that live on, and how long the others
took to end. With ``--no-keeper`` the engine is a plain child of the owner: that run must show
orphans, or the count proves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from runtime.testing.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOKEN = "OWNER_KILLS_TOKEN"
PATIENCE_S = 3.0
OWNER = """
import http.client, json, logging, os, subprocess, sys, time
from urllib.parse import urlsplit
options, forks, keeper = json.loads(sys.argv[1])
if forks:
    import threading
def fork():
    if forks and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
print("begin", flush=True)
from runtime.server.manager import ServerManager
from runtime.settings import ServerConfig
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
manager = ServerManager(ServerConfig(**options))
if not keeper:
    from runtime.engines.inspection import clean_environment
    plan = manager._plan_first()
    engine = subprocess.Popen(plan.command.argv, stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=clean_environment(plan.command.env), start_new_session=True)
    engine.stdin.write(plan.command.stdin)
    engine.stdin.flush()
    fork()
    time.sleep(60)
def stream(end):
    split = urlsplit(end.base_url)
    connection = http.client.HTTPConnection(split.hostname, split.port, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps({"model": end.model, "prompt": "a",
        "max_tokens": 100, "temperature": 0, "stream": True}), {"Connection": "close",
        "Content-Type": "application/json", "Authorization": f"Bearer {end.api_key}"})
    print("NOW streaming", flush=True)
    connection.getresponse().read()
    connection.close()
    print("NOW idle", flush=True)
while True:
    manager.start()
    fork()
    forks = False
    for _ in range(3):
        stream(manager.endpoint())
        time.sleep(0.1)
    manager.stop()
"""


def marked(token: str) -> set[psutil.Process]:
    """Processes that carry the token in their environment, zombies left out."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(TOKEN) == token:
                found.add(process)
        except psutil.Error:
            continue
    return found


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One owner killed.

    Attributes:
        moment: What it was doing.
        below: Processes below it at that moment.
        orphans: Those that lived on.
        took_s: Until nothing was left.
    """

    moment: str
    below: int
    orphans: int
    took_s: float


MOMENTS = {
    # The owner's last word, and the moment that it means.
    "begin": "before",
    "resolving": "resolving",
    "starting": "loading",
    "loading": "loading",
    "ready": "idle",
    "idle": "idle",
    "streaming": "streaming",
    "stopping": "stopping",
    "stopped": "between",
}


# How long such a moment lasts, roughly, in seconds.
AIMS = {"resolving": 0.03, "loading": 0.3, "idle": 0.1, "streaming": 0.3, "stopping": 0.03}


def moment_of(said: str) -> str:
    """What the owner was doing, from all that it printed."""
    moment = "before"
    for line in said.splitlines():
        word = line.removeprefix("NOW ")
        if " -> " in line:
            word = line.split(" -> ")[1].split(":")[0]
        moment = MOMENTS.get(word, moment)
    return moment


def one_kill(
    options: dict[str, object],
    chance: random.Random,
    *,
    aim: str | None,
    keeper: bool,
    longest_s: float,
) -> Kill:
    """Start an owner and kill it at any instant, or when it has come to the moment ``aim``."""
    token = secrets.token_hex(8)
    forks = chance.random() < 0.5
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, json.dumps([options, forks, keeper])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, TOKEN: token},
        start_new_session=True,
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"begin\n"
        said = ""
        if aim is None:
            time.sleep(chance.uniform(0.2, longest_s))
        else:
            while moment_of(said) != aim:
                line = owner.stdout.readline().decode("utf-8", "replace")
                assert line, "the owner ended by itself"
                said += line
            time.sleep(chance.uniform(0, AIMS[aim]))
        os.kill(owner.pid, signal.SIGSTOP)  # nothing new below it from here on but the keeper's
        below = [
            child
            for child in psutil.Process(owner.pid).children(recursive=True)
            if child.pid != owner.pid and not _is_fork(child)
        ]
        began = time.monotonic()
        owner.kill()
        deadline = began + PATIENCE_S
        while any(map(lives, below)) and time.monotonic() < deadline:
            time.sleep(0.002)
        took_s = time.monotonic() - began
        os.set_blocking(owner.stdout.fileno(), False)
        said += (owner.stdout.read() or b"").decode("utf-8", "replace")
    # An engine that came up between the look and the kill is found by its token.
    orphans = [child for child in {*below, *marked(token)} if lives(child) and not _is_fork(child)]
    for process in marked(token):
        process.kill()
    for process in orphans:
        process.kill()
    return Kill(
        moment=moment_of(said) if keeper else "no keeper",
        below=len(below),
        orphans=len(orphans),
        took_s=took_s,
    )


def table(kills: Sequence[Kill]) -> Iterator[str]:
    """A line for each moment and one for all."""
    yield "moment      kills  below  orphans     p50     p99  longest"
    moments = sorted({kill.moment for kill in kills})
    for moment in (*moments, "all"):
        these = [kill for kill in kills if moment in {kill.moment, "all"}]
        times = sorted(kill.took_s for kill in these if kill.below and not kill.orphans)
        spread = "".join(
            f"{1e3 * times[min(len(times) - 1, len(times) * share // 100)]:{width}.0f}"
            for share, width in ((50, 8), (99, 8), (100, 9))
            if times
        )
        below = sum(kill.below > 0 for kill in these)
        yield f"{moment:10} {len(these):6} {below:6} {sum(k.orphans for k in these):8}{spread}"


def _is_fork(process: psutil.Process) -> bool:
    """The owner's own forked child, which is the owner's business, not ours."""
    try:
        return "-c" in process.cmdline()[:2]
    except psutil.Error:
        return False


def main() -> int:
    """Run, print, and fail when something is left with the keeper, or nothing without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--engine", default="xllamacpp")
    parser.add_argument("--engine-path")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest-s", type=float, default=2.5)
    parser.add_argument("--no-keeper", action="store_true")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLAMA_RUNTIME_HOME"] = str(Path(folder) / "home")
        model = build_tiny_model(Path(folder) / "tiny.gguf")
        options: dict[str, object] = {"model": str(model), "ctx_size": 512, "engine": given.engine}
        if given.engine_path:
            options["engine_path"] = given.engine_path
        bystanders = [
            subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
            for _ in range(3)
        ]
        kills = [
            one_kill(
                options,
                chance,
                aim=chance.choice(list(AIMS)) if number % 2 and not given.no_keeper else None,
                keeper=not given.no_keeper,
                longest_s=given.longest_s,
            )
            for number in range(given.kills)
        ]
        touched = sum(process.poll() is not None for process in bystanders)
        for process in bystanders:
            process.kill()
            process.wait()
    left = sum(kill.orphans for kill in kills)
    print(f"{given.engine}{', without the keeper' if given.no_keeper else ''}; times in ms")
    print(*table(kills), sep="\n")
    print(f"bystanders touched {touched}; load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    return int(touched > 0 or (left == 0 if given.no_keeper else left > 0))


if __name__ == "__main__":
    sys.exit(main())
