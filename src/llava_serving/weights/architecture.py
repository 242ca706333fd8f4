"""The sizes of a LLaVA v0, read from the delta's and the vision tower's config.json."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor

from ..errors import StartupError
from ..inputs.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START
from ..model_files import read_json
from .tensor_names import PROJECTOR_IN, PROJECTOR_OUT

if TYPE_CHECKING:
    from transformers import LlavaConfig

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
VISION_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
)  # fmt: skip
LLAMA_CONTEXT = 2048  # LLaMA's context length, where a config of that time does not say

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Architecture:
    """`text` and `vision` are the arguments of transformers' LlamaConfig and CLIPVisionConfig."""

    text: dict[str, Any]
    vision: dict[str, Any]
    image_token: int
    vision_layer: int

    @property
    def hidden_size(self) -> int:
        size: int = self.text["hidden_size"]
        return size

    @property
    def image_size(self) -> int:
        size: int = self.vision["image_size"]
        return size

    @property
    def patches(self) -> int:
        return (self.image_size // int(self.vision["patch_size"])) ** 2

    def config(self) -> "LlavaConfig":
        # Here, because it takes seconds to import, and a merge need not wait for it.
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        return LlavaConfig(
            text_config=LlamaConfig(**self.text),
            vision_config=CLIPVisionConfig(**self.vision),
            image_token_index=self.image_token,
            image_seq_length=self.patches,
            projector_hidden_act="linear",
            vision_feature_layer=self.vision_layer,
            vision_feature_select_strategy="default",  # drops CLS
            tie_word_embeddings=False,
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of transformers' LlavaForConditionalGeneration."""
        hidden, width = self.hidden_size, int(self.vision["hidden_size"])
        return {
            **dict(_language_shapes(self.text)),
            **dict(_vision_shapes(self.vision, self.patches)),
            f"{PROJECTOR_IN}.weight": (hidden, width), f"{PROJECTOR_IN}.bias": (hidden,),
            f"{PROJECTOR_OUT}.weight": (hidden, hidden), f"{PROJECTOR_OUT}.bias": (hidden,),
        }  # fmt: skip


def _language_shapes(text: dict[str, Any]) -> Shapes:
    rows, hidden, wide = text["vocab_size"], text["hidden_size"], text["intermediate_size"]
    narrow = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    top = "model.language_model"
    yield f"{top}.embed_tokens.weight", (rows, hidden)
    for layer in range(text["num_hidden_layers"]):
        for name, shape in (
            ("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (narrow, hidden)),
            ("self_attn.v_proj", (narrow, hidden)), ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (wide, hidden)), ("mlp.up_proj", (wide, hidden)), ("mlp.down_proj", (hidden, wide)),
            ("input_layernorm", (hidden,)), ("post_attention_layernorm", (hidden,)),
        ):  # fmt: skip
            yield f"{top}.layers.{layer}.{name}.weight", shape
    yield f"{top}.norm.weight", (hidden,)
    yield "lm_head.weight", (rows, hidden)


def _vision_shapes(vision: dict[str, Any], patches: int) -> Shapes:
    width, wide, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    top = "model.vision_tower"
    yield f"{top}.embeddings.class_embedding", (width,)
    yield f"{top}.embeddings.patch_embedding.weight", (width, vision.get("num_channels", 3), patch, patch)
    yield f"{top}.embeddings.position_embedding.weight", (patches + 1, width)
    norms = [f"{top}.pre_layrnorm", f"{top}.post_layernorm"]
    for layer in range(vision["num_hidden_layers"]):
        prefix = f"{top}.encoder.layers.{layer}"
        norms += [f"{prefix}.layer_norm1", f"{prefix}.layer_norm2"]
        linears = [(f"self_attn.{name}", width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for name, rows, columns in (*linears, ("mlp.fc1", wide, width), ("mlp.fc2", width, wide)):
            yield f"{prefix}.{name}.weight", (rows, columns)
            yield f"{prefix}.{name}.bias", (rows,)
    for norm in norms:
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)


def architecture(delta: Path, vision: Path, text: SentencePieceProcessor, added: dict[str, int]) -> Architecture:
    """Raises StartupError where a config does not say what it must.

    The delta's own bos, eos and pad ids (0, 1, 0) are wrong; SentencePiece's are taken. The padding token it lists has
    no embedding row, so padding is `<unk>`, as LLaMA has none.
    """
    llama = read_json(delta / "config.json")
    _check_sizes(llama, SIZES, delta / "config.json", "a LLaMA's")
    if IMAGE_PATCH not in added:
        raise StartupError(
            f"{delta} lists no {IMAGE_PATCH} among its added tokens (added_tokens.json): it is not a LLaVA v0 delta"
        )
    beyond = [token for token in (IMAGE_PATCH, IMAGE_START, IMAGE_END) if added.get(token, 0) >= llama["vocab_size"]]
    if beyond:
        raise StartupError(
            f"the added token {beyond[0]} of {delta}, {added[beyond[0]]}, has no row in the embedding, which has "
            f"{llama['vocab_size']}: its tokenizer files are another checkpoint's"
        )
    return Architecture(
        _text(llama, text), _vision(vision), added[IMAGE_PATCH], llama.get("mm_vision_select_layer", -2)
    )


def _text(llama: dict[str, Any], text: SentencePieceProcessor) -> dict[str, Any]:
    return {key: llama[key] for key in SIZES} | {
        "num_key_value_heads": llama.get("num_key_value_heads", llama["num_attention_heads"]),
        "hidden_act": llama.get("hidden_act", "silu"),
        "rms_norm_eps": llama.get("rms_norm_eps", 1e-6),
        "max_position_embeddings": llama.get(
            "max_sequence_length", llama.get("max_position_embeddings", LLAMA_CONTEXT)
        ),
        "bos_token_id": text.bos_id(),
        "eos_token_id": text.eos_id(),
        "pad_token_id": text.unk_id(),
        "tie_word_embeddings": False,
    }


def _vision(vision: Path) -> dict[str, Any]:
    config = read_json(vision / "config.json")
    config = config.get("vision_config", config)  # the hub's CLIP folder nests it beside the text model's
    _check_sizes(config, VISION_SIZES, vision / "config.json", "a CLIP's")
    return {k: v for k, v in config.items() if k not in ("model_type", "torch_dtype", "dtype")}


def _check_sizes(config: dict[str, Any], sizes: tuple[str, ...], path: Path, whose: str) -> None:
    missing = [key for key in sizes if not isinstance(config.get(key), int)]
    if missing:
        raise StartupError(f"{path} lacks {', '.join(missing)}: it is not {whose} config")
