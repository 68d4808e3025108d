"""The pictures of docs/looking.md: the page with a run and its twin as `make demo` leaves them. Needs Chromium."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from chiaroscuro.app import Shelf, build, serve

DOCS = Path(__file__).parent.parent / "docs"
TEXT = "O, that this too too solid flesh would melt, thaw, and resolve itself into a dew."


def take(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # what opens and fades comes to rest
    page.screenshot(path=DOCS / name, full_page=True)
    print(DOCS / name)


def reading(page: Page) -> None:
    page.fill("#text textarea", TEXT)
    page.click("#read")
    page.wait_for_function("document.querySelector('#first').innerText.includes('solid flesh')")
    take(page, "page.png")


def changing(page: Page) -> None:
    page.click("#intervene button")
    page.wait_for_timeout(500)
    page.fill("#share input[type=number]", "25")
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelector('#first').innerText.includes('tokens sent elsewhere')")
    page.click("#draw")
    page.wait_for_selector("img[src^='data:image/webp']")
    take(page, "page-changed.png")


def writing(page: Page, twin: str) -> None:
    page.click("#beside input")
    page.get_by_role("option", name=twin, exact=True).click()
    page.wait_for_selector("#second bdi")
    page.get_by_role("tab", name="Write").click()
    page.click("#write")
    page.wait_for_function("(document.querySelector('#speed').innerText.match(/tokens per second/g) || []).length == 2")
    page.wait_for_function("!document.querySelector('#written-beside').innerText.includes('Processing')")
    take(page, "page-writing.png")


def training(page: Page) -> None:
    page.get_by_role("tab", name="Training").click()
    page.click("#figures")
    page.wait_for_function("document.querySelectorAll(\"img[src^='data:image/webp']\").length >= 5")
    take(page, "page-training.png")


def main(compared: Path) -> None:
    twin = compared / "full_attention"
    shown = build(Shelf([compared / "chiar", twin]))
    address = serve(shown, "127.0.0.1", 7860)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(address)
        page.wait_for_selector("#first bdi")
        reading(page)
        changing(page)
        writing(page, str(twin))
        training(page)
        browser.close()
    shown.close()


main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare-1"))
