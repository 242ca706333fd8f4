"""A delta in the layout of LLaVA-13b-delta-v0-science_qa: no <im_start>, no <im_end>, and the template "simple"."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import save_shards
from PIL import Image
from reference import tensors
from server import Server, as_base64

from llava_serving.export.merge_job import prepare_merge, run_merge
from llava_serving.inputs.templates import SIMPLE
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import DEMO, MergedFolder, PartsFolder

# The authors' prompt of a question with a picture (LLaVA@ff9b89f llava/conversation.py "simple",
# llava/eval/model_vqa_science.py: the picture follows its question), up to the assistant's answer.
PROMPT = (
    "You are LLaVA, a large language model trained by UW Madison WAIV Lab, based on LLaMA architecture."
    "You are designed to assist human with a variety of tasks using natural language."
    "Follow the instructions carefully."
    "###Human: Hi!###Assistant: Hi there!  How can I help you today?\n"
    "###Human: What is it?\n<image>###Assistant:"
)


def without_image_markers(parts: Path, output: Path, padding_first: bool) -> Path:
    """Writes the parts with a delta whose added rows are only those of <im_patch>, and of [PAD] if it comes first."""
    shutil.copytree(parts, output)
    delta, stored = output / "delta", tensors(output / "delta")
    text_rows = json.loads((output / "base" / "config.json").read_text())["vocab_size"]
    patch = text_rows + padding_first
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[name] = stored[name][: patch + 1]
    for file in delta.glob("pytorch_model*"):
        file.unlink()
    save_shards(stored, delta, 3)
    config = json.loads((delta / "config.json").read_text())
    changed = config | {"vocab_size": patch + 1, "mm_use_im_start_end": False}
    (delta / "config.json").write_text(json.dumps(changed))
    added = {"<im_patch>": patch, "[PAD]": text_rows if padding_first else patch + 1}
    (delta / "added_tokens.json").write_text(json.dumps(added))
    return output


@pytest.mark.parametrize("padding_first", [False, True])
def test_the_template_of_a_delta_without_image_markers_is_simple_and_merged_with_it(
    parts_dir: Path, tmp_path: Path, padding_first: bool
) -> None:
    parts = without_image_markers(parts_dir, tmp_path / "parts", padding_first)
    loaded = load_model(PartsFolder(parts), "cpu", "float32")
    image = loaded.tokenizer.image
    assert loaded.template is SIMPLE
    assert image.ids == [image.patch] * image.count
    assert load_model(PartsFolder(parts), "cpu", "float32", "v0").template.name == "v0"
    merged = tmp_path / "llava"
    run_merge(prepare_merge(parts / "base", parts / "delta", parts / "vision", merged, torch.float16), lambda _: None)
    loaded = load_model(MergedFolder(merged), "cpu", "float32")
    assert loaded.template is SIMPLE
    assert loaded.tokenizer.image == image


@pytest.mark.slow
def test_the_service_serves_the_delta_without_a_refusal(tmp_path: Path) -> None:
    """The demo's parts in this layout, so that the self-check at start has a model that can talk."""
    parts = without_image_markers(DEMO, tmp_path / "parts", padding_first=False)
    with Server(tmp_path / "log", parts) as server:
        server.wait_until_healthy()
        data = {"input_string": ["What is it?"], "images": [as_base64(Image.new("RGB", (32, 32), "red"))]}
        parameters = {"return_full_text": True, "max_new_tokens": 4, "template": "simple"}
        response = server.score({"input_data": data, "parameters": parameters})
        assert response.status == 200, response.body
        assert response.json[0]["0"].startswith(PROMPT)
