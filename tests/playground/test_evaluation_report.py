"""The report of `llava-serving evaluate coco` in a browser, from disk."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import PHONE, ROOT
from evaluation.scripted_judge import scripted_judge
from playwright.sync_api import Browser, Page, expect

DATA = ROOT / "demo" / "evaluation"
NUM_QUESTIONS = 24


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the address of a report about the reference's answers, except one question without an answer."""
    folder = tmp_path_factory.mktemp("report")
    answers = (DATA / "reference.jsonl").read_text("utf-8").splitlines()[:-1]
    (folder / "answers").write_text("\n".join(answers), "utf-8")
    with scripted_judge() as judge:
        command = [
            str(ROOT / ".venv" / "bin" / "llava-serving"), "evaluate", "coco",
            "--questions", str(DATA / "questions.jsonl"), "--pictures", str(DATA / "pictures"),
            "--reference", str(DATA / "reference.jsonl"), "--context", str(DATA / "context.jsonl"),
            "--answers", str(folder / "answers"), "--judge-url", judge.url, "--judge-model", "judge",
            "--output", str(folder),
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=60)
    return (folder / "report.html").as_uri()


@pytest.fixture(params=["desktop light", "phone dark"])
def page(browser: Browser, report: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Opens the report. At the end the page has asked for nothing else and reported no error."""
    options = PHONE | {"color_scheme": "dark"} if request.param == "phone dark" else {"color_scheme": "light"}
    context = browser.new_context(**options)
    page, requests, problems = context.new_page(), list[str](), list[str]()
    page.on("request", lambda sent: requests.append(sent.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(report)
    yield page
    context.close()
    assert [url for url in requests if not url.startswith("data:")] == [report]
    assert problems == []


def test_filters_and_order_choose_the_questions(page: Page, report: str) -> None:
    shown, cards = page.locator("#shown"), page.locator(".question:visible")
    expect(shown).to_have_text(f"{NUM_QUESTIONS} of {NUM_QUESTIONS} questions")
    page.locator("#category").select_option("detail")
    expect(cards).to_have_count(8)
    page.locator("#category").select_option("")
    page.locator("#verdict").select_option("unanswered")
    expect(cards).to_have_count(1)
    page.locator("#verdict").select_option("")
    page.locator("#words").fill("orange")
    assert 0 < cards.count() < NUM_QUESTIONS
    page.locator("#words").fill("")
    page.locator("#sort").select_option("worst")
    gaps = [float(card.get_attribute("data-gap") or "nan") for card in cards.all()]
    assert gaps == sorted(gaps)
    assert len(set(gaps)) > 3
    summary = json.loads(Path(report.removeprefix("file://")).with_name("summary.json").read_text("utf-8"))
    score = summary["categories"]["all"]["relative_score"]
    expect(page.locator("tbody tr").first).to_contain_text(f"{score:.1f}")
    expect(page.locator(".note")).to_contain_text("not comparable with the published 85.1")


def test_pictures_boxes_and_the_judges_words_are_shown(page: Page) -> None:
    image = page.locator(".picture img").first
    assert image.evaluate("image => image.naturalWidth") > 0
    expect(page.locator(".picture svg").first).to_be_hidden()
    page.locator("#show-boxes").check()
    expect(page.locator(".picture svg").first).to_be_visible()
    words = page.locator(".words").first
    expect(words).to_be_hidden()
    page.get_by_text("The judge's words").first.click()
    expect(words).to_contain_text("The first answer is a reference.")


def test_the_report_fits_the_screen_and_is_accessible(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    violations = Axe().run(page).response["violations"]
    assert [violation["id"] for violation in violations] == []
