"""The catalogue's files hold what the catalogue promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runtime.errors import ConfigError
from runtime.settings import DEFAULT_MODEL
from runtime.store.catalog import (
    CatalogEntry,
    catalog_folder,
    nearest_names,
    read_catalog,
    read_entry,
)
from runtime.store.quants import quant_of
from runtime.store.refs import HubRef, PypiRef, parse_ref

if TYPE_CHECKING:
    from pathlib import Path

_ENTRY = """
name = "tiny"
title = "Tiny"
kind = "chat"
license = "MIT"
parameters = 1
quantization = "Q4_0"
context = 8
size_bytes = 10
sources = ["owner/repo:Q4_0"]
"""


def _file(folder: Path, text: str, name: str = "tiny") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("name", sorted(read_catalog()))
def test_each_entry_can_be_fetched_from_somewhere(name: str) -> None:
    entry = read_catalog()[name]
    assert entry.title
    assert entry.license
    assert entry.homepage.startswith("https://")
    assert all(isinstance(ref, HubRef | PypiRef) for ref in entry.source_refs)


def test_no_two_entries_share_a_source() -> None:
    sources = [source for entry in read_catalog().values() for source in entry.sources]
    assert len(sources) == len(set(sources))


def test_the_default_model_has_a_digest_and_two_kinds_of_sources() -> None:
    entry = read_catalog()[DEFAULT_MODEL]
    assert entry.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert entry.size_bytes == 98_362_432
    assert entry.license == "Apache-2.0"
    assert [type(ref) for ref in entry.source_refs] == [HubRef, PypiRef]


def test_the_smallest_comes_first() -> None:
    sizes = [entry.size_bytes for entry in read_catalog().values()]
    assert sizes == sorted(sizes)
    assert (catalog_folder() / f"{DEFAULT_MODEL}.toml").is_file()


def test_an_entry_is_read_whole(tmp_path: Path) -> None:
    entry = read_entry(_file(tmp_path, _ENTRY + "tags = ['a', 'b']\n[sampling]\ntop_k = 20\n"))
    assert entry == CatalogEntry(
        name="tiny",
        title="Tiny",
        kind="chat",
        license="MIT",
        parameters=1,
        quantization="Q4_0",
        context=8,
        size_bytes=10,
        sources=("owner/repo:Q4_0",),
        tags=("a", "b"),
        sampling=entry.sampling,
    )
    assert entry.sampling is not None
    assert (entry.sampling.top_k, entry.sampling.temperature) == (20, None)
    assert entry.source_refs == (parse_ref("owner/repo:Q4_0"),)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('kind = "chat"', 'kind = "prose"'), "kind"),
        (("context = 8", "context = 0"), "context"),
        (("context = 8", ""), "context"),
        (("context = 8", "context = 8\ncontxt = 8"), "contxt"),
        (('["owner/repo:Q4_0"]', "[]"), "sources"),
        (('["owner/repo:Q4_0"]', '["not a reference"]'), "not a reference"),
        (('name = "tiny"', 'name = "other"'), "other"),
        (("context = 8", 'sha256 = "abc"\ncontext = 8'), "sha256"),
        (("context = 8", "context = = 8"), "tiny.toml"),
    ],
)
def test_a_wrong_entry_names_the_file_and_the_key(
    tmp_path: Path, change: tuple[str, str], named: str
) -> None:
    path = _file(tmp_path, _ENTRY.replace(*change))
    with pytest.raises(ConfigError, match=named) as caught:
        read_entry(path)
    assert str(path) in str(caught.value)


def test_an_empty_catalogue_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no catalogue"):
        read_catalog(tmp_path)


def test_names_that_look_alike() -> None:
    known = ["smollm2-135m", "smollm2-360m", "qwen3-8b", "Qwen2.5-Coder"]
    assert nearest_names("smolm2-135m", known)[0] == "smollm2-135m"
    assert nearest_names("QWEN", known) == ("qwen3-8b", "Qwen2.5-Coder")
    assert nearest_names("zzz", known) == ()


def test_the_catalogue_serves_each_purpose() -> None:
    entries = read_catalog().values()
    kinds = [entry.kind for entry in entries]
    assert len(kinds) >= 20
    assert kinds.count("code") >= 2
    assert kinds.count("embedding") >= 4
    assert {"reranker", "vision"} <= set(kinds)
    chat = [entry.parameters for entry in entries if entry.kind == "chat"]
    assert min(chat) < 0.2e9
    assert 20e9 <= max(chat) < 21e9


@pytest.mark.parametrize("name", sorted(read_catalog()))
def test_an_entrys_facts_agree_with_each_other(name: str) -> None:
    """Bits per weight between what its quantization and its projector can account for."""
    entry = read_catalog()[name]
    bits = entry.size_bytes * 8 / entry.parameters
    least, most = {"Q8_0": (8.4, 9.4), "MXFP4": (4.2, 5.0)}.get(entry.quantization, (4.4, 6.7))
    assert least < bits < most
    for ref in entry.source_refs:
        if isinstance(ref, HubRef) and ref.file:
            assert quant_of(ref.file) == entry.quantization
    assert entry.tools == ("tools" in entry.tags)
    assert 512 <= entry.context <= 2**20
