"""Writes a LLaVA of about one billion parameters with random weights: python benchmarks/random_checkpoint.py DIR

CLIP ViT-L/14 at 224 pixels (304 M), a linear projector, a LLaMA of 888 M (hidden 2048, 16 layers, 32,003 rows) and the
demo model's tokenizer, in bfloat16 and Hugging Face LLaVA layout. Its answers are noise (serve it with
LLAVA_SELF_CHECK=false), but they cost as much as those of a trained model of this size.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

DELTA = Path(__file__).resolve().parents[1] / "demo" / "delta"
DEMO_IMAGE_TOKEN = 1000


def main(directory: Path) -> None:
    write_weights(directory, billion_config(DEMO_IMAGE_TOKEN))
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(DELTA / name, directory / name)


def billion_config(image_token: int) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=32003, hidden_size=2048, num_hidden_layers=16, num_attention_heads=16, intermediate_size=5632,
        max_position_embeddings=2048, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    return llava_config(text, vision, image_token)


def llava_config(text: LlamaConfig, vision: CLIPVisionConfig, image_token: int) -> LlavaConfig:
    """Returns the config of a LLaVA whose projector is linear and takes the patches of the last layer but one."""
    return LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=image_token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2, projector_hidden_act="linear",
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip


def write_weights(directory: Path, config: LlavaConfig) -> None:
    """Writes config.json, and random weights in bfloat16."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlavaForConditionalGeneration(config).save_pretrained(directory)
    finally:
        torch.set_default_dtype(default)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
