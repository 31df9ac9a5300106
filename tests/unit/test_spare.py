"""Where a spare engine process is of use."""

from __future__ import annotations

import sys

import pytest

from runtime.engines.base import Device, EngineCommand
from runtime.server.spare import is_of_use
from runtime.settings import RestartPolicy, ServerConfig

TOLD = EngineCommand(argv=("host",), told_by_input=True)
CPU = Device(name="CPU", kind="cpu")
PLAIN = ServerConfig(model="m")


@pytest.mark.skipif(sys.platform == "win32", reason="no keeper there")
def test_where_nothing_speaks_against_it() -> None:
    assert is_of_use(TOLD, [CPU], PLAIN)


@pytest.mark.parametrize(
    ("command", "devices", "config"),
    [
        pytest.param(EngineCommand(argv=("llama-server",)), [CPU], PLAIN, id="told by arguments"),
        pytest.param(
            TOLD, [CPU, Device(name="CUDA0", kind="gpu")], PLAIN, id="memory of a GPU would be held"
        ),
        pytest.param(TOLD, [CPU], ServerConfig(model="m", standby=True), id="a standby is more"),
        pytest.param(
            TOLD,
            [CPU],
            ServerConfig(model="m", restart=RestartPolicy(max_restarts=0)),
            id="no restart",
        ),
    ],
)
def test_where_there_is_none(
    command: EngineCommand, devices: list[Device], config: ServerConfig
) -> None:
    assert not is_of_use(command, devices, config)
