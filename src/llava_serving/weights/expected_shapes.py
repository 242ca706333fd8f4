"""The tensors of transformers' LlavaForConditionalGeneration with their shapes, from its configs.

`merge` reports mistakes before it imports transformers. The import and the model on the meta device, which has the same
shapes, would take 3.4 s of CPU time at each start.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import StartupError
from .architecture import count_patches
from .delta import MergedTensor
from .tensor_names import PROJECTOR_IN, PROJECTOR_OUT

Shape = tuple[int, ...]


def expected_shapes(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns the shape of each parameter by its name. Takes the arguments of LlamaConfig and CLIPVisionConfig."""
    hidden, width = text["hidden_size"], vision["hidden_size"]
    return {
        **dict(_language_shapes(text)),
        **dict(_vision_shapes(vision)),
        f"{PROJECTOR_IN}.weight": (hidden, width), f"{PROJECTOR_IN}.bias": (hidden,),
        f"{PROJECTOR_OUT}.weight": (hidden, hidden), f"{PROJECTOR_OUT}.bias": (hidden,),
    }  # fmt: skip


def _language_shapes(text: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    rows, hidden, intermediate = text["vocab_size"], text["hidden_size"], text["intermediate_size"]
    query, key_value = (text["head_dim"] * text[heads] for heads in ("num_attention_heads", "num_key_value_heads"))
    has_attention_bias, has_mlp_bias = text["attention_bias"], text["mlp_bias"]
    prefix = "model.language_model"
    yield f"{prefix}.embed_tokens.weight", (rows, hidden)
    for layer in range(text["num_hidden_layers"]):
        for name, shape, has_bias in (
            ("self_attn.q_proj", (query, hidden), has_attention_bias),
            ("self_attn.k_proj", (key_value, hidden), has_attention_bias),
            ("self_attn.v_proj", (key_value, hidden), has_attention_bias),
            ("self_attn.o_proj", (hidden, query), has_attention_bias),
            ("mlp.gate_proj", (intermediate, hidden), has_mlp_bias),
            ("mlp.up_proj", (intermediate, hidden), has_mlp_bias),
            ("mlp.down_proj", (hidden, intermediate), has_mlp_bias),
            ("input_layernorm", (hidden,), False), ("post_attention_layernorm", (hidden,), False),
        ):  # fmt: skip
            yield f"{prefix}.layers.{layer}.{name}.weight", shape
            if has_bias:
                yield f"{prefix}.layers.{layer}.{name}.bias", shape[:1]
    yield f"{prefix}.norm.weight", (hidden,)
    yield "lm_head.weight", (rows, hidden)


def _vision_shapes(vision: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    width, intermediate, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    num_patches = count_patches(vision["image_size"], patch)
    prefix = "model.vision_tower"
    yield f"{prefix}.embeddings.class_embedding", (width,)
    yield f"{prefix}.embeddings.patch_embedding.weight", (width, vision.get("num_channels", 3), patch, patch)
    yield f"{prefix}.embeddings.position_embedding.weight", (num_patches + 1, width)
    norms = [f"{prefix}.pre_layrnorm", f"{prefix}.post_layernorm"]
    for layer in range(vision["num_hidden_layers"]):
        layer_prefix = f"{prefix}.encoder.layers.{layer}"
        norms += [f"{layer_prefix}.layer_norm1", f"{layer_prefix}.layer_norm2"]
        linears = [(f"self_attn.{name}", width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for name, rows, columns in (*linears, ("mlp.fc1", intermediate, width), ("mlp.fc2", width, intermediate)):
            yield f"{layer_prefix}.{name}.weight", (rows, columns)
            yield f"{layer_prefix}.{name}.bias", (rows,)
    for norm in norms:
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)


def check_tensors(tensors: Mapping[str, MergedTensor], shapes: Mapping[str, Shape], source: str) -> None:
    """Raises StartupError unless `tensors` of `source` have these names and shapes, in floating point."""
    for name, tensor in tensors.items():
        if tensor.shape != shapes.get(name):
            expected = f"it has {shapes[name]}" if name in shapes else "the model has none"
            raise StartupError(f"the tensor {name} has shape {tensor.shape} in {source}; by config.json {expected}")
        if not tensor.stored.dtype.is_floating_point:
            raise StartupError(f"the tensor {name} is stored as {tensor.stored.dtype} in {source}: it is quantized")
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise StartupError(f"{len(missing)} of the model's tensors are in no file of {source}, {missing[0]} among them")
