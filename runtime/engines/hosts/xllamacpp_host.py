"""The engine process of the xllamacpp kind: llama.cpp's server inside a Python child of ours.

It runs as a script, so that the package above it is not imported. Standard input carries one line
of JSON (the parameters, the key among them: never in argv, never in a file) and then stays open;
its end means that the process above is gone, and so this one ends. ``--describe`` prints what the
library is and which devices it sees, and starts nothing.
"""

import json
import os
import signal
import sys
from typing import Any

MARK = "@llama-runtime "


def describe(x: Any) -> dict[str, object]:
    """Version and devices of the installed library."""
    gpu_types = {"GPU", "IGPU"}
    build = x.BUILD_INFO
    return {
        "version": f"{x.__version__} (llama.cpp b{build['build_number']}, {build['build_target']})",
        "devices": [
            {
                "name": device["name"],
                "description": device["description"],
                "gpu": device["type"].name.rsplit("_", 1)[-1] in gpu_types,
                "memory_total": device["memory_total"],
                "memory_free": device["memory_free"],
            }
            for device in x.get_device_info()
        ],
    }


def translate(x: Any, value: object) -> object:
    """A value that JSON cannot hold: an enumeration of the library, by name."""
    match value:
        case {"ggml_type": str(name)}:
            return getattr(x.ggml_type, f"GGML_TYPE_{name.upper()}")
        case {"flash_attn": str(name)}:
            suffix = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[name]
            return getattr(x.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{suffix}")
        case {"pooling": str(name)}:
            return getattr(x.llama_pooling_type, f"LLAMA_POOLING_TYPE_{name.upper()}")
        case {"speculative_types": list(names)}:
            kinds = x.common_speculative_type
            return [
                getattr(kinds, f"COMMON_SPECULATIVE_TYPE_{name.upper().replace('-', '_')}")
                for name in names
            ]
        case {"lora": list(paths)}:
            return [lora(x, path) for path in paths]
        case _:
            return value


def lora(x: Any, path: str) -> Any:
    """One LoRA adapter at full strength."""
    adapter = x.CommonAdapterLoraInfo()
    adapter.path = path
    adapter.scale = 1.0
    return adapter


def build(x: Any, settings: dict[str, object]) -> Any:
    """The library's parameter object.

    Raises:
        AttributeError: A name that this version of the library does not have.
    """
    params = x.CommonParams()
    for name, value in settings.items():
        *path, leaf = name.split(".")
        target = params
        for part in path:
            target = getattr(target, part)
        current = getattr(target, leaf)
        wanted = translate(x, value)
        setattr(target, leaf, set(wanted) if isinstance(current, set) else wanted)  # type: ignore[call-overload]
    return params


def say(line: str) -> None:
    """One line in one write: the library's own log goes to the same pipe."""
    os.write(1, f"{line}\n".encode())


def fail(message: str) -> int:
    """Say why on the log and end with 1."""
    say(f"error: {message}")
    return 1


def main() -> int:
    """Serve until the process above is gone or a signal comes."""
    try:
        import xllamacpp  # noqa: PLC0415 - a missing library is a message, not a traceback
    except ImportError as exc:
        return fail(f"cannot import xllamacpp: {exc}")
    say(MARK + json.dumps(describe(xllamacpp)))
    if "--describe" in sys.argv[1:]:
        return 0
    # A terminal's Ctrl-C goes to the owner, which ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    line = sys.stdin.buffer.readline()
    if not line:
        return fail("no configuration on standard input")
    try:
        params = build(xllamacpp, json.loads(line))
    except AttributeError as exc:
        return fail(f"xllamacpp {xllamacpp.__version__}: unknown parameter: {exc}")
    except (TypeError, ValueError) as exc:
        return fail(f"xllamacpp {xllamacpp.__version__}: bad parameter value: {exc}")
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as exc:
        return fail(str(exc))
    # Some builds log this line themselves, others do not: the owner acts on the first it sees.
    say(MARK + json.dumps({"base_url": server.listening_address}))
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)  # the owner is gone: no one is left to wait for an orderly end


if __name__ == "__main__":
    sys.exit(main())
