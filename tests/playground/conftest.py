"""The playground in Debian's Chromium, driven by Playwright.

These tests run in the playground's environment, which lacks the service's packages:
`.venv-playground/bin/python -m pytest --confcutdir tests/playground tests/playground`.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "demo" / "pictures"
START_SECONDS = 120
ANSWER_MILLISECONDS = 20_000
CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
expect.set_options(timeout=ANSWER_MILLISECONDS)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@dataclass
class Playground:
    """A running `llava-serving playground`. `log` is the file of its output."""

    url: str
    log: Path


@dataclass
class Tab:
    """An open page, and what its browser did besides showing it."""

    page: Page
    foreign_requests: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)  # of other hosts
    problems: list[str] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(command: list[str], log: Path, probe_url: str, **environment: str) -> Iterator[None]:
    """Runs a server until the block ends. The block begins when `probe_url` answers."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLAVA_", "AZUREML_", "AML_"))}
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=clean | environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: server.poll() is not None or answers(probe_url), START_SECONDS)
        assert server.poll() is None, log.read_text("utf-8", "replace")
        yield
    finally:
        server.terminate()
        server.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.1)


@contextmanager
def playground(endpoint_url: str, folder: Path, *options: str, **environment: str) -> Iterator[Playground]:
    """Runs the command for an endpoint until the block ends."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "llava_serving",
        "playground",
        "--url",
        endpoint_url,
        "--port",
        str(port),
        *options,
    ]
    running = Playground(f"http://127.0.0.1:{port}/", folder / "playground.log")
    with process(command, running.log, running.url, PYTHONPATH=str(ROOT / "src"), **environment):
        yield running


@contextmanager
def demo_service(folder: Path) -> Iterator[str]:
    """Runs `llava-serving serve` on the demo model until the block ends. Yields its scoring URI."""
    port = free_port()
    command = [str(ROOT / ".venv" / "bin" / "llava-serving"), "serve", "--port", str(port)]
    with process(command, folder / "service.log", f"http://127.0.0.1:{port}/"):
        yield f"http://127.0.0.1:{port}/score"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("Chromium is missing: `apt-get install chromium` installs it, and `make test` does it as root")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens a playground in a new browser context.

    At the end of the test, the tab has sent no request to another host and reported no error.
    """
    tabs = []

    def open_page(running: Playground, **options: object) -> Tab:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(ANSWER_MILLISECONDS)
        tab = Tab(context.new_page())
        tabs.append(tab)
        tab.page.on("request", lambda request: _record_foreign(tab.foreign_requests, request.url, running.url))
        tab.page.on("requestfinished", lambda request: _record_foreign(tab.loaded, request.url, running.url))
        tab.page.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.page.on("console", lambda message: message.type == "error" and tab.problems.append(message.text))
        tab.page.goto(running.url)
        tab.page.get_by_text("Temperature").wait_for()
        return tab

    yield open_page
    for tab in tabs:
        tab.page.context.close()
        assert tab.foreign_requests == []
        assert tab.problems == []


def _record_foreign(urls: list[str], url: str, own_url: str) -> None:
    if not url.startswith((own_url, "data:", "blob:")):
        urls.append(url)
