"""The page in a browser, with the service on the demo model as its endpoint."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import IMAGES, PHONE, Playground, Tab, demo_service, playground
from page_parts import answered_again, answers, ask, attach, copied, notes, stop_button, textbox
from playwright.sync_api import Page, expect

ABOUT_SHAPES = "a red circle, a blue cross, a yellow triangle"
OpenTab = Callable[..., Tab]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("playground")


@pytest.fixture(scope="session")
def service(browser: object, folder: Path) -> Iterator[str]:
    """Returns the scoring URI of `llava-serving serve`."""
    with demo_service(folder) as url:
        yield url


@pytest.fixture(scope="session")
def demo(service: str, folder: Path) -> Iterator[Playground]:
    with playground(service, folder) as running:
        yield running


@pytest.fixture
def page(open_tab: OpenTab, demo: Playground) -> Page:
    return open_tab(demo).page


def test_uploaded_image_is_answered_with_figures_and_a_second_turn(page: Page) -> None:
    attach(page, IMAGES / "shapes.png")
    ask(page, "What is in the image?")
    expect(answers(page)).to_have_text([ABOUT_SHAPES])
    expect(notes(page)).to_contain_text("first token")
    expect(notes(page)).to_contain_text("tokens/s")
    expect(notes(page)).to_contain_text("prompt 103 tokens (")
    expect(notes(page)).to_contain_text("answer 12 tokens")
    ask(page, "What color is the circle?")
    expect(answers(page)).to_have_text([ABOUT_SHAPES, "red"])
    expect(textbox(page)).to_be_focused()


def test_every_example_is_answered(page: Page) -> None:
    expected = {
        "What is in the image?": ABOUT_SHAPES,
        "Where is the triangle?": "bottom right",
        "What digit is this?": "3",
        "What color is the shape?": "green",
        "What is 2 plus 3?": "2 plus 3 is 5.",
        "Who are you?": "I am a tiny demo model. I name shapes, colors and digits.",
    }
    expect(page.get_by_role("button", name="Select example")).to_have_count(len(expected))
    for question, answer in expected.items():
        page.get_by_role("button", name=question).click()
        expect(answers(page)).to_have_text([answer])
        expect(stop_button(page)).to_be_hidden()
        page.get_by_role("button", name="Clear").first.click()


def test_dropped_and_pasted_images_are_attached(page: Page) -> None:
    image = list((IMAGES / "shapes.png").read_bytes())
    transfer = page.evaluate_handle(
        """bytes => { const transfer = new DataTransfer();
           transfer.items.add(new File([new Uint8Array(bytes)], "shapes.png", {type: "image/png"}));
           return transfer; }""",
        image,
    )
    textbox(page).dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.locator(".thumbnail-item")).to_have_count(1)
    textbox(page).evaluate(
        "(box, data) => box.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))", transfer
    )
    expect(page.locator(".thumbnail-item")).to_have_count(2)
    ask(page, "What is in the image?")
    expect(page.get_by_role("img", name="attached image")).to_have_count(2)
    expect(answers(page)).to_have_count(1)


def test_regenerate_undo_edit_and_clear(page: Page) -> None:
    attach(page, IMAGES / "shapes.png")
    ask(page, "What color is the circle?")
    expect(answers(page)).to_have_text(["red"])
    expect(stop_button(page)).to_be_hidden()
    with answered_again(page):
        page.get_by_role("button", name="Retry").click()
    expect(notes(page)).to_have_count(1)
    expect(answers(page)).to_have_text(["red"])
    page.get_by_role("button", name="Edit").click()
    page.locator("#chat textarea").fill("What color is the cross?")
    with answered_again(page):
        page.locator("#chat").get_by_role("button", name="Submit").click()
    expect(answers(page)).to_have_text(["blue"])
    expect(page.get_by_role("img", name="attached image")).to_have_count(1)
    ask(page, "Where is the triangle?")
    expect(answers(page)).to_have_text(["blue", "bottom right"])
    expect(stop_button(page)).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    expect(answers(page)).to_have_text(["blue"])
    expect(textbox(page)).to_have_value("Where is the triangle?")
    page.get_by_role("button", name="Clear").first.click()
    expect(answers(page)).to_have_count(0)
    expect(page.get_by_role("button", name="Who are you?")).to_be_visible()


def test_undo_of_the_first_question_brings_its_image_back(page: Page) -> None:
    page.get_by_role("button", name="What digit is this?").click()
    expect(answers(page)).to_have_text(["3"])
    expect(stop_button(page)).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".thumbnail-item")).to_have_count(1)
    textbox(page).press("Enter")
    expect(answers(page)).to_have_text(["3"])


def test_error_is_shown_in_the_service_s_words_and_is_no_part_of_the_conversation(page: Page) -> None:
    page.get_by_label("Longest answer in tokens").fill("4096")
    ask(page, "What is 2 plus 3?")
    expect(notes(page)).to_contain_text("422 context_length_exceeded")
    expect(notes(page)).to_contain_text("the model's context holds 512")
    expect(stop_button(page)).to_be_hidden()
    page.get_by_label("Longest answer in tokens").fill("a few")
    page.get_by_role("button", name="Retry").click()
    expect(notes(page)).to_contain_text("400 invalid_parameter")
    page.get_by_label("Longest answer in tokens").fill("")
    ask(page, "What is 3 plus 4?")
    expect(answers(page)).to_have_text(["3 plus 4 is 7."])


def test_parameters_are_sent(page: Page) -> None:
    page.get_by_label("Longest answer in tokens").fill("2")
    page.get_by_label("number input for Temperature").fill("2")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("none: continue the text").check()
    ask(page, "the meaning of life is")
    expect(notes(page)).to_contain_text("answer 2 tokens")
    notes(page).get_by_role("button").first.click()
    expect(notes(page)).to_contain_text("longest length")
    page.get_by_text("Copy the last request").click()
    page.get_by_role("tab", name="JSON").click()
    body = json.loads(copied(page, "JSON"))
    parameters = {"temperature": 2, "top_p": 1, "max_new_tokens": 2, "seed": 7, "template": "none"}
    assert body == {
        "input_data": {
            "input_string": ["the meaning of life is"],
            "parameters": parameters | {"return_full_text": False},
        }
    }


def test_copied_requests_get_the_same_answer(page: Page) -> None:
    page.get_by_role("button", name="What is in the image?").click()
    expect(answers(page)).to_have_text([ABOUT_SHAPES])
    page.get_by_text("Copy the last request").click()
    curl = subprocess.run(["sh", "-c", copied(page, "curl")], capture_output=True, text=True, check=True)
    assert json.loads(curl.stdout)["choices"][0]["message"]["content"] == ABOUT_SHAPES
    python = subprocess.run(["python3", "-c", copied(page, "Python")], capture_output=True, text=True, check=True)
    assert python.stdout == ABOUT_SHAPES + "\n"
    assert json.loads(copied(page, "JSON"))["messages"][0]["content"][1]["text"] == "What is in the image?"


def test_conversation_is_exported_and_imported(page: Page, tmp_path: Path) -> None:
    page.get_by_label("System message").fill("Answer briefly.")
    page.get_by_role("button", name="What is in the image?").click()
    expect(answers(page)).to_have_text([ABOUT_SHAPES])
    expect(page.get_by_role("button", name="Export")).to_be_enabled()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    exported = tmp_path / "conversation.json"
    download.value.save_as(exported)
    roles = [message["role"] for message in json.loads(exported.read_text())["messages"]]
    assert roles == ["system", "user", "assistant"]
    page.reload()
    page.locator("input[type=file][accept*=json]").set_input_files(exported)
    expect(answers(page)).to_have_text([ABOUT_SHAPES])
    expect(page.get_by_label("System message")).to_have_value("Answer briefly.")
    ask(page, "What color is the circle?")
    expect(answers(page)).to_have_text([ABOUT_SHAPES, "red"])


def test_file_that_is_no_conversation_is_refused(page: Page, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text('{"messages": 1}')
    page.locator("input[type=file][accept*=json]").set_input_files(tmp_path / "wrong.json")
    expect(page.get_by_text("The file was not imported")).to_be_visible()


def test_dark_and_narrow_page_fits_and_works(open_tab: OpenTab, demo: Playground) -> None:
    page = open_tab(demo, color_scheme="dark", **PHONE).page
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(brightness[:3]) < 64
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="What is in the image?").tap()
    expect(answers(page)).to_have_text([ABOUT_SHAPES])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_page_works_by_keyboard(page: Page) -> None:
    expect(textbox(page)).to_be_focused()
    page.keyboard.type("What is 2 plus 3?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text(["2 plus 3 is 5."])
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "polite")


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_violations(open_tab: OpenTab, demo: Playground, color_scheme: str) -> None:
    """Checks the empty page, and the page with an answer. axe's script needs an exception from the page's policy."""
    page = open_tab(demo, color_scheme=color_scheme, bypass_csp=True).page
    expect_no_violations(page)
    page.get_by_role("button", name="What is in the image?").click()
    expect(answers(page)).to_have_text([ABOUT_SHAPES])
    expect(stop_button(page)).to_be_hidden()
    expect_no_violations(page)


def expect_no_violations(page: Page) -> None:
    """Waits until axe finds nothing: texts have less contrast while they fade in."""
    deadline = time.monotonic() + 10
    while (violations := Axe().run(page).response["violations"]) and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    assert violations == []


def test_empty_question_is_not_sent(page: Page) -> None:
    textbox(page).press("Enter")
    expect(page.get_by_text("Type a question or attach an image first.")).to_be_visible()
    expect(notes(page)).to_have_count(0)
