"""Reads the parts without the service's code: a plain merge, and transformers' model in float32."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

Variant = Literal["merged", "base alone", "delta alone"]

PROJECTOR = "model.mm_projector"


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a folder's `.bin` files, without those that follow from the config."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.bin")):
        tensors |= torch.load(file, weights_only=True)
    return {name: value for name, value in tensors.items() if not name.endswith(("inv_freq", "position_ids"))}


def language_tensors(demo: Path, variant: Variant) -> dict[str, Tensor]:
    """Returns the tensors of the language model and the projector: merged, or of one part alone.

    "base alone" has the delta's projector and the delta's rows of added tokens, without which it could not read images.
    """
    base, delta = read_tensors(demo / "base"), read_tensors(demo / "delta")
    tensors = {}
    for name, value in delta.items():
        value = value.clone()
        if name in base and variant == "merged":
            value[: len(base[name])] += base[name]  # in float16, like the authors; added rows have no base
        elif name in base and variant == "base alone":
            value[: len(base[name])] = base[name]
        tensors[name] = value
    return tensors


def load_model(demo: Path, variant: Variant) -> LlavaForConditionalGeneration:
    """Returns transformers' model with the weights of the variant."""
    tensors = language_tensors(demo, variant)
    hidden = tensors[f"{PROJECTOR}.bias"].shape[0]
    # Transformers' projector has two layers. The second layer is the identity here.
    state = {
        "model.multi_modal_projector.linear_2.weight": torch.eye(hidden),
        "model.multi_modal_projector.linear_2.bias": torch.zeros(hidden),
    }
    for name, value in tensors.items():
        if name.startswith(PROJECTOR):
            name = name.replace(PROJECTOR, "model.multi_modal_projector.linear_1")
        elif name.startswith("model."):
            name = name.replace("model.", "model.language_model.", 1)
        state[name] = value.float()
    for name, value in read_tensors(demo / "vision").items():
        state[name.replace("vision_model.", "model.vision_tower.", 1)] = value.float()
    model = LlavaForConditionalGeneration(_config(demo))
    model.load_state_dict(state)
    return model.eval()


def pixels(demo: Path, images: Sequence[Image.Image]) -> Tensor:
    """Returns (n, 3, size, size) from transformers' preprocessor with the settings of the vision folder."""
    processor = CLIPImageProcessorPil(**json.loads((demo / "vision" / "preprocessor_config.json").read_text("utf-8")))
    values: Tensor = processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    return values


def _config(demo: Path) -> LlavaConfig:
    delta, vision = (json.loads((demo / part / "config.json").read_text("utf-8")) for part in ("delta", "vision"))
    added = json.loads((demo / "delta" / "added_tokens.json").read_text("utf-8"))
    text = LlamaConfig(
        vocab_size=delta["vocab_size"], hidden_size=delta["hidden_size"], rms_norm_eps=delta["rms_norm_eps"],
        intermediate_size=delta["intermediate_size"], num_hidden_layers=delta["num_hidden_layers"],
        num_attention_heads=delta["num_attention_heads"], max_position_embeddings=delta["max_sequence_length"],
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    tower = CLIPVisionConfig(
        hidden_size=vision["hidden_size"], intermediate_size=vision["intermediate_size"],
        num_hidden_layers=vision["num_hidden_layers"], num_attention_heads=vision["num_attention_heads"],
        image_size=vision["image_size"], patch_size=vision["patch_size"], projection_dim=vision["projection_dim"],
    )  # fmt: skip
    return LlavaConfig(
        text_config=text, vision_config=tower, image_token_index=added["<im_patch>"],
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2, projector_hidden_act="linear",
        vision_feature_layer=delta["mm_vision_select_layer"], vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )  # fmt: skip
