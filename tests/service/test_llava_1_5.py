"""LLaVA 1.5 in transformers' layout: ids, pixels and logits equal stock transformers', in every layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_llava import write_llava_1_5
from PIL import Image
from scoring import error_of, running_scorer, score, score_body
from server import as_base64
from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava_serving.errors import StartupError
from llava_serving.inputs.prompt import ChatMessage, ImageSource, TextInput, chat_prompt, question_prompt
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import MergedFolder

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava_1_5(tmp_path_factory.mktemp("llava15") / "llava", new_files=True)


@pytest.fixture(scope="module")
def loaded15(folder: Path) -> LoadedModel:
    return load_model(MergedFolder(folder), "cpu", "float32")


def stock_processor(folder: Path) -> LlavaProcessor:
    """Returns stock transformers' processor of the folder, with the image processor that needs no torchvision."""
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    path = folder / "chat_template.jinja"
    legacy = folder / "chat_template.json"
    processor.chat_template = path.read_text() if path.exists() else json.loads(legacy.read_text())["chat_template"]
    return processor


def stock_inputs(folder: Path, conversation: list[dict[str, Any]], *images: Image.Image) -> Any:
    processor = stock_processor(folder)
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    return processor(text=text, images=list(images) or None, return_tensors="pt")


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def turns(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, part(question)]}]


@pytest.mark.parametrize("new_files", [True, False])
@pytest.mark.parametrize("has_vision_model_prefix", [True, False])
@pytest.mark.parametrize("metaspace", [True, False])
def test_ids_pixels_and_logits_equal_those_of_stock_transformers(
    tmp_path: Path, new_files: bool, has_vision_model_prefix: bool, metaspace: bool
) -> None:
    folder = write_llava_1_5(tmp_path / "llava", new_files, has_vision_model_prefix, metaspace)
    loaded = load_model(MergedFolder(folder), "cpu", "float32")
    inputs = stock_inputs(folder, turns("What is it?"), PICTURE)
    prompt = question_prompt(TextInput("What is it?", (ImageSource("", "image"),), ""), loaded.template)
    ids = list(loaded.tokenizer.encode(prompt.segments).token_ids)
    assert ids == inputs["input_ids"][0].tolist()
    assert ids.count(loaded.tokenizer.image.patch) == 576
    assert torch.equal(torch.from_numpy(loaded.preprocessor(PICTURE)), inputs["pixel_values"][0])
    stock = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with running_scorer(loaded) as scorer:
        response = score_body(
            scorer,
            {
                "messages": [{"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + as_base64(PICTURE)}},
                    part("What is it?"),
                ]}],
                "max_tokens": 5, "temperature": 0, "logprobs": True, "ignore_eos": True,
            },
        )  # fmt: skip
    assert response.status == 200, response.body
    body = json.loads(response.body)
    assert body["usage"]["prompt_tokens"] == len(ids)
    answer = [entry["logprob"] for entry in body["choices"][0]["logprobs"]["content"]]
    assert len(answer) == 5
    text_size, expected = loaded.tokenizer.text_vocab_size, []
    with torch.inference_mode():
        for _ in answer:
            logits = stock(input_ids=torch.tensor([ids]), pixel_values=inputs["pixel_values"]).logits[0, -1]
            token = int(logits[:text_size].argmax())
            expected.append(float(logits.log_softmax(-1)[token]))
            ids.append(token)
    assert answer == pytest.approx(expected, abs=1e-4)


def test_a_chat_of_several_turns_has_the_ids_of_stock_transformers(folder: Path, loaded15: LoadedModel) -> None:
    conversation = [
        {"role": "system", "content": [part("Be brief.")]},
        {"role": "user", "content": [part("What is it?"), {"type": "image"}]},
        {"role": "assistant", "content": [part("A cat.")]},
        {"role": "user", "content": [part("And its color?")]},
    ]
    messages = [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "What is it?", (ImageSource("", ""),)),
        ChatMessage("assistant", "A cat."),
        ChatMessage("user", "And its color?"),
    ]
    prompt = chat_prompt(messages, loaded15.template, "messages")
    expected = stock_inputs(folder, conversation, PICTURE)["input_ids"][0].tolist()
    assert list(loaded15.tokenizer.encode(prompt.segments).token_ids) == expected


def test_special_tokens_in_a_text_stay_text(loaded15: LoadedModel) -> None:
    text = "<image> </s> <s> a"
    prompt = chat_prompt([ChatMessage("user", text)], loaded15.template, "messages")
    assert prompt.segments == (f"USER: {text} ASSISTANT:",)


def test_a_question_places_its_image_where_it_says(loaded15: LoadedModel) -> None:
    source = ImageSource("", "image")
    prompt = question_prompt(TextInput("Is <image> red?", (source,), ""), loaded15.template)
    assert prompt.segments == ("USER: Is ", source, " red? ASSISTANT:")


def test_the_model_s_template_is_asked_for_by_the_name_chat(loaded15: LoadedModel) -> None:
    with running_scorer(loaded15) as scorer:
        assert score(scorer, "a", max_new_tokens=1, template="chat").status == 200
        refused = error_of(score(scorer, "a", template="v0"))
    assert "this model's template is chat" in refused["message"]


def test_a_folder_without_a_chat_template_has_llava_1_5_s(tmp_path: Path) -> None:
    folder = write_llava_1_5(tmp_path / "llava", new_files=False, has_template=False)
    loaded = load_model(MergedFolder(folder), "cpu", "float32")
    source = ImageSource("", "")
    messages = [
        ChatMessage("user", "What?", (source,)), ChatMessage("assistant", "A cat."), ChatMessage("user", "Sure?")
    ]  # fmt: skip
    system = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions."
    )
    assert chat_prompt(messages, loaded.template, "").text == (
        f"{system} USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0]['content'][1]['text'] }}", "writes 0 times <image>"),
        ("{% for %}", "cannot be rendered"),
        ("{{ raise_exception('no') }}", "cannot be rendered: no"),
    ],
)
def test_a_chat_template_that_places_no_image_is_refused(
    folder: Path, tmp_path: Path, source: str, expected: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "llava")
    (copy / "chat_template.jinja").write_text(source)
    with pytest.raises(StartupError, match=rf"chat_template\.jinja {expected}"):
        load_model(MergedFolder(copy), "cpu", "float32")
