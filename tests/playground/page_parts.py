"""Where things are on the page, and how a person uses them."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, expect


def textbox(page: Page) -> Locator:
    return page.get_by_placeholder("Ask about images")


def stop_button(page: Page) -> Locator:
    return page.get_by_role("button", name="Stop", exact=True)


def answers(page: Page) -> Locator:
    """Returns the model's messages, without notes."""
    return page.locator("#chat [data-testid=bot]").filter(has_not=page.locator(".thought-group"))


def notes(page: Page) -> Locator:
    return page.locator("#chat .thought-group")


def ask(page: Page, question: str) -> None:
    """Asks once the answer before is complete."""
    expect(stop_button(page)).to_be_hidden()
    textbox(page).fill(question)
    textbox(page).press("Enter")


@contextmanager
def answered_again(page: Page) -> Iterator[None]:
    """Waits for the answer to what the block clicks. The page sends two events: the question, and then the answer."""
    events = itertools.count(1)
    with page.expect_request(lambda request: "/queue/join" in request.url and next(events) == 2):
        yield
    expect(stop_button(page)).to_be_hidden()


def attach(page: Page, *images: Path) -> None:
    """Attaches images through the file dialog's input."""
    page.locator("input[type=file][accept*=image]").set_input_files(images)
    expect(page.locator(".thumbnail-item")).to_have_count(len(images))


def copied(page: Page, tab: str) -> str:
    """Copies the code of a tab and returns the clipboard."""
    page.get_by_role("tab", name=tab).click()
    page.get_by_role("tabpanel").filter(visible=True).get_by_role("button", name="Copy").click()
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text
