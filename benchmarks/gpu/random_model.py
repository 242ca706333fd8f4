"""A LLaVA with random weights, made on the device that runs it."""

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_serving.model.fused_weights import allocate_fused, stacked_projections

from .sizes import Shape

EOS = 2


def random_llava(
    shape: Shape, device: torch.device, dtype: torch.dtype, std: float = 0.02
) -> LlavaForConditionalGeneration:
    """Returns a model that costs what its shape costs, and whose answers are meaningless.

    Matrices are normal around 0, norms are 1, and biases are 0.
    """
    with init_empty_weights(include_buffers=False):
        model = LlavaForConditionalGeneration(_config(shape))
    for layer in model.model.language_model.layers:
        for linears in stacked_projections(layer):
            allocate_fused(linears, device, dtype)
    torch.manual_seed(0)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = _random_parameter(name, parameter, device, dtype, std)
    return model.to(device).eval()


def _random_parameter(
    name: str, parameter: torch.Tensor, device: torch.device, dtype: torch.dtype, std: float
) -> nn.Parameter:
    memory = torch.empty(parameter.shape, dtype=dtype, device=device) if parameter.is_meta else parameter.data
    if memory.dim() > 1:
        memory.normal_(0, std)
    else:
        memory.fill_(0.0 if name == "bias" else 1.0)
    return nn.Parameter(memory, requires_grad=False)


def _config(shape: Shape) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=EOS, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden, intermediate_size=shape.vision_intermediate,
        num_hidden_layers=shape.vision_layers, num_attention_heads=shape.vision_heads, image_size=shape.image_size,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    return LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=shape.image_token_id,
        image_seq_length=shape.image_tokens, projector_hidden_act="linear", vision_feature_layer=-2,
        vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
