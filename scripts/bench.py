"""Measures us against the engines as they are: ``python scripts/bench.py`` or ``make bench``.

Compared are our client with its default settings, xllamacpp with its own, a native llama-server
and llama_cpp.server where there are such, and the OpenAI client on our gateway. Every round asks
all of them the same requests, workload after workload and in changing order, so that a machine that
is busy or throttled strikes all alike. Written are benchmarks.md and its plot.

A run may be broken off and taken up again: with ``--record FILE`` the measurements are kept there,
and rounds that it holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import bench_plot
import bench_report
from bench_competitors import Competitor, competitors, ours, what_we_are
from bench_overhead import overheads
from bench_report import OURS, Overhead, Recording, Sample
from bench_rounds import Bench, say

from runtime import LLMError, ModelStore, ServerConfig
from runtime.hardware import cpu_budget, cpu_features, memory
from runtime.settings import ENV_PREFIX
from runtime.tuning.workloads import TITLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench_rounds import Plan

PLAN: Final[Plan] = (
    ("agent-loop", 1, 1.0),
    ("free-text", 1, 1.0),
    ("json", 1, 1.0),
    ("code-edit", 1, 1.0),
    ("long-prompt", 1, 0.5),
    ("free-text", 4, 0.5),
    ("free-text", 16, 0.25),
)
QUICK: Final[Plan] = (
    ("free-text", 1, 1.0),
    ("free-text", 4, 1.0),
    ("agent-loop", 1, 1.0),
    ("json", 1, 1.0),
)
_SCALE_OF_QUICK: Final = 0.3
_FEATURES: Final = ("avx", "f16c", "fma", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimd",
                    "asimddp", "i8mm", "sve")  # fmt: skip


def machine() -> dict[str, str]:
    """Facts that bear on speed; nothing by which the machine could be known again."""
    budget = cpu_budget()
    kind, features = cpu_features()
    told = [name for name in _FEATURES if name in features]
    return {
        "processor": f"{kind}, {budget.physical_cores} cores, {budget.logical_cpus} hardware "
        f"threads{', ' if told else ''}{', '.join(told)}",
        "memory": f"{memory().total_bytes / 2**30:.0f} GiB",
        "system": f"{platform.system()}, Python {platform.python_version()}",
    }


def loaded(path: Path) -> Recording:
    """A recording as it was kept."""
    told = json.loads(path.read_text("utf-8"))
    samples = tuple(
        Sample(**{**each, "digests": tuple(each["digests"])}) for each in told["samples"]
    )
    overhead = tuple(Overhead(**each) for each in told["overhead"])
    failures = tuple(told["failures"])
    return Recording(**{**told, "samples": samples, "overhead": overhead, "failures": failures})


def command(options: argparse.Namespace) -> str:
    """How to repeat it, without this machine's paths."""
    words = ["python scripts/bench.py", f"--rounds {options.rounds}"]
    if os.environ.get(f"{ENV_PREFIX}ENGINE_PATH"):
        words.insert(0, f"{ENV_PREFIX}ENGINE_PATH=LLAMA_SERVER")
    if options.quick:
        words.append("--quick")
    if options.model:
        named = Path(options.model)
        words.append(f"--model {named.name if named.exists() else options.model}")
    words += [f"--threads {options.threads}"] if options.threads else []
    words += [f"--engine {options.engine}"] if options.engine else []
    words += [f"--also {each}" for each in options.also or ()]
    words += ["--llama-cpp-python PYTHON"] if options.llama_cpp_python else []
    return " ".join(words)


def variant(settings: Mapping[str, Any], word: str) -> Competitor:
    """Our client with one setting other than the default.

    Raises:
        LLMError: There is no such setting, or it cannot have that value.
    """
    name, equals, value = word.partition("=")
    if not equals:
        raise LLMError(f"--also takes NAME=VALUE, and {word!r} is none.")
    config = ServerConfig(**{**settings, name: value})
    return Competitor(f"{OURS}, {word}", what_we_are(config), partial(ours, config))


def measured(options: argparse.Namespace) -> Recording:
    """Everything there is to measure.

    Raises:
        LLMError: The model is not there, or we ourselves do not start.
    """
    settings: dict[str, Any] = {
        name: value for name in ("engine", "threads") if (value := getattr(options, name))
    }
    config = ServerConfig(**({"model": options.model} if options.model else {}))
    found = ModelStore().pull(config.model)
    engine_path = os.environ.get(f"{ENV_PREFIX}ENGINE_PATH")
    # From here on nobody's own settings count, nor what was tuned or serves on this machine.
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as home:
        os.environ[f"{ENV_PREFIX}HOME"] = home
        settings["model"] = str(found.path)
        if options.engine == "llama-server" and engine_path:
            settings["engine_path"] = engine_path
        config = ServerConfig(**settings)
        rivals = competitors(
            found.path, config, engine_path=engine_path, python=options.llama_cpp_python
        )
        rivals[1:1] = also = [variant(settings, word) for word in options.also or ()]
        if options.only:
            rivals = [each for each in rivals if each in also or each.name in {OURS, *options.only}]
        plan = QUICK if options.quick else PLAN
        size = found.path.stat().st_size
        recording = Recording(
            machine=machine(),
            model=f"{found.path.stem}, {size / 1e6:.0f} MB",
            command=command(options),
            competitors={each.name: each.what for each in rivals},
            titles={name: TITLES[name] for name in TITLES if name in {each[0] for each in plan}},
            scale=options.scale or (_SCALE_OF_QUICK if options.quick else 1.0),
        )
        if options.record and options.record.exists():
            recording = replace(loaded(options.record), command=command(options))
        bench = Bench(recording, rivals, plan, options.record)
        if not recording.overhead:
            say("Measuring what the client adds to its engine ...")
            added = overheads(config, rounds=options.rounds, scale=recording.scale)
            bench.recording = replace(bench.recording, overhead=tuple(added))
        owner = [f"{name}={value}" for name, value in settings.items()]
        bench.rounds(options.rounds, owner)
        return bench.recording


def main() -> int:
    """Measure, write the page and the plot; 0 when everything could be measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model reference")
    parser.add_argument("--engine", help="our engine; the default is what auto takes")
    parser.add_argument("--threads", type=int, help="threads of everybody; the default is theirs")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (5; --quick: 1)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter workloads")
    parser.add_argument("--scale", type=float, help="length of the workloads, up to 1")
    parser.add_argument("--only", action="append", help="a competitor beside us; may be repeated")
    parser.add_argument(
        "--also", action="append", metavar="NAME=VALUE", help="our client with this setting as well"
    )
    parser.add_argument(
        "--llama-cpp-python", metavar="PYTHON", help="a Python that has llama-cpp-python"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="keep, and take up, a run there"
    )
    parser.add_argument("--report", action="store_true", help="only write what --record holds")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where benchmarks.md goes")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    # What is started here is ended in order when a time limit ends this.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        found = loaded(options.record) if options.report else measured(options)
    except LLMError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    page = bench_report.markdown(found)
    if options.out:
        (options.out / "benchmarks.md").write_text(page, "utf-8")
        (options.out / "benchmarks.svg").write_text(bench_plot.svg(found), "utf-8")
    else:
        print(page)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
