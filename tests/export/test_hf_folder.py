"""A merged folder in stock transformers, without the service's own code."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from merge_cases import merge_command
from PIL import Image
from reference import Reference
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_serving.export import direct_file
from llava_serving.export.chat_template import chat_template
from llava_serving.inputs.prompt import ChatMessage, ImageSource, chat_prompt
from llava_serving.inputs.templates import SIMPLE, V0, V1, Template
from llava_serving.tools import cli
from llava_serving.weights.expected_shapes import expected_shapes
from llava_serving.weights.loader import LoadedModel
from llava_serving.weights.model_folder import DEMO

IMAGE_FILES = sorted((DEMO / "pictures").glob("*.png"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the demo model, merged by the command."""
    output = tmp_path_factory.mktemp("export") / "llava"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["llava-serving", *merge_command(DEMO, output)])
        status = cli.main()
    assert status == 0
    return output


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def user_message(question: str, image: Image.Image) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": question}, {"type": "image", "image": image}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("path", IMAGE_FILES, ids=lambda path: path.stem)
def test_stock_transformers_has_the_same_ids_pixels_logits_and_answer(
    folder: Path, processor: Any, demo_reference: Reference, path: Path
) -> None:
    question, image = "What is in the image?", Image.open(path).convert("RGB")
    inputs = processor.apply_chat_template(
        user_message(question, image), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = demo_reference.question_ids(question)
    assert inputs["input_ids"][0].tolist() == ids
    pixels = demo_reference.pixels(image)
    assert torch.equal(inputs["pixel_values"], pixels)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = demo_reference.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
        assert torch.equal(model(**inputs).logits, expected)
        out = model.generate(**inputs, do_sample=False, max_new_tokens=32)
    answer = processor.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert answer.split("###")[0].strip() == demo_reference.answer(question, image)


MIXED_TEXT = st.lists(st.sampled_from([*" \n\tabc#:.AZ09é漢😀▁", "the ", "  ", "###", "Human"]), max_size=30).map(
    "".join
)
SPECIAL = ("<s>", "</s>", "<unk>", "<im_")


@given(
    text=st.one_of(st.text(max_size=30), MIXED_TEXT).filter(lambda text: not any(token in text for token in SPECIAL))
)
def test_the_fast_tokenizer_gives_the_ids_of_sentencepiece(processor: Any, text: str) -> None:
    model = SentencePieceProcessor(model_file=str(DEMO / "delta" / "tokenizer.model"))
    ids = processor.tokenizer(text)["input_ids"]
    assert ids == [1, *model.encode(text)]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == model.decode(ids[1:])


MESSAGE = st.text("ab \n", max_size=5)
TURNS = st.lists(
    st.tuples(st.lists(MESSAGE, min_size=1, max_size=2), st.integers(0, 2), MESSAGE), min_size=1, max_size=3
)


@given(system=st.none() | MESSAGE, turns=TURNS, template=st.sampled_from([V0, V1, SIMPLE]))
def test_the_chat_template_gives_the_prompts_of_the_service(
    processor: Any, system: str | None, turns: Any, template: Template
) -> None:
    """A turn is the texts of the user's message, its number of images, and the answer."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    service_messages = [] if system is None else [ChatMessage("system", system)]
    for texts, images, answer in turns:
        parts = [{"type": "text", "text": text} for text in texts]
        messages.append({"role": "user", "content": [*parts, *[{"type": "image"}] * images]})
        messages.append({"role": "assistant", "content": answer})
        service_messages.append(ChatMessage("user", "\n".join(texts), (ImageSource("", ""),) * images))
        service_messages.append(ChatMessage("assistant", answer))
    rendered = processor.apply_chat_template(
        messages[:-1],
        add_generation_prompt=True,
        tokenize=False,
        chat_template=chat_template(template, has_image_markers=True),
    )
    expected = chat_prompt(service_messages[:-1], template, "").text
    assert rendered == "<s>" + expected.replace("<image>", "<im_start><im_patch><im_end>")


def test_the_expected_shapes_are_those_of_transformers(loaded: LoadedModel) -> None:
    config = loaded.model.config
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    shapes = {name: tuple(parameter.shape) for name, parameter in loaded.model.named_parameters()}
    assert expected_shapes(text, vision) == shapes


@given(chunks=st.lists(st.binary(max_size=20_000), max_size=6))
def test_a_direct_file_holds_what_was_written(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("direct") / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_file, "BUFFER_BYTES", 2 * direct_file.ALIGNMENT)
        with direct_file.DirectFile(path) as file:
            for chunk in chunks:
                file.write(chunk)
    assert path.read_bytes() == b"".join(chunks)
