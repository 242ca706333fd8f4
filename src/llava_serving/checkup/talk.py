"""The language model's loss on a text, computed as its weights come from the disk.

No matrix is ever held whole: each piece of its rows is multiplied as it is read, and forgotten. 13B need no more memory
than a small model, and the time of reading them once.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention, silu

from ..weights.merge import Sum
from ..weights.reading import Piece, pieces
from ..weights.tensors import num_bytes

IN_LAYER = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def names(num_layers: int) -> list[str]:
    """LLaMA's tensors, without the embedding, in the order in which they are used."""
    layers = [f"model.layers.{layer}.{part}.weight" for layer in range(num_layers) for part in IN_LAYER]
    return [*layers, NORM, HEAD]


@torch.inference_mode()
def loss(sums: Mapping[str, Sum], config: Mapping[str, Any], ids: list[int]) -> float:
    """Mean next-token cross-entropy of `ids`, in nats. `config` as in a LLaMA's config.json (arXiv:2302.13971)."""
    weights = _Stream({name: sums[name] for name in names(config["num_hidden_layers"])})
    heads, eps = config["num_attention_heads"], config.get("rms_norm_eps", 1e-6)
    head_dim = config["hidden_size"] // heads
    hidden = _embedded(sums[EMBEDDING], ids)
    cos, sin = _rotations(len(ids), head_dim)

    def norm(states: torch.Tensor) -> torch.Tensor:
        return rms_norm(states, states.shape[-1:], weights.vector(), eps)

    def by_head(states: torch.Tensor) -> torch.Tensor:
        return states.view(len(ids), -1, head_dim).transpose(0, 1)  # (heads, tokens, head size)

    def rotated(states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-second, first), dim=-1) * sin

    for _ in range(config["num_hidden_layers"]):
        states = norm(hidden)
        query, key = rotated(by_head(weights.linear(states))), rotated(by_head(weights.linear(states)))
        value = by_head(weights.linear(states))
        attended = scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, enable_gqa=len(key) != heads
        )[0]
        hidden = hidden + weights.linear(attended.transpose(0, 1).flatten(1))
        states = norm(hidden)
        gate = silu(weights.linear(states))
        hidden = hidden + weights.linear(gate * weights.linear(states))
    logits = weights.linear(norm(hidden))
    return float(cross_entropy(logits[:-1], torch.tensor(ids[1:])))


class _Stream:
    """The weights one after the other; each call takes the next."""

    def __init__(self, sums: Mapping[str, Sum]) -> None:
        self._sums = iter(sums.values())
        self._pieces = pieces(sums.items())

    def linear(self, states: torch.Tensor) -> torch.Tensor:
        """(tokens, columns) times the next matrix, transposed."""
        return torch.cat([states @ piece.rows(torch.float32).T for piece in self._next()], dim=-1)

    def vector(self) -> torch.Tensor:
        return torch.cat([piece.rows(torch.float32) for piece in self._next()])

    def _next(self) -> Iterator[Piece]:
        rows = next(self._sums).first.shape[0]
        stop = 0
        while stop < rows:
            piece = next(self._pieces)
            stop = piece.stop
            yield piece


def _embedded(embedding: Sum, ids: list[int]) -> torch.Tensor:
    rows = []
    for i in ids:
        terms = [term for term in (embedding.first, embedding.second) if term is not None and i < term.shape[0]]
        read = [term.read(i, i + 1, torch.empty(num_bytes(term) // term.shape[0], dtype=torch.uint8)) for term in terms]
        rows.append(embedding.rows(read[0], read[1] if len(read) > 1 else None, torch.float32))
    return torch.cat(rows)


def _rotations(length: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (tokens, head size) of rotary position embedding (arXiv:2104.09864), halves paired."""
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()
