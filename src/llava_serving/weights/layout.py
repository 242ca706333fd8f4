"""Where the tensors and numbers of a v0 checkpoint go in transformers' LlavaForConditionalGeneration.

v0 has one linear projector and transformers two with an activation between: the activation is "linear" and the second
layer the identity, which leaves every feature as it is to the bit.
"""

from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from ..errors import StartupError
from ..files import read_json
from ..tokenizer import IMAGE_PATCH

VISION_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
PROJECTOR_OUT = "model.multi_modal_projector.linear_2"
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LLAMA_CONTEXT = 2048  # LLaMA's context length, where a config of that time does not say


def language_name(name: str) -> str:
    """A name of the delta in the model's state dict."""
    if name.startswith("model.mm_projector."):
        return name.replace("model.mm_projector.", "model.multi_modal_projector.linear_1.")
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def vision_name(name: str) -> str | None:
    """A name of CLIP's checkpoint in the model's state dict; None for what the vision tower does not use.

    The hub's CLIP folder holds the text model too; transformers saves a tower alone without the prefix.
    """
    name = name.removeprefix("vision_model.")
    if not name.startswith(VISION_PARTS) or name.endswith("position_ids"):
        return None
    return f"model.vision_tower.{name}"


def identity_projection(hidden_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """The second projector layer as the identity."""
    return {
        f"{PROJECTOR_OUT}.weight": torch.eye(hidden_size, dtype=dtype, device=device),
        f"{PROJECTOR_OUT}.bias": torch.zeros(hidden_size, dtype=dtype, device=device),
    }


def llava_config(delta: Path, vision: Path, text: SentencePieceProcessor, added: dict[str, int]) -> LlavaConfig:
    """The model's config from the delta's and CLIP's.

    The delta's own bos, eos and pad ids (0, 1, 0) are wrong; SentencePiece's are taken. The padding token it lists has
    no embedding row, so padding is `<unk>`, as LLaMA has none.
    """
    llama = read_json(delta / "config.json")
    missing = [key for key in SIZES if key not in llama]
    if missing:
        raise StartupError(f"{delta / 'config.json'} lacks {', '.join(missing)}: it is not a LLaMA's config")
    if IMAGE_PATCH not in added:
        raise StartupError(
            f"{delta} lists no {IMAGE_PATCH} among its added tokens (added_tokens.json): it is not a LLaVA v0 delta"
        )
    vision_config = _vision_config(vision)
    patches = (vision_config.image_size // vision_config.patch_size) ** 2
    return LlavaConfig(
        text_config=_text_config(llama, text),
        vision_config=vision_config,
        image_token_index=added[IMAGE_PATCH],
        image_seq_length=patches,
        projector_hidden_act="linear",
        vision_feature_layer=llama.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",  # drops CLS
        tie_word_embeddings=False,
    )


def _text_config(llama: dict[str, Any], text: SentencePieceProcessor) -> LlamaConfig:
    return LlamaConfig(
        **{key: llama[key] for key in SIZES},
        num_key_value_heads=llama.get("num_key_value_heads", llama["num_attention_heads"]),
        hidden_act=llama.get("hidden_act", "silu"),
        rms_norm_eps=llama.get("rms_norm_eps", 1e-6),
        max_position_embeddings=llama.get("max_sequence_length", llama.get("max_position_embeddings", LLAMA_CONTEXT)),
        bos_token_id=text.bos_id(),
        eos_token_id=text.eos_id(),
        pad_token_id=text.unk_id(),
        tie_word_embeddings=False,
    )


def _vision_config(vision: Path) -> CLIPVisionConfig:
    config = read_json(vision / "config.json")
    config = config.get("vision_config", config)  # the hub's CLIP folder nests it beside the text model's
    return CLIPVisionConfig(**{k: v for k, v in config.items() if k not in ("model_type", "torch_dtype", "dtype")})
