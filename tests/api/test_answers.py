"""Azure's real server process on the embedded demo model, over real HTTP."""

import base64
import io
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reference import HELLO, SYSTEM, Reference
from server import Server, as_base64

PICTURES = Path(__file__).resolve().parents[2] / "demo" / "pictures"
QUESTION = "What is in the image?"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(PICTURES / "shapes.png").convert("RGB")


@pytest.fixture(scope="module")
def encoded(picture: Image.Image) -> str:
    return as_base64(picture)


@pytest.fixture(scope="module")
def expected(demo_reference: Reference, picture: Image.Image) -> str:
    """The answer of stock transformers about the picture."""
    return demo_reference.answer(QUESTION, picture)


def ask(server: Server, question: str, image: str | None, **parameters: Any) -> str:
    body = {"input_data": {"input_string": [question], "images": [image], "parameters": parameters}}
    answer = server.score(body)
    assert answer.status == 200, answer.body
    return str(answer.json[0]["0"])


def test_the_card_s_sample_answers_in_the_card_s_shape(demo_server: Server) -> None:
    answer = demo_server.score(
        {
            "input_data": {
                "input_string": ["the meaning of life is"],
                "parameters": {"temperature": 0.5, "top_p": 0.5, "max_new_tokens": 10, "do_sample": True},
            }
        }
    )
    assert answer.status == 200
    ((key, text),) = answer.json[0].items()
    assert key == "0"
    assert text.startswith("the meaning of life is ")
    assert "<im_patch>" not in text
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("question", [QUESTION, "How many shapes are in the image?", "Describe the image."])
def test_answers_about_a_picture_equal_stock_transformers(
    demo_server: Server, demo_reference: Reference, picture: Image.Image, encoded: str, question: str
) -> None:
    assert ask(demo_server, question, encoded) == demo_reference.answer(question, picture)


def test_the_picture_decides(demo_server: Server, encoded: str, expected: str) -> None:
    gray = as_base64(Image.new("RGB", (64, 64), "gray"))
    assert ask(demo_server, QUESTION, gray) != ask(demo_server, QUESTION, encoded) == expected


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "L", {}), ("PNG", "1", {}),
        ("JPEG", "RGB", {"quality": 90}), ("JPEG", "CMYK", {}), ("JPEG", "L", {}),
        ("WEBP", "RGB", {"lossless": True}), ("GIF", "P", {}), ("BMP", "RGB", {}),
    ],
)  # fmt: skip
def test_every_format_is_read_as_pillow_reads_it(
    demo_server: Server,
    demo_reference: Reference,
    picture: Image.Image,
    format: str,
    mode: str,
    options: dict[str, Any],
) -> None:
    data = as_base64(picture.convert(mode), format, **options)
    seen = Image.open(io.BytesIO(base64.b64decode(data)))
    assert ask(demo_server, QUESTION, data) == demo_reference.answer(QUESTION, seen)


def test_line_breaks_and_data_uris_are_accepted(demo_server: Server, encoded: str, expected: str) -> None:
    wrapped = base64.encodebytes(base64.b64decode(encoded)).decode()
    assert ask(demo_server, QUESTION, wrapped) == expected
    assert ask(demo_server, QUESTION, f"data:image/png;base64,{encoded}") == expected


def test_several_rows_and_sequences(demo_server: Server, encoded: str, expected: str) -> None:
    answer = demo_server.score(
        {
            "input_data": {
                "input_string": ["The sky is", QUESTION],
                "images": [None, encoded],
                "parameters": {"n": 2, "temperature": 0, "max_new_tokens": 24},
            }
        }
    )
    first, second = answer.json
    assert first["0"] == first["1"]
    assert first["0"].startswith("The sky is")
    assert second == {"0": expected, "1": expected}


def test_usage_travels_in_headers(demo_server: Server, demo_reference: Reference, encoded: str) -> None:
    body = {"input_data": {"input_string": [QUESTION], "images": [encoded], "parameters": {"max_new_tokens": 1}}}
    headers = demo_server.score(body).headers
    assert headers["x-llava-prompt-tokens"] == str(len(demo_reference.question_ids(QUESTION)))
    assert (headers["x-llava-completion-tokens"], headers["x-llava-finish-reason"]) == ("1", "length")
    assert (
        0
        <= float(headers["x-llava-queue-ms"])
        <= float(headers["x-llava-ttft-ms"])
        <= float(headers["x-llava-total-ms"])
    )


def test_a_plain_list(demo_server: Server) -> None:
    answer = demo_server.score({"input_data": ["The sky is", "1 2 3"], "params": {"max_new_tokens": 3}})
    assert [text.startswith(prompt) for text, prompt in zip(answer.json, ["The sky is", "1 2 3"], strict=True)] == [
        True
    ] * 2


def test_a_table(demo_server: Server, encoded: str, expected: str) -> None:
    dialogue = f"{SYSTEM}{HELLO}###Human: {QUESTION}\n<image>###Assistant:"
    body = {
        "columns": ["image", "prompt", "direct_question"],
        "index": [0, 1],
        "data": [[encoded, None, QUESTION], [encoded, dialogue, None]],
    }
    answer = demo_server.score({"input_data": body, "params": {}})
    assert answer.json == [{"response": expected}, {"response": expected}]


def test_a_chat_of_several_turns_equals_stock_transformers(
    demo_server: Server, demo_reference: Reference, picture: Image.Image, encoded: str, expected: str
) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
                                     {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": expected},
        {"role": "user", "content": "How many objects are there?"},
    ]  # fmt: skip
    encode = demo_reference.text.encode
    ids = [
        1, *encode(f"{SYSTEM}{HELLO}###Human: {QUESTION}"), *demo_reference.image_ids(),
        *encode(f"###Assistant: {expected}###Human: How many objects are there?###Assistant:"),
    ]  # fmt: skip
    tokens = demo_reference.greedy(ids, demo_reference.pixels(picture), 16)
    wanted = demo_reference.text.decode(tokens).split("###")[0].strip()
    chat = demo_server.score({"input_data": {"input_string": turns, "parameters": {"max_new_tokens": 16}}})
    assert chat.json == {"output": wanted}
    completion = demo_server.score({"messages": turns, "model": "mine", "max_tokens": 16, "logprobs": True}).json
    (choice,) = completion["choices"]
    assert (completion["object"], completion["model"]) == ("chat.completion", "mine")
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": wanted}, "stop")
    usage = completion["usage"]
    assert usage["prompt_tokens"] == len(ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    told = choice["logprobs"]["content"]
    assert len(told) == usage["completion_tokens"]
    assert bytes(b for token in told for b in token["bytes"]).decode().startswith(f" {wanted}")


def test_the_turns_of_a_chat_about_a_picture_share_it(demo_server: Server, demo_reference: Reference) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{as_base64(Image.new('RGB', (9, 9)))}"}}
    ]
    turns: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": "What is this?"}]}]
    before_the_answer = 0
    for question in ("Is it red?", "How many objects are there?", "Is it?"):
        answer = demo_server.score({"input_data": {"input_string": turns, "parameters": {"max_new_tokens": 8}}})
        assert int(answer.headers["x-llava-cached-tokens"]) >= before_the_answer - 16
        before_the_answer = int(answer.headers["x-llava-prompt-tokens"])
        turns += [
            {"role": "assistant", "content": answer.json["output"]},
            {"role": "user", "content": question},
        ]
    assert before_the_answer > len(demo_reference.image_ids())


PNG_50000_SQUARED = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\xc3\x50\x00\x00\xc3\x50\x08\x02\x00\x00\x00"
    + zlib.crc32(b"IHDR\x00\x00\xc3\x50\x00\x00\xc3\x50\x08\x02\x00\x00\x00").to_bytes(4, "big")
    + b"\x00\x00\x00\x00IEND\xaeB`\x82"
)


def one(image: str | None = None, text: str = "a", **parameters: Any) -> dict[str, Any]:
    return {"input_data": {"input_string": [text], "images": [image], "parameters": parameters}}


BAD = {
    "malformed JSON": (b'{"input_data":', 400, None),
    "wrong shape": ({"input_data": {"input_string": 3}}, 400, "input_data.input_string"),
    "unknown parameter": (one(max_new_token=3), 400, "input_data.parameters.max_new_token"),
    "parameter out of range": (one(temperature=-1), 400, "input_data.parameters.temperature"),
    "not base64": (one("%%%"), 400, "input_data.images[0]"),
    "not an image": (one(base64.b64encode(b"hello").decode()), 400, "input_data.images[0]"),
    "a URL": (one("https://example.com/a.png"), 400, "input_data.images[0]"),
    "a local path": (one("file:///etc/passwd"), 400, "input_data.images[0]"),
    "image without its place": (one(None, "<image>"), 400, "input_data.input_string[0]"),
    "too many images": (
        {"input_data": {"input_string": ["a"], "images": [["AAAA"] * 17]}},
        400,
        "input_data.images[0][16]",
    ),
    "too many sequences": (one(n=65), 400, "input_data.parameters.n"),
    "too many rows": ({"input_data": ["a"] * 65}, 400, "input_data"),
    "more pixels than accepted": (one(base64.b64encode(PNG_50000_SQUARED).decode()), 413, "input_data.images[0]"),
    "more bytes than accepted": (one("A" * 30_000_000), 413, "input_data.images[0]"),
    "an empty image": (
        {"input_data": {"columns": ["image", "text"], "data": [["", "a"]]}},
        400,
        "input_data.data[0][0]",
    ),
    "beyond the context": (one(max_tokens=1_000_000), 422, "input_data.parameters.max_tokens"),
    "a prompt beyond the context": (one(None, "word " * 5000), 422, "input_data.input_string[0]"),
    "a prompt of megabytes": (one(None, "word " * 5_000_000), 422, "input_data.input_string[0]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_and_the_next_is_unharmed(
    demo_server: Server, encoded: str, expected: str, name: str
) -> None:
    body, status, param = BAD[name]
    answer = demo_server.score(body)
    assert answer.status == status, answer.body
    error = answer.json["error"]
    assert set(error) == {"code", "message", "param"}
    assert error["param"] == param
    assert "Traceback" not in error["message"]
    assert ask(demo_server, QUESTION, encoded) == expected


def test_the_numbers_of_a_context_that_is_exceeded(demo_server: Server) -> None:
    message = demo_server.score(one(None, "word " * 3, max_new_tokens=5000)).json["error"]["message"]
    assert "5000" in message
    assert "512" in message


def test_a_body_over_the_limit_is_refused_unread(demo_server: Server) -> None:
    answer = demo_server.request(
        "POST", "/score", None, {"Content-Type": "application/json", "Content-Length": "70000000"}
    )
    assert answer.status == 413


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
def test_another_media_type_is_refused(demo_server: Server, content_type: str) -> None:
    answer = demo_server.request("POST", "/score", b"{}", {"Content-Type": content_type})
    assert (answer.status, answer.json["error"]["code"]) == (415, "unsupported_media_type")


def test_a_compressed_body_is_refused(demo_server: Server) -> None:
    assert demo_server.score(b"{}", Content_Encoding="gzip").status == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_refused(demo_server: Server, method: str) -> None:
    answer = demo_server.request(method, "/score")
    assert answer.status == 405
    if method == "GET":  # the others never reach the service
        assert answer.headers["allow"] == "POST"
        assert answer.json["error"]["code"] == "method_not_allowed"


def test_a_preflight_is_answered(demo_server: Server) -> None:
    assert demo_server.request("OPTIONS", "/score").status == 200


def test_the_probe_answers_while_requests_wait(demo_server: Server) -> None:
    long = {"input_data": {"input_string": ["a"] * 3, "parameters": {"max_new_tokens": 300, "ignore_eos": True}}}
    statuses: list[int] = []
    callers = [threading.Thread(target=lambda: statuses.append(demo_server.score(long).status)) for _ in range(20)]
    for caller in callers:
        caller.start()
    time.sleep(0.2)
    assert demo_server.request("GET", "/").status == 200
    assert not statuses  # all were still waiting when the probe was answered
    for caller in callers:
        caller.join()
    assert statuses == [200] * 20
