"""Kill owners of engines at random moments and see what is left: with the keeper, and without.

Each owner starts a server, asks it, stops it, and begins again; half of them have a forked child
that holds every pipe open. It is killed by SIGKILL at a random moment. Counted are processes that
live on, and how long the others took to end. With ``--no-keeper`` the engine is a plain child of
the owner: that run must show orphans, or the count proves nothing.
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
from collections import Counter
from pathlib import Path

import psutil

from runtime.testing.tiny_model import build_tiny_model

TOKEN = "OWNER_KILLS_TOKEN"
PATIENCE_S = 3.0
OWNER = """
import json, logging, os, subprocess, sys, time
options, forks, keeper = json.loads(sys.argv[1])
if forks:
    import threading
def fork():
    if forks and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
print("begin", flush=True)
from runtime.server.manager import ServerManager
from runtime.server.probe import ask
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
while True:
    manager.start()
    fork()
    forks = False
    for _ in range(3):
        end = manager.endpoint()
        ask(end.base_url, "/v1/completions", api_key=end.api_key, timeout_s=10,
            body={"model": end.model, "prompt": "a", "max_tokens": 100, "temperature": 0})
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


def one_kill(
    options: dict[str, object], chance: random.Random, *, keeper: bool, longest_s: float
) -> tuple[str, float, list[psutil.Process], int]:
    """Start an owner, kill it; the state it was in, seconds to the end, orphans, engines seen."""
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
        time.sleep(chance.uniform(0.2, longest_s))
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
        said = (owner.stdout.read() or b"").decode("utf-8", "replace")
    # An engine that came up between the look and the kill is found by its token.
    orphans = [child for child in {*below, *marked(token)} if lives(child) and not _is_fork(child)]
    steps = [line for line in said.splitlines() if " -> " in line]
    state = steps[-1].split(" -> ")[1].split(":")[0] if steps else "before"
    for process in marked(token):
        process.kill()
    for process in orphans:
        process.kill()
    return state, took_s, orphans, len(below)


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
    states: Counter[str] = Counter()
    times: list[float] = []
    left = 0
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
        for _ in range(given.kills):
            state, took_s, orphans, seen = one_kill(
                options, chance, keeper=not given.no_keeper, longest_s=given.longest_s
            )
            states[state] += 1
            left += len(orphans)
            if seen and not orphans:
                times.append(took_s)
        touched = sum(process.poll() is not None for process in bystanders)
        for process in bystanders:
            process.kill()
            process.wait()
    times.sort()
    spread = {
        f"p{share}": round(1e3 * times[min(len(times) - 1, len(times) * share // 100)], 1)
        for share in (50, 90, 99, 100)
        if times
    }
    print(f"kills {given.kills}, with something below the owner {len(times) + left}")
    print(f"orphans {left}, bystanders touched {touched}")
    print(f"killed while {dict(states)}")
    print(f"milliseconds until nothing was left: {spread}")
    return int(touched > 0 or (left == 0 if given.no_keeper else left > 0))


if __name__ == "__main__":
    sys.exit(main())
