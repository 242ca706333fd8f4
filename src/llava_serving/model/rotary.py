"""Rotary position embedding (RoFormer, Su et al. 2021, arXiv:2104.09864), with the halves paired as in transformers."""

import torch
from transformers import LlamaModel


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Returns `states` (..., head size) rotated by angles whose cosines and sines broadcast to the same shape."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def rotary_tables(model: LlamaModel, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the cosines and sines of every position, each (context, head size), as transformers computes them."""
    positions = torch.arange(model.config.max_position_embeddings, device=model.device)
    example = torch.empty(0, dtype=model.dtype, device=model.device)
    cos, sin = model.rotary_emb(example, positions[None])
    return cos[0].to(device).contiguous(), sin[0].to(device).contiguous()
