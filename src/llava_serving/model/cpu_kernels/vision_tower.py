"""The layers of transformers' CLIP, with the compiled kernels for what is not a linear layer."""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from .prefill_kernels import CPrefillAttention
from .row_wise import quick_gelu

ATTENTION = "llava_serving_c"  # the kernels' name among transformers' attention functions


def use_kernels(tower: PreTrainedModel, attention: CPrefillAttention) -> None:
    """Lets the layers of a vision tower use the kernels for attention, and for the activation if it is QuickGELU."""

    def attend(
        _module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: None, scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """Maps (pictures, heads, tokens, head size) to (pictures, tokens, heads, head size), as transformers asks."""
        pictures, _heads, tokens, _size = query.shape
        query, key, value = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
        return attention.attend_to_all(query, key, value, tokens, scaling).view(
            pictures, tokens, *query.shape[1:]
        ), None

    AttentionInterface.register(ATTENTION, attend)
    tower.set_attn_implementation(ATTENTION)
    if tower.config.hidden_act == "quick_gelu":
        for layer in tower.get_submodule("encoder.layers").children():
            layer.set_submodule("mlp.activation_fn", QuickGelu())


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), CLIP's activation, by the kernel of row_wise.c."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return quick_gelu(states)
