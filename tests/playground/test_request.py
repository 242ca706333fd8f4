"""Conversations as request bodies and as code, without a browser."""

import base64
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import IMAGES
from PIL import Image

from llava_serving.playground.code_samples import Target, curl_command, python_program
from llava_serving.playground.conversation import Message, chatbot_messages, conversation, note
from llava_serving.playground.figures import Figures
from llava_serving.playground.images import MAX_FILE_BYTES, MAX_SIDE, data_uri
from llava_serving.playground.options import Options
from llava_serving.playground.request_body import chat_body, read_conversation, request_body, streamed

SHAPES, DIGIT = str(IMAGES / "shapes.png"), str(IMAGES / "digit.png")


def photograph(width: int, height: int, orientation: int) -> bytes:
    """Returns a large JPEG of noise with an EXIF orientation."""
    image = Image.frombytes("RGB", (width, height), random.Random(0).randbytes(width * height * 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95, exif=exif)
    return encoded.getvalue()


def image_part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_notes_and_unanswered_questions_are_not_part_of_the_conversation() -> None:
    first, failed = Message("user", "one", (SHAPES, DIGIT)), Message("user", "two", (SHAPES,))
    answered, last = Message("assistant", "1"), Message("user", "three")
    chat = [
        *chatbot_messages(first), *chatbot_messages(answered), note("figures", "", "done"),
        *chatbot_messages(failed), note("No answer: 400", "wrong", None),
        *chatbot_messages(last), note("Waiting", "", "pending"),
    ]  # fmt: skip
    assert conversation(chat) == [first, answered, last]


def test_body_has_images_parameters_and_system_message_and_is_read_back(tmp_path: Path) -> None:
    messages = [Message("user", "What?", (SHAPES,)), Message("assistant", "A circle."), Message("user", "Where?")]
    options = Options(system="Be brief.", temperature=0.2, max_tokens=5, template="v0")
    body = json.loads(json.dumps(chat_body(messages, options)))
    assert body["temperature"] == 0.2
    assert "seed" not in body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    uri = body["messages"][1]["content"][0]["image_url"]["url"]
    assert base64.b64decode(uri.removeprefix("data:image/png;base64,")) == Path(SHAPES).read_bytes()
    read, read_options = read_conversation(body, tmp_path)
    assert read_options == options
    assert [(message.role, message.text) for message in read] == [(m.role, m.text) for m in messages]
    assert Path(read[0].images[0]).read_bytes() == Path(SHAPES).read_bytes()


def test_without_template_the_last_message_is_a_prompt() -> None:
    body = request_body([Message("user", "the sky is")], Options(max_tokens=4, template="none"))
    parameters = {"max_new_tokens": 4, "template": "none", "return_full_text": False}
    assert body == {"input_data": {"input_string": ["the sky is"], "parameters": parameters}}
    assert streamed(body)["input_data"]["parameters"]["stream"] is True


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": [{"role": "user", "content": [image_part("http://a/b.png")]}]},
        {"messages": [{"role": "user", "content": [image_part("data:image/png;base64,?")]}]},
        {"messages": [], "temperature": "hot"},
    ],
)  # fmt: skip
def test_file_that_is_no_conversation_raises(body: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"conversation|image|role|type"):
        read_conversation(body, tmp_path)


def test_large_photograph_is_scaled_down_upright(tmp_path: Path) -> None:
    content = photograph(1200, 800, orientation=6)
    assert len(content) > MAX_FILE_BYTES
    (tmp_path / "photo.jpg").write_bytes(content)
    sent = base64.b64decode(data_uri(tmp_path / "photo.jpg").removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(sent)) as image:
        assert image.size == (MAX_SIDE * 2 // 3, MAX_SIDE)


def test_large_file_that_is_no_image_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "wrong.png").write_bytes(bytes(MAX_FILE_BYTES + 1))
    assert (
        data_uri(tmp_path / "wrong.png")
        == f"data:image/png;base64,{base64.b64encode(bytes(MAX_FILE_BYTES + 1)).decode()}"
    )


@pytest.mark.parametrize("authorization", ["key", "entra", None])
def test_code_is_valid_and_quotes_the_conversation(authorization: str | None) -> None:
    """The text has everything that a shell would expand."""
    body = {"messages": [{"role": "user", "content": 'it\'s $HOME `id` \\n "ü" END'}]}
    target = Target("http://127.0.0.1:9/score", "blue", authorization)
    command = curl_command(target, body).replace("curl -s", "echo", 1).replace("-d @- ", "; cat ")
    printed = subprocess.run(
        ["sh", "-c", f"az() {{ echo token; }}; {command}"], capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout.partition("\n")[2]) == body
    assert ("Authorization" in printed.stdout) == (authorization is not None)
    program = python_program(target, body)
    compile(program, "program", "exec")
    checked = program.partition("token =")[0].partition("headers =")[0] + "print(json.dumps(body))"
    printed = subprocess.run([sys.executable, "-c", checked], capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == body


def test_figures_come_from_times_and_usage() -> None:
    figures = Figures()
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    texts = [
        figures.add(event, seconds)
        for event, seconds in ((chunk, 0.25), (chunk, 0.65), (end, 0.7), ({"choices": [], "usage": usage}, 0.7))
    ]
    assert texts == ["a", "a", "", ""]
    assert figures.summary() == "first token 250 ms · 10 tokens/s · prompt 10 tokens (8 cached) · answer 5 tokens"
    assert "longest length" in figures.details()


def test_figures_of_the_service_s_own_form() -> None:
    figures = Figures()
    assert figures.add({"row": 0, "0": " a"}, 1.5) == " a"
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    assert figures.add({"row": 0, "index": 0, "finish_reason": "stop", "usage": usage}, 1.6) == ""
    assert figures.summary() == "first token 1.5 s · prompt 1 token (0 cached) · answer 1 token"
