"""The sizes of a LLaVA v0, read from the delta's and the vision tower's config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor

from ..errors import StartupError
from ..model_files import read_json
from .rope_settings import rope_parameters

if TYPE_CHECKING:
    from transformers import LlavaConfig

LLAMA_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CLIP_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
)  # fmt: skip
DEFAULT_CONTEXT = 2048  # LLaMA's context length, for configs of that time that do not state it


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model. `text` and `vision` are the arguments of transformers' LlamaConfig and CLIPVisionConfig."""

    text: dict[str, Any]
    vision: dict[str, Any]
    vision_layer: int
    image_token: int

    @property
    def hidden_size(self) -> int:
        size: int = self.text["hidden_size"]
        return size

    @property
    def image_size(self) -> int:
        size: int = self.vision["image_size"]
        return size

    @property
    def num_patches(self) -> int:
        return count_patches(self.image_size, self.vision["patch_size"])

    def config(self) -> "LlavaConfig":
        # A local import, because it takes seconds and a merge need not wait for it.
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        return LlavaConfig(
            text_config=LlamaConfig(**self.text),
            vision_config=CLIPVisionConfig(**self.vision),
            image_token_index=self.image_token,
            image_seq_length=self.num_patches,
            projector_hidden_act="linear",
            vision_feature_layer=self.vision_layer,
            vision_feature_select_strategy="default",  # drops CLS
            tie_word_embeddings=False,
        )


def count_patches(image_size: int, patch_size: int) -> int:
    """Returns the number of patches of a square image, which CLIP turns into one feature each."""
    return (image_size // patch_size) ** 2


def read_architecture(
    delta: Path, vision: Path, sentencepiece: SentencePieceProcessor, image_token: int
) -> Architecture:
    """Reads both configs. Raises StartupError if one lacks a size, or has a RoPE that the engine does not compute.

    The delta's own bos, eos and pad ids (0, 1, 0) are wrong, so SentencePiece's are taken. The padding token that the
    delta lists has no embedding row, and LLaMA has none, so padding is `<unk>`.
    """
    llama = read_json(delta / "config.json")
    _check_keys(llama, LLAMA_KEYS, delta / "config.json", "a LLaMA's")
    vision_layer = llama.get("mm_vision_select_layer", -2)
    text = _llama_arguments(llama, sentencepiece, str(delta / "config.json"))
    return Architecture(text, _clip_arguments(vision), vision_layer, image_token)


def _llama_arguments(config: dict[str, Any], sentencepiece: SentencePieceProcessor, source: str) -> dict[str, Any]:
    context = config.get("max_sequence_length", config.get("max_position_embeddings", DEFAULT_CONTEXT))
    return {key: config[key] for key in LLAMA_KEYS} | {
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_parameters": rope_parameters(config, source),
        "max_position_embeddings": context,
        "bos_token_id": sentencepiece.bos_id(),
        "eos_token_id": sentencepiece.eos_id(),
        "pad_token_id": sentencepiece.unk_id(),
        "tie_word_embeddings": False,
    }


def _clip_arguments(vision: Path) -> dict[str, Any]:
    config = read_json(vision / "config.json")
    config = config.get("vision_config", config)  # The hub's CLIP config.json holds vision_config and text_config.
    _check_keys(config, CLIP_KEYS, vision / "config.json", "a CLIP's")
    return {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype", "dtype")}


def _check_keys(config: dict[str, Any], keys: tuple[str, ...], path: Path, owner: str) -> None:
    missing = [key for key in keys if not isinstance(config.get(key), int)]
    if missing:
        raise StartupError(f"{path} lacks {', '.join(missing)}: it is not {owner} config")
