"""Answers of the real server process on the demo model, over HTTP, in every form except streams."""

import base64
import io
from typing import Any

import pytest
from PIL import Image
from reference import HELLO, SYSTEM, Reference
from server import Server, as_base64
from server_requests import QUESTION, prompts_body, text_of, user_message


def test_the_model_card_s_sample_request_gets_an_answer_in_the_card_s_shape(demo_server: Server) -> None:
    response = demo_server.score(
        {
            "input_data": {
                "input_string": ["the meaning of life is"],
                "parameters": {"temperature": 0.5, "top_p": 0.5, "max_new_tokens": 10, "do_sample": True},
            }
        }
    )
    assert response.status == 200
    ((key, text),) = response.json[0].items()
    assert key == "0"
    assert text.startswith("the meaning of life is ")
    assert "<im_patch>" not in text
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("question", [QUESTION, "How many shapes are in the image?", "Describe the image."])
def test_answers_about_a_picture_equal_those_of_stock_transformers(
    demo_server: Server, demo_reference: Reference, picture: Image.Image, encoded_picture: str, question: str
) -> None:
    answer = text_of(demo_server, prompts_body(question, image=encoded_picture))
    assert answer == demo_reference.answer(question, picture)


def test_another_picture_gets_another_answer(demo_server: Server, encoded_picture: str, expected_answer: str) -> None:
    gray = as_base64(Image.new("RGB", (64, 64), "gray"))
    answer = text_of(demo_server, prompts_body(QUESTION, image=encoded_picture))
    assert text_of(demo_server, prompts_body(QUESTION, image=gray)) != answer == expected_answer


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "L", {}), ("PNG", "1", {}),
        ("JPEG", "RGB", {"quality": 90}), ("JPEG", "CMYK", {}), ("JPEG", "L", {}),
        ("WEBP", "RGB", {"lossless": True}), ("GIF", "P", {}), ("BMP", "RGB", {}),
    ],
)  # fmt: skip
def test_each_image_format_gets_the_answer_to_the_pixels_that_pillow_reads(
    demo_server: Server,
    demo_reference: Reference,
    picture: Image.Image,
    format: str,
    mode: str,
    options: dict[str, Any],
) -> None:
    encoded = as_base64(picture.convert(mode), format, **options)
    decoded = Image.open(io.BytesIO(base64.b64decode(encoded)))
    answer = text_of(demo_server, prompts_body(QUESTION, image=encoded))
    assert answer == demo_reference.answer(QUESTION, decoded)


def test_base64_with_line_breaks_and_data_uris_get_the_same_answer(
    demo_server: Server, encoded_picture: str, expected_answer: str
) -> None:
    with_line_breaks = base64.encodebytes(base64.b64decode(encoded_picture)).decode()
    data_uri = f"data:image/png;base64,{encoded_picture}"
    assert text_of(demo_server, prompts_body(QUESTION, image=with_line_breaks)) == expected_answer
    assert text_of(demo_server, prompts_body(QUESTION, image=data_uri)) == expected_answer


def test_two_prompts_with_n_2_get_two_sequences_each(
    demo_server: Server, encoded_picture: str, expected_answer: str
) -> None:
    response = demo_server.score(
        {
            "input_data": {
                "input_string": ["The sky is", QUESTION],
                "images": [None, encoded_picture],
                "parameters": {"n": 2, "temperature": 0, "max_new_tokens": 24},
            }
        }
    )
    first, second = response.json
    assert first["0"] == first["1"]
    assert first["0"].startswith("The sky is")
    assert second == {"0": expected_answer, "1": expected_answer}


def test_headers_contain_token_counts_finish_reason_and_times(
    demo_server: Server, demo_reference: Reference, encoded_picture: str
) -> None:
    headers = demo_server.score(prompts_body(QUESTION, image=encoded_picture, max_new_tokens=1)).headers
    assert headers["x-llava-prompt-tokens"] == str(len(demo_reference.question_ids(QUESTION)))
    assert (headers["x-llava-completion-tokens"], headers["x-llava-finish-reason"]) == ("1", "length")
    queue_ms, ttft_ms, total_ms = (float(headers[f"x-llava-{name}-ms"]) for name in ("queue", "ttft", "total"))
    assert 0 <= queue_ms <= ttft_ms <= total_ms


def test_a_plain_list_gets_one_text_per_prompt(demo_server: Server) -> None:
    prompts = ["The sky is", "1 2 3"]
    response = demo_server.score({"input_data": prompts, "params": {"max_new_tokens": 3}})
    assert [text.startswith(prompt) for text, prompt in zip(response.json, prompts, strict=True)] == [True] * 2


def test_a_table_gets_one_response_per_row(demo_server: Server, encoded_picture: str, expected_answer: str) -> None:
    prompt = f"{SYSTEM}{HELLO}###Human: {QUESTION}\n<image>###Assistant:"
    table = {
        "columns": ["image", "prompt", "direct_question"],
        "index": [0, 1],
        "data": [[encoded_picture, None, QUESTION], [encoded_picture, prompt, None]],
    }
    response = demo_server.score({"input_data": table, "params": {}})
    assert response.json == [{"response": expected_answer}, {"response": expected_answer}]


def test_a_chat_of_several_turns_equals_stock_transformers(
    demo_server: Server,
    demo_reference: Reference,
    picture: Image.Image,
    encoded_picture: str,
    expected_answer: str,
) -> None:
    messages = [
        user_message(QUESTION, encoded_picture),
        {"role": "assistant", "content": expected_answer},
        {"role": "user", "content": "How many objects are there?"},
    ]
    encode = demo_reference.sentencepiece.encode
    ids = [
        1, *encode(f"{SYSTEM}{HELLO}###Human: {QUESTION}"), *demo_reference.image_ids(),
        *encode(f"###Assistant: {expected_answer}###Human: How many objects are there?###Assistant:"),
    ]  # fmt: skip
    generated = demo_reference.greedy(ids, demo_reference.pixels(picture), 16)
    expected = demo_reference.sentencepiece.decode(generated).split("###")[0].strip()
    chat = demo_server.score({"input_data": {"input_string": messages, "parameters": {"max_new_tokens": 16}}})
    assert chat.json == {"output": expected}
    completion = demo_server.score({"messages": messages, "model": "mine", "max_tokens": 16, "logprobs": True}).json
    (choice,) = completion["choices"]
    assert (completion["object"], completion["model"]) == ("chat.completion", "mine")
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": expected}, "stop")
    usage = completion["usage"]
    assert usage["prompt_tokens"] == len(ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    logprobs = choice["logprobs"]["content"]
    assert len(logprobs) == usage["completion_tokens"]
    assert bytes(b for token in logprobs for b in token["bytes"]).decode().startswith(f" {expected}")


def test_each_turn_of_a_chat_finds_the_previous_prompt_in_the_prefix_cache(
    demo_server: Server, demo_reference: Reference
) -> None:
    messages = [user_message("What is this?", as_base64(Image.new("RGB", (9, 9))))]
    previous_prompt_tokens = 0
    for next_question in ("Is it red?", "How many objects are there?", "Is it?"):
        response = demo_server.score({"input_data": {"input_string": messages, "parameters": {"max_new_tokens": 8}}})
        assert int(response.headers["x-llava-cached-tokens"]) >= previous_prompt_tokens - 16
        previous_prompt_tokens = int(response.headers["x-llava-prompt-tokens"])
        messages += [
            {"role": "assistant", "content": response.json["output"]},
            {"role": "user", "content": next_question},
        ]
    assert previous_prompt_tokens > len(demo_reference.image_ids())
