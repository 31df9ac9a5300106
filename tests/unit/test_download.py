"""Fetching files: resumed, verified, and each failure its own error."""

from __future__ import annotations

import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from runtime.errors import (
    DownloadError,
    IntegrityError,
    LLMAuthError,
    LLMError,
    LLMRateLimitError,
    ModelNotFoundError,
    StorageError,
    TooManyRequestsError,
)
from runtime.settings import Directories
from runtime.store import CatalogEntry, Limits, ModelStore, PullProgress
from runtime.store.records import folder_name
from tests.fakes.hub import FakeHub, Fault, model_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_QUICK = Limits(stall_timeout_s=1.0, attempts=3, backoff_base_s=0.01, backoff_max_s=1.5)
_REPO = "maker/Model-7B-GGUF"
_FILE = "model-7b.Q4_K_M.gguf"
_DATA = model_bytes(3_000_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield fake


@pytest.fixture
def dirs(tmp_path: Path) -> Directories:
    return Directories(cache=tmp_path / "cache", state=tmp_path / "state")


@pytest.fixture
def store(dirs: Directories) -> ModelStore:
    return ModelStore(dirs, offline=False, limits=_QUICK)


def _leftovers(dirs: Directories) -> list[str]:
    return sorted(
        path.name
        for path in dirs.models.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name != "model.json"
    )


# --- what is fetched --------------------------------------------------------------------------


def test_a_model_of_the_hub_comes_whole_and_private(
    hub: FakeHub, store: ModelStore, dirs: Directories
) -> None:
    repo = hub.add(_REPO, {_FILE: _DATA, "README.md": b"hello"})

    model = store.pull(f"{_REPO}:Q4_K_M")

    assert model.path.read_bytes() == _DATA
    assert model.files == (model.path,)
    assert model.sha256 == hub.digest(_DATA)
    assert (model.source, model.repo_id, model.size_bytes) == ("hub", _REPO, len(_DATA))
    assert model.name == "model-7b.q4_k_m"
    assert hub.sent_bytes() == len(_DATA)
    assert any(f"/resolve/{repo.commit}/" in seen.path for seen in hub.seen)
    assert stat.S_IMODE(model.path.stat().st_mode) == 0o600
    for folder in (dirs.models, model.path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert _leftovers(dirs) == [_FILE]


def test_what_is_on_disk_is_not_asked_for_again(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    first = store.pull(_REPO)
    asked = len(hub.seen)

    for reference in (_REPO, f"{_REPO}:Q4_K_M", f"hf:{_REPO}/{_FILE}", first.name, first.reference):
        assert store.pull(reference) == first
        assert store.resolve(reference) == first
    assert len(hub.seen) == asked


def test_the_token_goes_to_the_hub_and_not_to_the_host_it_redirects_to(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add(_REPO, {_FILE: _DATA}, token="hf_secret")

    store.pull(_REPO)

    by_host = {seen.host: "authorization" in seen.headers for seen in hub.seen}
    assert by_host == {f"127.0.0.1:{hub.port}": True, f"localhost:{hub.port}": False}


def test_a_split_model_is_one_model(hub: FakeHub, store: ModelStore) -> None:
    parts = {f"Q8_0/big-Q8_0-0000{n}-of-00003.gguf": model_bytes(50_000, n) for n in (1, 2, 3)}
    hub.add(_REPO, {_FILE: _DATA, **parts})

    model = store.pull(f"{_REPO}:Q8_0")

    assert [file.read_bytes() for file in model.files] == list(parts.values())
    assert model.path == model.files[0]
    assert model.size_bytes == 150_000
    assert model.name == "big-q8_0"
    assert store.resolve(model.reference) == model
    assert [found.name for found in store.list() if found.source == "hub"] == ["big-q8_0"]


def test_a_split_model_goes_on_after_the_parts_that_are_there(
    hub: FakeHub, store: ModelStore
) -> None:
    parts = {f"big-Q8_0-0000{n}-of-00003.gguf": model_bytes(50_000, n) for n in (1, 2, 3)}
    hub.add(_REPO, parts)
    hub.faults.append(Fault(path="00003-of", status=404))
    with pytest.raises(ModelNotFoundError):
        store.pull(_REPO)
    with pytest.raises(ModelNotFoundError):
        store.resolve(_REPO)

    model = store.pull(_REPO)

    assert [file.read_bytes() for file in model.files] == list(parts.values())
    assert hub.sent_bytes() == 150_000


def test_a_split_model_with_a_part_missing_is_refused(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {"big-Q8_0-00001-of-00002.gguf": _DATA})
    with pytest.raises(DownloadError, match="lacks 1 part"):
        store.pull(_REPO)
    assert hub.sent_bytes() == 0


def test_the_projector_comes_along(hub: FakeHub, store: ModelStore) -> None:
    eye = model_bytes(10_000, 7)
    hub.add(_REPO, {_FILE: _DATA, "mmproj-F32.gguf": b"GGUF", "mmproj-model-f16.gguf": eye})

    model = store.pull(_REPO)

    assert model.mmproj is not None
    assert model.mmproj.read_bytes() == eye
    assert model.files == (model.path,)
    assert model.size_bytes == len(_DATA) + len(eye)


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (["Q2_K", "Q4_K_M", "Q8_0", "F16"], "Q4_K_M"),
        (["Q2_K", "Q5_K_M", "Q8_0"], "Q5_K_M"),
        (["IQ2_XS", "F16", "Q3_K_M"], "Q3_K_M"),
        (["F16", "Q4_0"], "Q4_0"),
    ],
)
def test_without_a_wish_the_sensible_quantization_is_taken_and_said(
    hub: FakeHub, store: ModelStore, offered: list[str], taken: str
) -> None:
    hub.add(_REPO, {f"m-{quant}.gguf": model_bytes(100, n) for n, quant in enumerate(offered)})
    heard: list[PullProgress] = []

    model = store.pull(_REPO, progress=heard.append)

    assert model.path.name == f"m-{taken}.gguf"
    assert f"Took {taken} of" in model.notes[0]
    assert all(quant in model.notes[0] for quant in offered)
    assert model.notes[0] in [event.note for event in heard]


def test_several_answers_are_listed_and_not_guessed(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {"a-Q4_K_M.gguf": b"GGUFa", "b-Q4_K_M.gguf": b"GGUFb"})
    with pytest.raises(ModelNotFoundError) as caught:
        store.pull(_REPO)
    assert caught.value.nearest == (f"hf:{_REPO}/a-Q4_K_M.gguf", f"hf:{_REPO}/b-Q4_K_M.gguf")
    assert store.pull(caught.value.nearest[1]).path.read_bytes() == b"GGUFb"


def test_a_revision_is_kept_apart(hub: FakeHub, store: ModelStore) -> None:
    old = hub.add(_REPO, {_FILE: _DATA})

    model = store.pull(f"hf:{_REPO}/{_FILE}@{old.commit}")

    assert store.resolve(f"{_REPO}@{old.commit}") == model
    with pytest.raises(ModelNotFoundError):
        store.resolve(f"{_REPO}@other")


# --- interrupted ------------------------------------------------------------------------------


def test_a_dropped_connection_is_taken_up_where_it_was(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [Fault(path="/cdn/", cut_after=1_000_000), Fault(path="/cdn/", cut_after=500_000)]

    model = store.pull(_REPO)

    assert model.path.read_bytes() == _DATA
    bodies = hub.bodies("/cdn/")
    assert [seen.start for seen in bodies] == [0, 1_000_000, 1_500_000]
    assert hub.sent_bytes() == len(_DATA)
    # Each edge of a CDN has an ETag of its own; the version is known by its digest.
    assert not any("if-range" in seen.headers for seen in bodies)


def test_a_silent_connection_is_dropped_and_taken_up(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults.append(Fault(path="/cdn/", stall_after=1_000_000))
    heard: list[PullProgress] = []

    model = store.pull(_REPO, progress=heard.append)

    assert model.path.read_bytes() == _DATA
    assert hub.sent_bytes() == len(_DATA)
    assert any("did not answer in time" in (event.note or "") for event in heard)


def test_a_host_that_is_gone_for_a_moment_is_waited_for(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [
        Fault(path="/cdn/", cut_after=1_000_000),
        Fault(path="/resolve/", redirect="http://127.0.0.1:9/gone"),
    ]
    # The second fault would strike the first request otherwise.
    hub.faults[1].times = 0
    heard: list[str] = []

    def hear(event: PullProgress) -> None:
        heard.append(event.note or "")
        if event.done_bytes == 1_000_000 and not any("gone" in note for note in heard):
            hub.faults[1].times = 1
            heard.append("gone")

    assert store.pull(_REPO, progress=hear).path.read_bytes() == _DATA
    assert any("cannot be reached at 127.0.0.1" in note for note in heard)
    assert hub.sent_bytes() == len(_DATA)


def test_tries_that_bring_bytes_do_not_count(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [Fault(path="/cdn/", cut_after=300_000) for _ in range(8)]
    assert store.pull(_REPO).path.read_bytes() == _DATA


def test_tries_that_bring_nothing_end(hub: FakeHub, store: ModelStore, dirs: Directories) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [
        Fault(path="/cdn/", cut_after=600_000),
        Fault(path="/cdn/", cut_after=0, times=9),
    ]

    with pytest.raises(DownloadError, match="connection to hub failed"):
        store.pull(_REPO)

    assert len(hub.bodies("/cdn/")) == 4  # the first, then three with nothing
    assert _leftovers(dirs) == [f"{_FILE}.part", f"{_FILE}.part.json"]
    assert store.list() == () or all(model.source != "hub" for model in store.list())
    hub.faults.clear()
    assert store.pull(_REPO).path.read_bytes() == _DATA
    assert hub.sent_bytes() == len(_DATA)


def test_a_file_that_changed_meanwhile_is_started_over(hub: FakeHub, store: ModelStore) -> None:
    hub.files["m.gguf"] = _DATA
    hub.faults += [Fault(path="/files/", cut_after=1_000_000, times=1), Fault(path="/", status=400)]
    with pytest.raises(DownloadError):
        store.pull(hub.file_url("m.gguf"))
    changed = hub.files["m.gguf"] = model_bytes(2_000_000, 5)

    model = store.pull(hub.file_url("m.gguf"))

    assert model.path.read_bytes() == changed
    assert hub.bodies("/files/")[-1].headers["if-range"]
    assert hub.bodies("/files/")[-1].status == 200


def test_an_address_is_taken_up_by_its_etag(hub: FakeHub, store: ModelStore) -> None:
    hub.files["m.gguf"] = _DATA
    hub.faults.append(Fault(path="/files/", cut_after=1_000_000))

    assert store.pull(hub.file_url("m.gguf")).path.read_bytes() == _DATA
    assert hub.sent_bytes("/files/") == len(_DATA)


def test_an_address_is_whole_when_only_its_name_was_missing(
    hub: FakeHub, store: ModelStore, dirs: Directories
) -> None:
    """Killed between the last byte and the rename; a folder in the way does the same."""
    hub.files["m.gguf"] = _DATA
    hub.faults.append(Fault(path="/files/", status=400))
    url = hub.file_url("m.gguf")
    with pytest.raises(DownloadError):
        store.pull(url)
    in_the_way = dirs.models / folder_name(url) / "m.gguf" / "x"
    in_the_way.mkdir(parents=True)
    with pytest.raises(StorageError):
        store.pull(url)
    in_the_way.rmdir()
    in_the_way.parent.rmdir()

    assert store.pull(url).path.read_bytes() == _DATA
    assert hub.sent_bytes("/files/") == len(_DATA)


def test_a_file_that_shrank_is_started_over(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [
        Fault(path="/cdn/", cut_after=1_000_000),
        Fault(path="/cdn/", status=416, headers={"Content-Range": "bytes */500000"}),
    ]
    assert store.pull(_REPO).path.read_bytes() == _DATA
    assert [seen.start for seen in hub.bodies("/cdn/")] == [0, 0]


def test_another_part_than_was_asked_for_is_not_taken(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [Fault(path="/cdn/", cut_after=1_000_000), Fault(path="/cdn/", shift=8)]
    assert store.pull(_REPO).path.read_bytes() == _DATA


def test_a_model_that_changed_on_the_hub_is_started_over(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [Fault(path="/cdn/", cut_after=1_000_000), Fault(path="/cdn/", status=400)]
    with pytest.raises(DownloadError):
        store.pull(_REPO)
    changed = model_bytes(3_000_000, 6)
    hub.add(_REPO, {_FILE: changed})

    assert store.pull(_REPO).path.read_bytes() == changed
    assert [seen.start for seen in hub.bodies("/cdn/")] == [0, 0]


def test_a_model_of_the_hub_is_whole_when_only_its_name_was_missing(
    hub: FakeHub, store: ModelStore, dirs: Directories
) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    in_the_way = dirs.models / folder_name(f"{_REPO}/{_FILE}") / _FILE / "x"
    in_the_way.mkdir(parents=True)
    with pytest.raises(StorageError):
        store.pull(_REPO)
    in_the_way.rmdir()
    in_the_way.parent.rmdir()

    assert store.pull(_REPO).path.read_bytes() == _DATA
    assert len([seen for seen in hub.seen if "/cdn/" in seen.path]) == 1


def test_a_body_without_a_length_ends_where_the_hub_said(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [
        Fault(path="/cdn/", hide_length=True, extra=9),
        Fault(path="/cdn/", hide_length=True, cut_after=1_000_000),
        Fault(path="/cdn/", hide_length=True),
    ]
    with pytest.raises(DownloadError, match="more than the 3,000,000 bytes"):
        store.pull(_REPO)
    assert store.pull(_REPO).path.read_bytes() == _DATA
    assert [seen.start for seen in hub.bodies("/cdn/")] == [0, 0, 1_000_000]


def test_without_ranges_a_download_starts_over(hub: FakeHub, store: ModelStore) -> None:
    hub.supports_ranges = False
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults.append(Fault(path="/cdn/", cut_after=1_000_000))
    assert store.pull(_REPO).path.read_bytes() == _DATA


def test_a_damaged_part_is_found_and_fetched_anew(
    hub: FakeHub, store: ModelStore, dirs: Directories
) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [Fault(path="/cdn/", cut_after=1_000_000), Fault(path="/cdn/", status=400)]
    with pytest.raises(DownloadError):
        store.pull(_REPO)
    part = next(dirs.models.rglob("*.part"))
    part.write_bytes(b"GGUF" + b"?" * (part.stat().st_size - 4))

    assert store.pull(_REPO).path.read_bytes() == _DATA


def test_a_part_longer_than_the_file_is_not_asked_about(
    hub: FakeHub, store: ModelStore, dirs: Directories
) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [Fault(path="/cdn/", cut_after=1_000_000), Fault(path="/cdn/", status=400)]
    with pytest.raises(DownloadError):
        store.pull(_REPO)
    part = next(dirs.models.rglob("*.part"))
    part.write_bytes(_DATA + b"more")

    assert store.pull(_REPO).path.read_bytes() == _DATA
    assert [seen.start for seen in hub.seen if "/cdn/" in seen.path] == [0, 1_000_000, 0]


def test_an_exception_of_the_callback_ends_the_pull_and_keeps_what_came(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.rate_bytes_s = 5e6

    class EnoughError(Exception):
        pass

    def stop(event: PullProgress) -> None:
        if event.done_bytes > 500_000:
            raise EnoughError

    with pytest.raises(EnoughError):
        store.pull(_REPO, progress=stop)
    hub.rate_bytes_s = None
    assert store.pull(_REPO).path.read_bytes() == _DATA
    assert hub.bodies("/cdn/")[-1].start > 500_000


# --- refused ----------------------------------------------------------------------------------


def _refusals() -> list[tuple[Fault, type[LLMError], str]]:
    return [
        (Fault(path="/api/", status=403), LLMAuthError, "403"),
        (Fault(path="/api/", status=500), DownloadError, "500"),
        (Fault(path="/api/", status=429), LLMRateLimitError, "429"),
        (Fault(path="/api/", html=True), DownloadError, "not what a hub answers"),
        (Fault(path="/api/", redirect="/api/again", times=99), DownloadError, "circle"),
        (Fault(path="/resolve/", status=401), LLMAuthError, "401"),
        (Fault(path="/resolve/", status=404), ModelNotFoundError, "404"),
        (Fault(path="/resolve/", status=503, times=9), DownloadError, "503"),
        (Fault(path="/resolve/", redirect="/x/resolve/y", times=99), DownloadError, "circle"),
        (Fault(path="/cdn/", html=True), DownloadError, "web page"),
        (Fault(path="/cdn/", length=99), DownloadError, "99 bytes where 3,000,000"),
        (Fault(path="/cdn/", headers={"Content-Encoding": "gzip"}), DownloadError, "encoding"),
        (Fault(path="/cdn/", flip=0), DownloadError, "not a GGUF model"),
        (Fault(path="/cdn/", flip=2_999_999), IntegrityError, "another SHA-256"),
        (Fault(path="/cdn/", redirect="ftp://x/y"), DownloadError, "ftp"),
        (Fault(path="/resolve/", redirect="http://127.0.0.1:9/x"), DownloadError, "be reached"),
        (
            Fault(path="/cdn/", status=429, headers={"Retry-After": "600"}),
            TooManyRequestsError,
            "600 s",
        ),
    ]


@pytest.mark.parametrize(
    ("fault", "kind", "said"), _refusals(), ids=lambda value: getattr(value, "path", None)
)
def test_each_refusal_is_its_own_error_and_nothing_is_taken_for_a_model(
    hub: FakeHub,
    store: ModelStore,
    dirs: Directories,
    fault: Fault,
    kind: type[LLMError],
    said: str,
) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults.append(fault)

    with pytest.raises(kind, match=said) as caught:
        store.pull(_REPO)

    assert "s3cret" not in str(caught.value)
    assert not [file for file in _leftovers(dirs) if file.endswith(".gguf")]
    with pytest.raises(ModelNotFoundError):
        store.resolve(_REPO)
    hub.faults.clear()
    assert store.pull(_REPO).path.read_bytes() == _DATA


def test_what_passes_is_tried_again(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults += [
        Fault(path="/cdn/", status=503),
        Fault(path="/cdn/", status=429, headers={"Retry-After": "1"}),
    ]
    heard: list[PullProgress] = []
    assert store.pull(_REPO, progress=heard.append).path.read_bytes() == _DATA
    notes = [event.note for event in heard if event.note]
    assert [note[-24:] for note in notes if "again in 1.0 s" in note]


def test_the_rate_limit_says_how_long(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.faults.append(Fault(path="/cdn/", status=429, headers={"Retry-After": "600"}))
    with pytest.raises(TooManyRequestsError) as caught:
        store.pull(_REPO)
    assert caught.value.retry_after_s == 600


def test_a_gated_repository_says_to_accept_and_where_to_put_the_token(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.add(_REPO, {_FILE: _DATA}, gated=True)
    with pytest.raises(LLMAuthError, match="gated") as caught:
        store.pull(_REPO)
    assert caught.value.hint is not None
    assert "Accept the licence" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint


def test_a_private_repository_speaks_of_the_token(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(_REPO, {_FILE: _DATA}, token="right")
    with pytest.raises(LLMAuthError, match="private") as caught:
        store.pull(_REPO)
    assert "HF_TOKEN" in (caught.value.hint or "")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert store.pull(_REPO).path.read_bytes() == _DATA


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (f"{_REPO}:Q9_X", "Q4_K_M"),
        (f"hf:{_REPO}/other.gguf", _FILE),
        (f"{_REPO}@nowhere", "revision"),
        ("maker/Empty", "-GGUF"),
    ],
)
def test_what_the_repository_lacks_is_said_with_what_it_has(
    hub: FakeHub, store: ModelStore, reference: str, said: str
) -> None:
    hub.add(_REPO, {_FILE: _DATA, "model-7b.Q8_0.gguf": b"GGUF"})
    hub.add("maker/Empty", {"model.safetensors": b"x"})
    with pytest.raises(ModelNotFoundError) as caught:
        store.pull(reference)
    assert said in str(caught.value)


def test_an_unknown_repository_with_a_token_is_not_found(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "any")
    with pytest.raises(ModelNotFoundError, match="nobody/nothing"):
        store.pull("nobody/nothing")


def test_a_file_whose_end_cannot_be_known_is_refused(hub: FakeHub, store: ModelStore) -> None:
    hub.files["m.gguf"] = _DATA
    hub.faults.append(Fault(path="/files/", hide_length=True))
    with pytest.raises(DownloadError, match="how long"):
        store.pull(hub.file_url("m.gguf"))


def test_the_digest_in_an_address_is_held_to(hub: FakeHub, store: ModelStore) -> None:
    hub.files["m.gguf"] = _DATA
    url = hub.file_url("m.gguf")
    with pytest.raises(IntegrityError) as caught:
        store.pull(f"{url}#sha256={'0' * 64}")
    assert (caught.value.expected, caught.value.actual) == ("0" * 64, hub.digest(_DATA))
    assert store.pull(f"{url}#sha256={hub.digest(_DATA)}").sha256 == hub.digest(_DATA)


def test_an_unreachable_hub_fails_at_once(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(DownloadError, match=r"cannot be reached at 127\.0\.0\.1"):
        store.pull(_REPO)


# --- proxies ----------------------------------------------------------------------------------


def test_loopback_never_goes_through_a_proxy(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    hub.add(_REPO, {_FILE: _DATA})
    assert store.pull(_REPO).path.read_bytes() == _DATA


def test_another_host_is_reached_through_the_proxy_of_the_environment(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the host is the proxy's to resolve: here it could not be."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, hub.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    hub.add(_REPO, {_FILE: _DATA})
    assert store.pull(_REPO).path.read_bytes() == _DATA
    assert hub.seen[0].path.startswith("http://hub.invalid/api/models/")


# --- the disk ---------------------------------------------------------------------------------


def test_room_is_looked_for_before_the_first_byte(
    hub: FakeHub, store: ModelStore, dirs: Directories
) -> None:
    hub.files["m.gguf"] = _DATA
    hub.faults.append(Fault(path="/files/", length=10**18))
    with pytest.raises(StorageError, match=r"needs 1000000000\.0 GB, has .* GB") as caught:
        store.pull(hub.file_url("m.gguf"))
    assert caught.value.needed_bytes == 10**18
    assert 0 < (caught.value.available_bytes or 0) < 10**18
    assert _leftovers(dirs) in ([], ["m.gguf.part.json"])


def test_room_is_looked_for_as_the_hub_lists_it(
    hub: FakeHub, store: ModelStore, dirs: Directories
) -> None:
    """All parts of a model together, before the first of them is asked for."""
    parts = {f"big-Q8_0-0000{n}-of-00002.gguf": model_bytes(50_000, n) for n in (1, 2)}
    hub.add(_REPO, parts)
    hub.claims["big-Q8_0-00002-of-00002.gguf"] = 10**18
    with pytest.raises(StorageError, match="needs") as caught:
        store.pull(_REPO)
    assert caught.value.needed_bytes == 10**18 + 50_000
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]
    assert [path.name for path in dirs.models.iterdir()] == [".locks"], "an empty folder is left"


def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    (tmp_path / "file").write_text("in the way")
    store = ModelStore(
        Directories(cache=tmp_path / "file" / "cache", state=tmp_path), offline=False
    )
    with pytest.raises(StorageError) as caught:
        store.pull(_REPO)
    assert "LLAMA_RUNTIME_HOME" in (caught.value.hint or "")
    assert str(tmp_path / "file") in str(caught.value)
    assert hub.sent_bytes() == 0


# --- progress ---------------------------------------------------------------------------------


def test_progress_tells_phase_bytes_speed_and_time_left(hub: FakeHub, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    hub.rate_bytes_s = 6e6
    heard: list[PullProgress] = []

    store.pull(_REPO, progress=heard.append)

    loading = [event for event in heard if event.phase == "downloading" and event.file]
    assert {(event.file, event.total_bytes, event.source) for event in loading} == {
        (_FILE, len(_DATA), "hub")
    }
    done = [event.done_bytes for event in loading]
    assert done == sorted(done)
    assert len(done) >= 3
    assert 1e6 < loading[-1].speed_bytes_s < 9e6
    left = len(_DATA) - done[-1]
    assert loading[-1].eta_s == pytest.approx(left / loading[-1].speed_bytes_s)
    assert heard[-1].phase == "done"
    assert heard[-1].done_bytes == heard[-1].total_bytes == len(_DATA)


@pytest.mark.parametrize("reference", [_REPO, "tiny"])
def test_two_threads_make_one_transfer_and_the_second_sees_the_firsts_progress(
    hub: FakeHub, dirs: Directories, reference: str
) -> None:
    entry = CatalogEntry(
        name="tiny",
        title="Tiny",
        kind="chat",
        sources=(f"hf:{_REPO}/{_FILE}",) if reference == "tiny" else ("other/repo",),
        license="MIT",
        parameters=1,
        quantization="Q4_K_M",
        context=8,
        size_bytes=len(_DATA),
    )
    store = ModelStore(dirs, offline=False, limits=_QUICK, catalog={"tiny": entry})
    hub.add(_REPO, {_FILE: _DATA})
    hub.rate_bytes_s = 3e6
    heard: list[PullProgress] = []
    begun = threading.Event()
    first = threading.Thread(
        target=store.pull,
        args=(reference,),
        kwargs={"progress": lambda event: begun.set() if event.done_bytes else None},
    )
    first.start()
    assert begun.wait(10)

    model = store.pull(reference, progress=heard.append)

    first.join(10)
    assert model.path.read_bytes() == _DATA
    assert hub.sent_bytes() == len(_DATA)
    waited = [event for event in heard if event.phase == "waiting"]
    assert waited[-1].done_bytes > 0
    assert waited[-1].total_bytes == (len(_DATA) if reference == "tiny" else None)


def test_offline_nothing_is_asked(hub: FakeHub, dirs: Directories, store: ModelStore) -> None:
    hub.add(_REPO, {_FILE: _DATA})
    offline = ModelStore(dirs, offline=True)
    with pytest.raises(ModelNotFoundError, match="not on this machine") as caught:
        offline.pull(_REPO)
    assert f"models pull {_REPO}" in (caught.value.hint or "")
    assert hub.seen == []
    pulled = store.pull(_REPO)
    assert offline.pull(_REPO) == offline.resolve(_REPO) == pulled


def test_the_environment_can_forbid_the_network(
    hub: FakeHub, dirs: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with suppress(ModelNotFoundError):
        ModelStore(dirs).pull(_REPO)
    assert hub.seen == []
