"""The page in a real browser: it is used as a visitor does, and asks nothing of any other machine."""

import re
import shutil
import threading
import time
from itertools import count
from urllib.parse import urlparse

import pytest

from chiaroscuro.analysis.render import contrast
from chiaroscuro.app import answers

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: make test-page installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: make test-page installs it")

QUIET = [
    "--no-sandbox",
    *(f"--disable-{what}" for what in ("gpu", "quic", "background-networking", "component-update", "sync")),
    "--no-first-run",
]
HOSTILE = "<script>document.title='ran'</script> <img src=x onerror=alert(1)> \u202egnp שלום 🙂👩\u200d🚀 \x07 &amp;"


# Notes every length of the text that is being written, at each change of the page.
WATCH = """
window.lengths = []
new MutationObserver(() => {
  const length = document.querySelectorAll("#written p[data-layer='2'] bdi").length
  if (length && length !== window.lengths.at(-1)) window.lengths.push(length)
}).observe(document.body, { childList: true, subtree: true })
"""


# Of everything in the rows that has text of its own: what it is, its colour, and the colour that it stands on.
INKS = """
[...document.querySelectorAll("#first *:not(style)")]
  .filter(each => [...each.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()))
  .map(each => {
    let ground = each
    while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement
    return [each.tagName, getComputedStyle(each).color, getComputedStyle(ground).backgroundColor]
  })
"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """Opened, with the first text read. At the end: nothing was asked of another machine, and nothing failed."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("request", lambda request: request.post_data and print(request.url, request.post_data))  # seen on failure
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#first bdi")
    yield page
    assert {urlparse(url).hostname for url in asked if url.startswith(("http", "ws"))} == {"127.0.0.1"}
    assert faults == []
    page.close()


def heads(page, place="#first"):
    return page.locator(f"{place} h3").all_inner_texts()


def hexadecimal(colour):
    """A colour as a browser names it, such as rgb(0, 0, 0), as #000000."""
    return "#" + "".join(f"{int(channel):02x}" for channel in re.findall(r"\d+", colour)[:3])


def read(page, text):
    page.fill("#text textarea", text)
    page.click("#read")


def intervene(page):
    """Unfolds the controls; as a visitor does, waits until they have come to rest."""
    page.click("#intervene button")
    page.wait_for_selector("#operator input")
    page.wait_for_timeout(500)


def choose(page, place, option):
    page.click(f"{place} input")
    page.get_by_role("option", name=option, exact=True).click()


def test_a_text_is_coloured_and_tells_on_hover(page):
    read(page, "a zebra is a zebra")
    page.wait_for_function("document.querySelector('#first p.tokens').innerText.includes('zebra is a')")
    assert len(heads(page)) == 5
    row = page.locator("#first p[data-layer='4'] bdi")
    assert re.match(
        r"token 2: \w+\nentropy 0\.\d{4}\ngate 1\.000\nthreshold -?\d\.\d+\nloss", row.nth(1).get_attribute("title")
    )
    colours = {row.nth(index).evaluate("e => getComputedStyle(e).backgroundColor") for index in range(row.count())}
    assert colours <= {"rgb(246, 246, 243)", "rgb(31, 42, 68)"}
    page.get_by_label("entropy").check()
    page.wait_for_function("document.querySelector('#first .key').innerText.includes('lowest entropy')")
    assert "saved" in page.locator("#first table").inner_text()


def test_in_the_dark_all_is_read_as_well(browser, address):
    page = browser.new_page(color_scheme="dark")
    page.goto(address + "?__theme=dark")
    page.wait_for_selector("#first bdi")
    assert page.evaluate("document.body.classList.contains('dark')")
    pairs = page.evaluate(INKS)
    assert len(pairs) > 20
    for tag, ink, ground in pairs:
        assert contrast(hexadecimal(ink), hexadecimal(ground)) >= 4.5, (tag, ink, ground)
    page.close()


def test_the_slider_moves_tokens(page):
    before = heads(page)
    intervene(page)
    page.locator("#share input[type=range]").focus()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('#first').innerText.includes('tokens sent elsewhere')")
    page.wait_for_function("[...document.querySelectorAll('#first h3')][3].innerText.includes('attention 100%')")
    assert heads(page)[3] != before[3]
    page.get_by_label("The model's own share").check()
    page.wait_for_function("!document.querySelector('#first').innerText.includes('tokens sent elsewhere')")
    assert heads(page) == before


def test_a_forced_token_changes_what_is_expected_next_and_the_curve_is_drawn(page):
    intervene(page)
    page.fill("#layer input", "4")
    page.fill("#token input", "1")
    choose(page, "#operator", "attention")
    page.wait_for_function("document.querySelector('#first').innerText.includes('after token 1; divergence')")
    page.click("#draw")
    page.wait_for_selector("img[src^='data:image/webp']", state="attached")


def test_a_text_is_written_token_by_token_beside_the_twin(page, runs):
    choose(page, "#beside", str(runs[1]))
    page.wait_for_selector("#second bdi")
    assert len(heads(page, "#second")) == 4
    page.get_by_role("tab", name="Write").click()
    page.fill("#tokens input[type=number]", "80")
    page.evaluate(WATCH)
    page.click("#write")
    page.wait_for_function("(document.querySelector('#speed').innerText.match(/tokens per second/g) || []).length == 2")
    lengths = page.evaluate("window.lengths")
    assert len(lengths) > 3, "it came all at once"
    assert lengths == sorted(lengths)
    assert page.locator("#written-beside p[data-layer='2'] bdi").count() > 5


def test_stop_ends_the_writing(page, monkeypatch):
    ended = threading.Event()

    def write(*asked):
        try:
            for length in count(1):
                yield f"<p>{length} tokens</p>", ""
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(answers, "write", write)
    page.get_by_role("tab", name="Write").click()
    page.click("#write")
    page.wait_for_function("/[2-9] tokens/.test(document.querySelector('#written').innerText)")
    assert not ended.is_set()
    page.click("#stop")
    assert ended.wait(60)


def test_the_figures_of_training_are_shown(page):
    page.get_by_role("tab", name="Training").click()
    page.click("#figures")
    page.wait_for_function("document.querySelectorAll(\"img[src^='data:image/webp']\").length == 4")
    assert page.locator("#told").inner_text().strip() == ""


@pytest.mark.parametrize("text", [HOSTILE, "🙂" * 300, "x" * 20_000, " \n\t ", ""])
def test_hostile_texts_are_text(page, text):
    read(page, text)
    if text:
        wanted = "page.*most" if len(text) > 5_000 else "layer 1"
        page.wait_for_function(f"/{wanted}/.test(document.querySelector('#first').innerText)")
    else:
        page.wait_for_function("document.querySelector('#first').innerText.trim() == ''")
    assert page.title() == "chiaroscuro"
    assert page.locator("#first script, #first img").count() == 0


def test_a_broken_run_is_a_message(page, broken):
    choose(page, "#run", str(broken))
    page.wait_for_function("document.querySelector('#first').innerText.includes('config.json is damaged')")
    assert page.locator("#first h3").count() == 0
    assert "Traceback" not in page.locator("body").inner_text()


def test_narrow_screens_and_keys(browser, address):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(address)
    page.wait_for_selector("#first bdi")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.focus("#text textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("by keys alone")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "read":
            break
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#first p.tokens').innerText.includes('by keys')")
    page.close()
