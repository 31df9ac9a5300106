"""Settings: refused, read from the environment, hashed, kept secret."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.errors import ConfigError, ContextOverflowError, EngineStartError
from runtime.memo import Memo
from runtime.server import registry
from runtime.settings import ServerConfig, directories, offline_wanted, private_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'ctx_size'"):
        ServerConfig(ctx_sise=1)
    with pytest.raises(ConfigError, match="There is no setting named 'zzzzzz'"):
        ServerConfig(zzzzzz=1)


@pytest.mark.parametrize(
    "values",
    [
        {"ctx_size": 0},
        {"parallel": 0},
        {"threads": 0},
        {"port": 70000},
        {"gpu_layers": -1},
        {"gpu_layers": "some"},
        {"engine": "vllm"},
        {"device": "tpu"},
        {"extra_args": ("--api-key", "x")},
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ServerConfig(**values)


def test_frozen() -> None:
    config = ServerConfig()
    with pytest.raises(ValidationError):
        config.port = 1  # type: ignore[misc]


def test_the_environment_sets_and_code_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RUNTIME_THREADS", "3")
    monkeypatch.setenv("LLAMA_RUNTIME_EXTRA_ARGS", '["n_batch=64"]')
    assert ServerConfig().threads == 3
    assert ServerConfig().extra_args == ("n_batch=64",)
    assert ServerConfig(threads=5).threads == 5


def test_lists_and_mappings_in_the_environment_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llama_runtime_env", '{"A": "1"}')  # the case of the name is free
    monkeypatch.setenv("LLAMA_RUNTIME_RESTART", '{"enabled": false}')
    monkeypatch.setenv("LLAMA_RUNTIME_CHAT_TEMPLATE", "{{ messages }}")  # text, not JSON
    monkeypatch.setenv("LLAMA_RUNTIME_API_KEY", "")
    config = ServerConfig()
    assert config.env == {"A": "1"}
    assert not config.restart.enabled
    assert config.chat_template == "{{ messages }}"
    assert config.api_key == ""
    monkeypatch.setenv("LLAMA_RUNTIME_LORA", "a.gguf")
    with pytest.raises(ConfigError, match=r"LLAMA_RUNTIME_LORA = 'a\.gguf' is not JSON"):
        ServerConfig()


def test_every_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that will be added: what is not a plain value must be read as JSON."""
    before = ServerConfig()
    for name, value in before.model_dump(mode="json").items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            monkeypatch.setenv(f"LLAMA_RUNTIME_{name.upper()}", text)
    assert ServerConfig() == before


def test_a_misspelt_variable_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RUNTIME_THREDS", "3")
    with pytest.raises(ConfigError, match="LLAMA_RUNTIME_THREADS"):
        ServerConfig()


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_the_hash_changes_when_and_only_when_the_configuration_does(a: int, b: int) -> None:
    assert (ServerConfig(ctx_size=a).hash() == ServerConfig(ctx_size=b).hash()) == (a == b)


def test_every_field_takes_part_in_the_hash() -> None:
    base = ServerConfig().hash()
    changed = [{"api_key": "x"}, {"env": {"A": "1"}}, {"restart": {"enabled": False}}]
    assert all(ServerConfig(**values).hash() != base for values in changed)  # type: ignore[arg-type]


def test_no_secret_is_printed() -> None:
    config = ServerConfig(api_key="canary", env={"TOKEN": "canary"})
    assert "canary" not in repr(config.public())
    assert "api_key" not in repr(config)


def test_home_moves_everything(isolated_home: Path) -> None:
    dirs = directories()
    for path in (dirs.models, dirs.logs, dirs.servers):
        assert path.is_relative_to(isolated_home)


def test_folders_are_private_and_so_is_what_was_missing_above(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b" / "c")
    made = (folder, folder.parent, folder.parent.parent)
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 3


def test_only_folders_of_our_state_are_closed(isolated_home: Path, tmp_path: Path) -> None:
    ours, theirs = directories().servers, tmp_path / "logs"
    for path in (ours, theirs):
        path.mkdir(parents=True)
        path.chmod(0o755)
        private_folder(path)
    assert ours.stat().st_mode & 0o777 == 0o700
    assert theirs.stat().st_mode & 0o777 == 0o755


def test_a_record_of_a_server_is_private() -> None:
    record = registry.ServerRecord(
        name="a", role="serve", owner_pid=1, owner_birth="", engine_pid=None, model="m",
        engine="xllamacpp", base_url=None, state="ready", started_at=None, log_path=None,
    )  # fmt: skip
    registry.write(record)
    path = registry.path_of("a")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_offline_is_read_from_either_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not offline_wanted()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert offline_wanted()


def test_errors_survive_the_way_between_processes() -> None:
    for error in (
        EngineStartError("no", diagnosis="x", exit_code=3, log_tail=("a",), hint="do"),
        ContextOverflowError("long", prompt_tokens=9, context_tokens=4),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert again.__dict__ == error.__dict__
        assert str(again) == str(error)
        assert (again.args, repr(again)) == ((error.message,), repr(error))
        assert len({error, again}) == 2, "hashed and compared by identity, as exceptions are"


def test_a_memo_survives_corruption_and_a_disk_that_refuses(tmp_path: Path) -> None:
    memo = Memo("kind", cache=tmp_path)
    memo.put("key", {"a": 1})
    assert memo.get("key") == {"a": 1}
    (file,) = (tmp_path / "facts" / "kind").iterdir()
    file.write_text("{ nonsense")
    assert memo.get("key") is None
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    Memo("kind", cache=blocked).put("key", {})
    assert Memo("kind", cache=blocked).get("key") is None
