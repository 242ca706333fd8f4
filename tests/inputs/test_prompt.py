import pytest
from reference import HELLO, SYSTEM

from llava_serving.errors import BadRequest
from llava_serving.inputs.prompt import ChatRow, ImageSource, TextRow, Turn, chat, question, raw
from llava_serving.inputs.templates import END_OF_TEXT, V0, V1

A, B = ImageSource("a", "images[0]"), ImageSource("b", "images[1]")


def test_a_question_is_laid_out_as_the_model_was_served() -> None:
    prompt = question(TextRow("What is it?", (A,), ""), V0)
    assert prompt.segments == (f"{SYSTEM}{HELLO}###Human: What is it?\n", A, "###Assistant:")
    assert prompt.text == f"{SYSTEM}{HELLO}###Human: What is it?\n<image>###Assistant:"


def test_a_question_without_an_image() -> None:
    assert question(TextRow("Hello?", (), ""), V0).segments == (f"{SYSTEM}{HELLO}###Human: Hello?###Assistant:",)


def test_a_question_may_place_its_image() -> None:
    segments = question(TextRow("In <image>, what?", (A,), ""), V0).segments
    assert segments == (f"{SYSTEM}{HELLO}###Human: In ", A, ", what?###Assistant:")


def test_a_raw_prompt_is_itself() -> None:
    assert raw(TextRow("the meaning of life is", (), "")).segments == ("the meaning of life is",)
    assert raw(TextRow("<image> and <image>!", (A, B), "")).segments == ("", A, " and ", B, "!")


@pytest.mark.parametrize(("text", "images"), [("<image>", ()), ("no place", (A,)), ("<image><image>", (A,))])
def test_images_and_their_places_must_agree(text: str, images: tuple[ImageSource, ...]) -> None:
    with pytest.raises(BadRequest, match=r"one image for each <image>") as refused:
        raw(TextRow(text, images, "input_data.input_string[0]"))
    assert refused.value.param == "input_data.input_string[0]"


def test_a_chat_of_several_turns() -> None:
    turns = (Turn("user", "What is it?", (A,)), Turn("assistant", "A dog."), Turn("user", "And this?", (B,)))
    assert chat(ChatRow(turns, ""), V0).segments == (
        f"{SYSTEM}{HELLO}###Human: What is it?\n", A,
        "###Assistant: A dog.###Human: And this?\n", B, "###Assistant:",
    )  # fmt: skip


def test_a_system_turn_takes_the_place_of_the_template_s() -> None:
    text = chat(ChatRow((Turn("system", "Be brief."), Turn("user", "Hi")), ""), V0).text
    assert text == f"Be brief.{HELLO}###Human: Hi###Assistant:"


def test_in_a_chat_the_placeholder_is_text() -> None:
    assert chat(ChatRow((Turn("user", "What is an <image> tag?"),), ""), V0).images == ()


def test_the_v1_conversation() -> None:
    """As conv_llava_v1's get_prompt has it (LLaVA@15f31eb): two separators, " " and "</s>"."""
    turns = (Turn("user", "What is it?", (A,)), Turn("assistant", "A dog."), Turn("user", "Sure?"))
    prompt = chat(ChatRow(turns, ""), V1)
    assert prompt.text == f"{SYSTEM} USER: What is it?\n<image> ASSISTANT: A dog.</s> USER: Sure? ASSISTANT:"
    assert prompt.segments[3] is END_OF_TEXT
    assert question(TextRow("Who?", (), ""), V1).text == f"{SYSTEM} USER: Who? ASSISTANT:"
