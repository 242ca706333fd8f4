"""The page in a browser, with an endpoint that wants a key, is busy, slow, silent or dead."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Playground, Tab, free_port, playground
from page_parts import answers, ask, copied, notes, stop_button, textbox
from playwright.sync_api import Error, Response, expect
from scripted_endpoint import KEY, ScriptedEndpoint

OpenTab = Callable[..., Tab]


@pytest.fixture(scope="session")
def endpoint() -> ScriptedEndpoint:
    return ScriptedEndpoint()


@pytest.fixture(scope="session")
def keyed(
    browser: object, endpoint: ScriptedEndpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Playground]:
    folder = tmp_path_factory.mktemp("keyed")
    with playground(endpoint.url, folder, "--deployment", "blue", AZUREML_ENDPOINT_KEY=KEY) as running:
        yield running


@pytest.fixture(autouse=True)
def _reset(endpoint: ScriptedEndpoint) -> None:
    endpoint.behaviors.clear()
    endpoint.bodies.clear()
    endpoint.disconnected.clear()


def test_stop_ends_the_stream_and_keeps_what_was_written(
    open_tab: OpenTab, keyed: Playground, endpoint: ScriptedEndpoint
) -> None:
    page = open_tab(keyed).page
    ask(page, "Count.")
    expect(answers(page)).to_contain_text("word5")
    stop_button(page).click()
    assert endpoint.disconnected.wait(5)
    expect(notes(page)).to_contain_text("Stopped · first token")
    expect(stop_button(page)).to_be_hidden()
    ask(page, "Go on.")
    expect(answers(page)).to_have_count(2)
    sent = endpoint.bodies[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert "word5" in sent[1]["content"]
    assert "Stopped" not in str(sent)
    page.keyboard.press("Escape")
    expect(stop_button(page)).to_be_hidden()


def test_stop_before_the_first_token_ends_the_request(
    open_tab: OpenTab, keyed: Playground, endpoint: ScriptedEndpoint
) -> None:
    endpoint.behaviors.append("silence")
    page = open_tab(keyed).page
    ask(page, "Hello?")
    expect(notes(page)).to_contain_text("Waiting for the first token")
    stop_button(page).click()
    assert endpoint.disconnected.wait(5)
    expect(notes(page)).to_contain_text("Stopped before the first token")
    expect(answers(page)).to_have_count(0)


def test_regenerate_sends_the_same_request_again(
    open_tab: OpenTab, keyed: Playground, endpoint: ScriptedEndpoint
) -> None:
    page = open_tab(keyed).page
    page.get_by_role("button", name="What digit is this?").click()
    expect(answers(page)).to_contain_text("word1")
    stop_button(page).click()
    expect(notes(page)).to_contain_text("Stopped")
    page.get_by_role("button", name="Retry").click()
    expect(notes(page)).not_to_contain_text("Stopped")
    expect(answers(page)).to_contain_text("word1")
    stop_button(page).click()
    first, second = endpoint.bodies
    assert first == second
    assert first["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_closing_the_tab_ends_the_stream(open_tab: OpenTab, keyed: Playground, endpoint: ScriptedEndpoint) -> None:
    page = open_tab(keyed).page
    ask(page, "Count.")
    expect(answers(page)).to_contain_text("word1")
    page.close()
    assert endpoint.disconnected.wait(15)


def test_clear_ends_the_stream(open_tab: OpenTab, keyed: Playground, endpoint: ScriptedEndpoint) -> None:
    page = open_tab(keyed).page
    ask(page, "Count.")
    expect(answers(page)).to_contain_text("word1")
    page.get_by_role("button", name="Clear").first.click()
    assert endpoint.disconnected.wait(5)
    expect(answers(page)).to_have_count(0)
    expect(stop_button(page)).to_be_hidden()


def test_second_question_while_an_answer_is_written_is_refused(open_tab: OpenTab, keyed: Playground) -> None:
    page = open_tab(keyed).page
    ask(page, "Count.")
    expect(answers(page)).to_contain_text("word1")
    textbox(page).fill("And now?")
    textbox(page).press("Enter")
    expect(page.get_by_text("Stop it first")).to_be_visible()
    expect(answers(page)).to_have_count(1)
    expect(textbox(page)).to_have_value("And now?")
    stop_button(page).click()


def test_full_queue_is_reported_and_waited_for(
    open_tab: OpenTab, keyed: Playground, endpoint: ScriptedEndpoint
) -> None:
    endpoint.behaviors += ["busy", "busy"]
    page = open_tab(keyed).page
    ask(page, "Count.")
    expect(notes(page)).to_contain_text("The service is busy: next attempt in ")
    expect(notes(page)).to_contain_text("429 overloaded: the queue is full")
    expect(answers(page)).to_contain_text("word1", timeout=15_000)
    assert len(endpoint.bodies) == 3
    stop_button(page).click()


def body(response: Response) -> bytes:
    """Returns the body of a response, or nothing if the browser has not kept it or it has not ended."""
    with suppress(Error):
        return b"" if "heartbeat" in response.url else response.body()
    return b""


def test_key_stays_out_of_the_browser(open_tab: OpenTab, keyed: Playground) -> None:
    """No response holds the key: neither the page, nor its scripts, nor the copied code."""
    tab = open_tab(keyed)
    page = tab.page
    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response))
    page.reload()
    page.get_by_text("Temperature").wait_for()
    ask(page, "Count.")
    expect(answers(page)).to_contain_text("word1")
    stop_button(page).click()
    page.get_by_text("Copy the last request").click()
    code = {name: copied(page, name) for name in ("curl", "Python", "JSON")}
    assert '"Authorization: Bearer $AZUREML_ENDPOINT_KEY"' in code["curl"]
    assert "os.environ['AZUREML_ENDPOINT_KEY']" in code["Python"]
    assert "azureml-model-deployment: blue" in code["curl"]
    bodies = list(filter(None, map(body, responses)))
    assert len(bodies) > 10
    assert not any(KEY.encode() in body for body in bodies)
    assert KEY not in page.content() + "".join(code.values())
    assert KEY not in keyed.log.read_text()


def test_answer_loads_nothing_from_elsewhere_and_runs_no_script(
    open_tab: OpenTab, keyed: Playground, endpoint: ScriptedEndpoint
) -> None:
    endpoint.behaviors.append("hostile")
    tab = open_tab(keyed)
    title = tab.page.title()
    ask(tab.page, "Hello?")
    expect(answers(tab.page)).to_contain_text("seen")
    expect(stop_button(tab.page)).to_be_hidden()
    assert tab.page.title() == title
    assert any("Content Security Policy" in problem and "other.example" in problem for problem in tab.problems)
    assert tab.loaded == []
    tab.foreign_requests.clear()
    tab.problems.clear()


def test_dead_endpoint_is_reported(open_tab: OpenTab, browser: object, tmp_path: Path) -> None:
    with playground(f"http://127.0.0.1:{free_port()}/score", tmp_path) as running:
        page = open_tab(running).page
        ask(page, "Hello?")
        expect(notes(page)).to_contain_text("No answer")
        expect(notes(page)).to_contain_text("Connection refused")


def test_page_answers_to_its_own_address_only(keyed: Playground) -> None:
    request = urllib.request.Request(keyed.url, headers={"Host": "attacker.example"})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request)
    assert raised.value.code == 400
    with urllib.request.urlopen(keyed.url) as response:
        assert "connect-src 'self'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("origin", ["https://attacker.example", "null", "http://127.0.0.1:1"])
def test_page_of_another_site_uploads_nothing(keyed: Playground, origin: str) -> None:
    """A browser sends a form of another site's page without asking this page, but with the site's name in Origin."""
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\na\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    url = f"{keyed.url.rstrip('/')}/gradio_api/upload"
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(url, form, headers | {"Origin": origin}))
    assert raised.value.code == 403
    own = headers | {"Origin": keyed.url.rstrip("/")}
    with urllib.request.urlopen(urllib.request.Request(url, form, own)) as response:
        assert response.status == 200
