"""The language model's loss on a text, computed while its weights come from the disk.

No matrix is ever held whole: each chunk of its rows is multiplied as it is read, and then dropped. A 13B model needs no
more memory than a small one, and the time of one read. accelerate's disk offload would hold a layer at a time (1.3 GB
in float32 for 13B), and it reads no delta.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..model.attention import rotated
from ..model.decoder import torch_forward
from .chunk_reader import RowChunk, read_chunks
from .delta import MergedTensor
from .sentence_loss import next_token_loss
from .storage.stored_tensor import num_bytes

# A layer's tensors in the order in which `torch_forward` uses them.
LAYER_TENSORS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def tensor_names(num_layers: int) -> list[str]:
    """LLaMA's tensors, except the embedding, in the order in which a forward pass uses them."""
    layers = [f"model.layers.{layer}.{part}.weight" for layer in range(num_layers) for part in LAYER_TENSORS]
    return [*layers, NORM, HEAD]


@torch.inference_mode()
def layerwise_loss(
    merged_tensors: Mapping[str, MergedTensor], config: Mapping[str, Any], token_ids: list[int]
) -> float:
    """Mean next-token cross-entropy of `token_ids`, in nats.

    `merged_tensors` are named as LLaMA's; `config` is what a LLaMA's config.json says (arXiv:2302.13971).
    Raises StartupError where a file cannot be read.
    """
    num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
    head_size = config["hidden_size"] // num_heads
    weights = _WeightStream({name: merged_tensors[name] for name in tensor_names(num_layers)})
    layer = _StreamedLayer(weights, config.get("rms_norm_eps", 1e-6))
    attend = _CausalAttention(num_heads, head_size, len(token_ids))
    hidden = torch_forward([layer] * num_layers, _embedded(merged_tensors[EMBEDDING], token_ids), head_size, attend)
    logits = weights.linear(layer.attention_norm(hidden))
    return next_token_loss(logits, torch.tensor(token_ids))


class _WeightStream:
    """Reads the weights one after the other; each call takes the next."""

    def __init__(self, merged_tensors: Mapping[str, MergedTensor]) -> None:
        self._sums = iter(merged_tensors.values())
        self._chunks = read_chunks(merged_tensors.items())

    def linear(self, states: torch.Tensor, count: int = 1) -> torch.Tensor:
        """`states` (tokens, columns) times the next `count` matrices, transposed, side by side."""
        chunks = (chunk for _ in range(count) for chunk in self._next())
        return torch.cat([states @ chunk.rows(torch.float32).T for chunk in chunks], dim=-1)

    def vector(self) -> torch.Tensor:
        return torch.cat([chunk.rows(torch.float32) for chunk in self._next()])

    def _next(self) -> Iterator[RowChunk]:
        num_rows = next(self._sums).first.shape[0]
        stop = 0
        while stop < num_rows:
            chunk = next(self._chunks)
            stop = chunk.stop
            yield chunk


class _StreamedLayer:
    """Every decoder layer in turn, as `torch_forward` calls it: each call reads the weights that come next."""

    def __init__(self, weights: _WeightStream, epsilon: float) -> None:
        self._weights = weights
        self._epsilon = epsilon

    def attention_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, hidden.shape[-1:], self._weights.vector(), self._epsilon)

    def qkv(self, states: torch.Tensor) -> torch.Tensor:
        return self._weights.linear(states, 3)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        return self._weights.linear(attended)

    def mlp_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.attention_norm(hidden)

    def gate_up(self, states: torch.Tensor) -> torch.Tensor:
        return self._weights.linear(states, 2)

    def down(self, product: torch.Tensor) -> torch.Tensor:
        return self._weights.linear(product)


class _CausalAttention:
    """Attention of one sequence that is computed at once, without a cache."""

    def __init__(self, num_heads: int, head_size: int, num_tokens: int) -> None:
        self._num_heads = num_heads
        config = LlamaConfig(hidden_size=num_heads * head_size, num_attention_heads=num_heads)
        cos, sin = LlamaRotaryEmbedding(config)(torch.empty(0), torch.arange(num_tokens)[None])
        self._cos, self._sin = cos[0, :, None], sin[0, :, None]  # (tokens, 1, head size)

    def __call__(self, layer: int, heads: torch.Tensor) -> torch.Tensor:
        num_kv_heads = (heads.shape[1] - self._num_heads) // 2
        query, key, value = torch.split_with_sizes(heads, [self._num_heads, num_kv_heads, num_kv_heads], dim=1)
        query, key = rotated(query, self._cos, self._sin), rotated(key, self._cos, self._sin)
        query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
        attended = scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=num_kv_heads != self._num_heads
        )
        return attended[0].transpose(0, 1)


def _embedded(embedding: MergedTensor, token_ids: list[int]) -> torch.Tensor:
    rows = []
    for i in token_ids:
        terms = [term for term in (embedding.first, embedding.second) if term is not None and i < term.shape[0]]
        read = [term.read(i, i + 1, torch.empty(num_bytes(term) // term.shape[0], dtype=torch.uint8)) for term in terms]
        rows.append(embedding.rows(read[0], read[1] if len(read) > 1 else None, torch.float32))
    return torch.cat(rows)
