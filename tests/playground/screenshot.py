"""Writes the README's picture of the playground: `.venv-playground/bin/python tests/playground/screenshot.py`."""

import tempfile
from pathlib import Path

from conftest import CHROMIUM_OPTIONS, IMAGES, ROOT, demo_service, playground
from page_parts import answers, ask, attach
from playwright.sync_api import expect, sync_playwright

PICTURE = ROOT / "docs" / "playground.png"


def main() -> None:
    """Starts the service and the playground, asks two questions, and takes the picture."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 1280, "height": 960})
        with demo_service(Path(folder)) as url, playground(url, Path(folder)) as running:
            page.goto(running.url)
            attach(page, IMAGES / "shapes.png")
            ask(page, "What is in the image?")
            expect(answers(page)).to_have_count(1)
            ask(page, "Where is the triangle?")
            expect(answers(page)).to_have_text(["a red circle, a blue cross, a yellow triangle", "bottom right"])
            page.evaluate("document.activeElement.blur()")
            page.wait_for_timeout(1000)
            page.screenshot(path=PICTURE)
        browser.close()
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
