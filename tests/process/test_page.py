"""The status page as people meet it: in Chromium, against a gateway that really serves."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.conftest import FAKES, wait_until
from tests.gateways import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from tests.gateways import Gateway

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = [
    pytest.mark.outside,
    pytest.mark.process,
    pytest.mark.engine,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH"),
]

KEY = "canary-0123456789"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> Iterator[Gateway]:
    """A real engine with the tiny model: about a thousand tokens a second, without end."""
    options = ("--ctx-size", 8192, "--parallel", 2, "--alias", "tiny")
    with serving(tiny_model_path, *options, home=tmp_path_factory.mktemp("real")) as running:
        yield running


@pytest.fixture(scope="module")
def locked(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path, fake_binary: Path
) -> Iterator[Gateway]:
    """A gateway that asks for a key, whose engine says what it is told, slowly."""
    fake = {"FAKE": json.dumps({"story": 12, "say": [HOSTILE]})}
    options = ("--engine", "llama-server", "--engine-path", fake_binary, "--alias", HOSTILE)
    with serving(
        tiny_model_path,
        *options,
        home=tmp_path_factory.mktemp("locked"),
        LLAMA_RUNTIME_API_KEY=KEY,
        LLAMA_RUNTIME_ENV=json.dumps(fake),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests; a profile of its own goes with it."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def no_process_left() -> None:
    """Gateways and browser are the module's and outlive a test; their fixtures end them."""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of its own, in which nothing is refused by the page's policy and no script fails."""
    complaints: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(8000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("request", lambda sent: complaints.append(foreign(page, sent.url)))
    yield page
    page.close()
    serious = [each for each in complaints if each and "Failed to load resource" not in each]
    assert serious == []


def foreign(page: Page, url: str) -> str:
    """What is wrong with a request that leaves the page's origin."""
    origin = urlsplit(page.url)[:2]
    elsewhere = origin[0] == "http" and urlsplit(url)[:2] != origin
    return f"a request left {page.url}: {url}" if elsewhere else ""


def text_of(page: Page, selector: str) -> str:
    return page.locator(selector).inner_text()


def test_it_tells_state_model_and_log(gateway: Gateway, page: Page) -> None:
    answer = page.goto(gateway.url)
    assert answer
    policy = answer.headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    expect(page).to_have_title("Ready · llama-runtime")
    card = page.locator("#models article")
    for fact in ("tiny", "Ready", "xllamacpp", "CPU", "8,192 tokens", "0 of 2 busy", "MB"):
        expect(card).to_contain_text(fact)
    page.click("#models summary")
    expect(page.locator("#models details")).to_contain_text("tiny-chat.gguf")
    expect(page.locator("#log")).to_contain_text("listening")
    expect(page.locator("#n-slots")).to_have_text("0 / 2")
    expect(page.locator("#no-errors")).to_be_visible()
    expect(page.locator("#away")).to_be_hidden()


def test_a_prompt_streams_and_stop_frees_the_slot(gateway: Gateway, page: Page) -> None:
    page.goto(gateway.url)
    expect(page.locator("#model")).to_have_value("tiny")
    page.fill("#prompt", "Tell me a story.")
    page.fill("#max-tokens", "16")
    page.press("#prompt", "Control+Enter")
    status = page.locator("#try-status")
    expect(status).to_have_text(re.compile("^16 tokens .* cut off by the limit"))
    assert len(text_of(page, "#answer")) > 20

    before = gateway.get("/snapshot").body["models"][0]["counters"]
    page.fill("#max-tokens", "8000")
    page.click("#send")
    wait_until("it streams", lambda: len(text_of(page, "#answer")) > 2000)
    assert gateway.get("/snapshot").body["models"][0]["snapshot"]["slots"]["busy"] == 1
    page.click("#stop")
    expect(status).to_have_text(re.compile("stopped$"))

    def is_free() -> bool:
        (model,) = gateway.get("/snapshot").body["models"]
        return bool(model["snapshot"]["slots"]["busy"] == 0 and model["queue"]["running"] == 0)

    wait_until("the slot is free", is_free, timeout_s=2)
    after = gateway.get("/snapshot").body["models"][0]["counters"]
    assert after["cancelled"] == before["cancelled"] + 1
    expect(page.locator("#try-problem")).to_be_hidden()
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#rate-now")).to_have_text(re.compile(r"\d{2}"))
    label = page.locator("#plot svg").get_attribute("aria-label") or ""
    assert re.search(r"highest \d", label), label
    assert "NaN" not in (page.locator("#plot path.line").get_attribute("d") or "NaN")


def test_what_the_gateway_refuses_comes_with_its_remedy(gateway: Gateway, page: Page) -> None:
    page.goto(gateway.url)
    expect(page.locator("#model")).to_have_value("tiny")
    page.fill("#prompt", "again " * 20_000)
    page.click("#send")
    problem = page.locator("#try-problem")
    expect(problem).to_contain_text("may hold 8192")
    expect(problem).to_contain_text("Shorten the prompt")
    expect(page.locator("#send")).to_be_visible()


def test_it_reads_well_in_the_dark_and_on_a_phone(gateway: Gateway, page: Page) -> None:
    page.goto(gateway.url)
    page.click("#models summary")
    looks = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (320, 375, 800, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        looks[scheme] = page.evaluate(
            "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])"
        )
        assert page.evaluate((FAKES / "contrast.js").read_text("utf-8")) == []
    assert luminance(looks["light"][0]) > 0.8 > 0.2 > luminance(looks["light"][1])
    assert luminance(looks["dark"][0]) < 0.2 < 0.8 < luminance(looks["dark"][1])


def luminance(colour: str) -> float:
    """How light a computed colour is, from 0 to 1."""
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


def test_a_screen_reader_gets_names_for_all_that_can_be_used(gateway: Gateway, page: Page) -> None:
    page.goto(gateway.url)
    page.wait_for_selector("#models h3")
    nameless = page.evaluate(
        """[...document.querySelectorAll(
            'input, select, textarea, button, meter, svg[role=img], [tabindex]')]
        .filter(each => !(each.labels?.length || each.textContent.trim() || each.ariaLabel
                          || each.getAttribute('aria-labelledby')))
        .map(each => each.id || each.outerHTML)"""
    )
    assert nameless == []
    for name in ("Prompt", "Model", "Token limit"):
        expect(page.get_by_label(name, exact=True)).to_be_visible()
    expect(page.get_by_role("status")).to_have_count(2)


def test_events_are_read_however_their_bytes_are_cut(gateway: Gateway, page: Page) -> None:
    page.goto(gateway.url)
    read = page.evaluate(
        """async () => {
            const { events } = await import('/page/api.js');
            const bytes = new TextEncoder().encode(
                'data: naïve 🦙\\r\\n\\r\\n: kept alive\\n\\n' +
                'event: x\\ndata: a\\r\\ndata:b\\n\\ndata: cut');
            const got = [];
            for (const size of [1, 2, 3, 7, bytes.length]) {
                const stream = new ReadableStream({ start(out) {
                    for (let at = 0; at < bytes.length; at += size)
                        out.enqueue(bytes.slice(at, at + size));
                    out.close();
                } });
                for await (const data of events(stream)) got.push(data);
            }
            return got;
        }"""
    )
    assert read == ["naïve 🦙", "a\nb"] * 5, "what is not ended by an empty line is no event"


def test_the_plot_keeps_the_newest_whole_and_loses_nothing(gateway: Gateway, page: Page) -> None:
    page.goto(gateway.url)
    made = page.evaluate(
        """async () => {
            const { ceiling, thinned } = await import('/page/plot.js');
            return [thinned([1, 2, 3, 4, 5], 3), thinned([], 9), thinned([7], 0),
                    [0, 0.2, 1, 3, 99, 101, 5000.5].map(ceiling)];
        }"""
    )
    assert made == [
        {"points": [1, 2.5, 4.5], "each": 2},
        {"points": [], "each": 1},
        {"points": [7], "each": 1},
        [1, 1, 1, 5, 100, 200, 10000],
    ]


def test_a_killed_engine_is_seen_and_loses_no_answer(gateway: Gateway, page: Page) -> None:
    page.goto(gateway.url)
    facts = page.locator("#models .facts")
    expect(facts).to_contain_text("Restarts")
    killed = gateway.engine_pid()
    page.fill("#prompt", "Tell me a story.")
    page.fill("#max-tokens", "2000")
    page.click("#send")
    expect(page.locator("#stop")).to_be_focused()
    wait_until("it streams", lambda: len(text_of(page, "#answer")) > 200)
    psutil.Process(killed).kill()
    expect(facts).to_have_text(re.compile(r"Restarts\s*1.*SIGKILL", re.DOTALL), timeout=8000)
    expect(page.locator("#models .pill")).to_have_text("Ready", timeout=8000)
    expect(page).to_have_title("Ready · llama-runtime")
    assert gateway.engine_pid() != killed
    expect(page.locator("#try-status")).to_have_text(re.compile("^2,000 tokens"), timeout=8000)
    expect(page.locator("#try-problem")).to_be_hidden()


def test_a_key_is_asked_for_and_foreign_text_stays_text(locked: Gateway, page: Page) -> None:
    page.goto(locked.url)
    expect(page.locator("#key")).to_be_focused()
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    expect(page.locator("#key-problem")).to_be_visible()
    expect(page.locator("main")).to_be_hidden()  # nothing is known, so nothing is told
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator("#key-form")).to_be_hidden()
    expect(page.locator("#models h3")).to_have_text(HOSTILE)
    page.fill("#prompt", HOSTILE)
    page.click("#send")
    expect(page.locator("#answer")).to_contain_text(f"{HOSTILE} 2. ")
    page.press("body", "Escape")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#log")).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    expect(page.locator("main img, main script")).to_have_count(0)
    page.reload()
    expect(page.locator("#models h3")).to_be_visible()  # the key was kept for this tab
    page.click("#forget")
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("main")).to_be_hidden()


def test_a_gateway_that_goes_away_is_missed_and_noticed_when_it_is_back(
    locked: Gateway, page: Page
) -> None:
    """The last test of that gateway. What comes back at its address need not be the same."""
    page.goto(locked.url)
    expect(page.locator("#state")).to_have_text("Ready")
    locked.process.kill()
    expect(page.locator("#away")).to_contain_text("does not answer")
    expect(page.locator("#state")).to_have_text("No answer")
    locked.process.wait(10)
    with on_a_thread(_Back, urlsplit(locked.url).port or 0):
        expect(page.locator("#state")).to_have_text("Ready", timeout=8000)
        expect(page.locator("#away")).to_be_hidden()


@contextmanager
def on_a_thread(handler: type[http.server.BaseHTTPRequestHandler], port: int = 0) -> Iterator[int]:
    """A server of the test's own, on a thread; gives its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.05))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Back(_Quiet):
    """All that the page needs to know that someone is there again."""

    def do_GET(self) -> None:
        told = {"/health": b'{"status": "ready"}', "/v1/models": b'{"data": []}'}
        self.answer("application/json", told.get(self.path, b'{"models": [], "lines": []}'))


class _Elsewhere(_Quiet):
    """Another origin: serves the attack, and counts what comes to it as the attack's victim."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.path == "/attack":
            self.answer("text/html", (FAKES / "attack.html").read_bytes())
        else:
            self.seen.append(f"GET {self.path}")
            self.answer("application/json", b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.seen.append(f"POST {self.path}")
        self.answer("application/json", b"{}")

    def do_OPTIONS(self) -> None:
        self.seen.append(f"OPTIONS {self.path}")
        self.answer("text/plain", b"")


def test_a_page_on_another_origin_reads_and_triggers_nothing(
    gateway: Gateway, browser: Browser
) -> None:
    """The same attack is tried on a server without a guard, where it must come through."""

    def counts() -> Any:
        said = gateway.get("/snapshot").body
        counters = [model["counters"] for model in said["models"]]
        return said["gateway"]["requests"], said["gateway"]["by_status"], counters

    page = browser.new_page()
    with on_a_thread(_Elsewhere) as port:
        before = counts()
        for host in ("127.0.0.1", "localhost"):  # of one site with the gateway, and of another
            page.goto("about:blank")
            page.goto(f"http://{host}:{port}/attack#victim={gateway.url}")
            assert page.evaluate("all()") == []
            assert counts() == before
        page.goto("about:blank")
        page.goto(f"http://127.0.0.1:{port}/attack#victim=http://localhost:{port}")
        page.evaluate("all()")
        seen = list(_Elsewhere.seen)
        page.close()
    assert seen.count("POST /v1/chat/completions") >= 6, "simple, opaque, kept, beacon, forms"
    assert seen.count("GET /snapshot") >= 4, "fetched twice, as image, as script"
    assert seen.count("GET /v1/chat/completions") >= 2, "image, event source"
    assert gateway.get("/health").body["status"] == "ready"
