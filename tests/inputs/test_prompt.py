"""Prompts: texts and chats in the conversation templates, and images in texts."""

import pytest
from reference import HELLO, SYSTEM

from llava_serving.errors import BadRequest
from llava_serving.inputs.prompt import (
    ChatMessage,
    ImageSource,
    TextInput,
    chat_prompt,
    question_prompt,
    raw_prompt,
)
from llava_serving.inputs.templates import EOS, V0, V1

A, B = ImageSource("a", "images[0]"), ImageSource("b", "images[1]")


def test_a_question_is_put_into_the_v0_template_with_its_image_last() -> None:
    prompt = question_prompt(TextInput("What is it?", (A,), ""), V0)
    assert prompt.segments == (f"{SYSTEM}{HELLO}###Human: What is it?\n", A, "###Assistant:")
    assert prompt.text == f"{SYSTEM}{HELLO}###Human: What is it?\n<image>###Assistant:"


def test_a_question_without_an_image_is_one_text() -> None:
    assert question_prompt(TextInput("Hello?", (), ""), V0).segments == (
        f"{SYSTEM}{HELLO}###Human: Hello?###Assistant:",
    )


def test_a_placeholder_in_a_question_places_its_image() -> None:
    segments = question_prompt(TextInput("In <image>, what?", (A,), ""), V0).segments
    assert segments == (f"{SYSTEM}{HELLO}###Human: In ", A, ", what?###Assistant:")


def test_a_raw_prompt_is_its_text_with_images_at_the_placeholders() -> None:
    assert raw_prompt(TextInput("the meaning of life is", (), "")).segments == ("the meaning of life is",)
    assert raw_prompt(TextInput("<image> and <image>!", (A, B), "")).segments == ("", A, " and ", B, "!")


@pytest.mark.parametrize(("text", "images"), [("<image>", ()), ("no placeholder", (A,)), ("<image><image>", (A,))])
def test_a_number_of_images_other_than_of_placeholders_is_refused(text: str, images: tuple[ImageSource, ...]) -> None:
    with pytest.raises(BadRequest, match=r"one image for each <image>") as refused:
        raw_prompt(TextInput(text, images, "input_data.input_string[0]"))
    assert refused.value.param == "input_data.input_string[0]"


def test_a_chat_of_several_messages_in_the_v0_template() -> None:
    messages = (
        ChatMessage("user", "What is it?", (A,)),
        ChatMessage("assistant", "A dog."),
        ChatMessage("user", "And this?", (B,)),
    )
    assert chat_prompt(messages, V0, "").segments == (
        f"{SYSTEM}{HELLO}###Human: What is it?\n", A,
        "###Assistant: A dog.###Human: And this?\n", B, "###Assistant:",
    )  # fmt: skip


def test_a_system_message_replaces_the_system_text_of_the_template() -> None:
    text = chat_prompt((ChatMessage("system", "Be brief."), ChatMessage("user", "Hi")), V0, "").text
    assert text == f"Be brief.{HELLO}###Human: Hi###Assistant:"


def test_a_placeholder_in_a_chat_is_text() -> None:
    assert chat_prompt((ChatMessage("user", "What is an <image> tag?"),), V0, "").images == ()


def test_a_chat_and_a_question_in_the_v1_template() -> None:
    """The expected text is what get_prompt of conv_llava_v1 returns (LLaVA@15f31eb): separators " " and "</s>"."""
    messages = (
        ChatMessage("user", "What is it?", (A,)),
        ChatMessage("assistant", "A dog."),
        ChatMessage("user", "Sure?"),
    )
    prompt = chat_prompt(messages, V1, "")
    assert prompt.text == f"{SYSTEM} USER: What is it?\n<image> ASSISTANT: A dog.</s> USER: Sure? ASSISTANT:"
    assert prompt.segments[3] is EOS
    assert question_prompt(TextInput("Who?", (), ""), V1).text == f"{SYSTEM} USER: Who? ASSISTANT:"
