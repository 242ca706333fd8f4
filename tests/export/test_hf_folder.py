"""A merged folder in the hands of stock transformers: no code of the service reads it here."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reference import Reference
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_serving.export import direct_file
from llava_serving.export.hf_folder import chat_template
from llava_serving.inputs.prompt import ChatMessage, ImageSource, chat_prompt
from llava_serving.inputs.templates import V0, V1, Template
from llava_serving.tools import cli
from llava_serving.weights.architecture import Architecture
from llava_serving.weights.loader import LoadedModel
from llava_serving.weights.model_dir import DEMO

PICTURES = sorted((DEMO / "pictures").glob("*.png"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, merged by the command."""
    output = tmp_path_factory.mktemp("export") / "llava"
    parts = [word for part in ("base", "delta", "vision") for word in (f"--{part}", str(DEMO / part))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["llava-serving", "merge", *parts, "--output", str(output)])
        assert cli.main() == 0
    return output


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def text(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def asked(question: str, picture: Image.Image) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": question}, {"type": "image", "image": picture}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_stock_transformers_reads_thinks_and_answers_alike(
    folder: Path, processor: Any, demo_reference: Reference, path: Path
) -> None:
    question, picture = "What is in the image?", Image.open(path).convert("RGB")
    inputs = processor.apply_chat_template(
        asked(question, picture), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = demo_reference.question_ids(question)
    assert inputs["input_ids"][0].tolist() == ids
    pixels = demo_reference.pixels(picture)
    assert torch.equal(inputs["pixel_values"], pixels)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = demo_reference.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
        assert torch.equal(model(**inputs).logits, expected)
        out = model.generate(**inputs, do_sample=False, max_new_tokens=32)
    answer = processor.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert answer.split("###")[0].strip() == demo_reference.answer(question, picture)


PIECES = st.lists(st.sampled_from([*" \n\tabc#:.AZ09é漢😀▁", "the ", "  ", "###", "Human"]), max_size=30).map("".join)
SPECIAL = ("<s>", "</s>", "<unk>", "<im_")


@given(text=st.one_of(st.text(max_size=30), PIECES).filter(lambda text: not any(token in text for token in SPECIAL)))
def test_the_fast_tokenizer_is_sentencepiece(processor: Any, text: str) -> None:
    model = SentencePieceProcessor(model_file=str(DEMO / "delta" / "tokenizer.model"))
    ids = processor.tokenizer(text)["input_ids"]
    assert ids == [1, *model.encode(text)]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == model.decode(ids[1:])


SAID = st.text("ab \n", max_size=5)
TURNS = st.lists(st.tuples(st.lists(SAID, min_size=1, max_size=2), st.integers(0, 2), SAID), min_size=1, max_size=3)


@given(system=st.none() | SAID, turns=TURNS, template=st.sampled_from([V0, V1]))
def test_the_chat_template_is_the_service_s(processor: Any, system: str | None, turns: Any, template: Template) -> None:
    """`turns`: of the user the texts and the number of images, and the answer."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    ours = [] if system is None else [ChatMessage("system", system)]
    for texts, images, answer in turns:
        parts = [{"type": "text", "text": said} for said in texts]
        messages.append({"role": "user", "content": [*parts, *[{"type": "image"}] * images]})
        messages.append({"role": "assistant", "content": answer})
        ours.append(ChatMessage("user", "\n".join(texts), (ImageSource("", ""),) * images))
        ours.append(ChatMessage("assistant", answer))
    rendered = processor.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=False, chat_template=chat_template(template, marked=True)
    )
    expected = chat_prompt(ours[:-1], template, "").text
    assert rendered == "<s>" + expected.replace("<image>", "<im_start><im_patch><im_end>")


def test_the_expected_shapes_are_those_of_transformers(loaded: LoadedModel) -> None:
    config = loaded.model.config
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    shapes = Architecture(text, vision, config.image_token_index, -2).shapes()
    assert shapes == {name: tuple(parameter.shape) for name, parameter in loaded.model.named_parameters()}


@given(pieces=st.lists(st.binary(max_size=20_000), max_size=6))
def test_a_direct_file_holds_what_was_written(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("direct") / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_file, "BUFFER_BYTES", 2 * direct_file.ALIGNMENT)
        file = direct_file.DirectFile(path)
        for piece in pieces:
            file.write(piece)
        file.close()
    assert path.read_bytes() == b"".join(pieces)
