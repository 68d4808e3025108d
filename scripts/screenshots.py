"""Takes docs/page.png, a picture of the page with a run and its twin as `make demo` leaves them. Needs Chromium."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from chiaroscuro.app import CSS, THEME, Shelf, build

PICTURE = Path(__file__).parent.parent / "docs" / "page.png"
TEXT = "O, that this too too solid flesh would melt, thaw, and resolve itself into a dew."


def main(compared: Path) -> None:
    shown = build(Shelf([compared / "chiar", compared / "full_attention"]))
    _, address, _ = shown.launch(prevent_thread_lock=True, theme=THEME, css=CSS, ssr_mode=False, quiet=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(address)
        page.wait_for_selector("#first bdi")
        page.fill("#text textarea", TEXT)
        page.click("#read")
        page.wait_for_function("document.querySelector('#first').innerText.includes('solid flesh')")
        page.screenshot(path=PICTURE, full_page=True)
        browser.close()
    shown.close()
    print(PICTURE)


main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare-1"))
