"""The language model's loss on a text, computed while the weights are read from disk.

No matrix is held whole: each chunk of rows is multiplied as it is read, and then dropped. A 13B model needs no more
memory than a small one, and the time of one read. accelerate's disk offload would hold a layer at a time (1.3 GB in
float32 for 13B), and it cannot read a delta.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..model.decoder import torch_forward
from ..model.rotary import apply_rotary
from .chunk_reader import next_tensor_chunks, read_chunks
from .delta import MergedTensor
from .sentence_loss import next_token_loss
from .storage.lazy_tensor import row_bytes
from .tensor_names import EMBEDDING, FINAL_NORM, LM_HEAD

# A layer's tensors in the order in which `torch_forward` uses them.
LAYER_TENSORS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def forward_tensor_names(num_layers: int) -> list[str]:
    """Returns LLaMA's tensors, except the embedding, in the order in which a forward pass uses them."""
    layers = [f"model.layers.{layer}.{name}.weight" for layer in range(num_layers) for name in LAYER_TENSORS]
    return [*layers, FINAL_NORM, LM_HEAD]


@torch.inference_mode()
def layerwise_loss(tensors: Mapping[str, MergedTensor], config: Mapping[str, Any], token_ids: list[int]) -> float:
    """Returns the mean next-token cross-entropy of `token_ids`, in nats.

    `tensors` have LLaMA's names; `config` is a LLaMA's config.json (arXiv:2302.13971).
    Raises StartupError if a file cannot be read.
    """
    num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
    head_size = config["hidden_size"] // num_heads
    weights = _WeightStream({name: tensors[name] for name in forward_tensor_names(num_layers)})
    layer = _StreamedLayer(weights, config.get("rms_norm_eps", 1e-6))
    attend = _CausalAttention(num_heads, head_size, len(token_ids))
    hidden = torch_forward([layer] * num_layers, _embed(tensors[EMBEDDING], token_ids), head_size, attend)
    logits = weights.linear(layer.norm(hidden))
    return next_token_loss(logits, torch.tensor(token_ids))


class _WeightStream:
    """Reads the weights in order. Each call uses the next ones."""

    def __init__(self, tensors: Mapping[str, MergedTensor]) -> None:
        self._chunks = read_chunks(tensors.items())

    def linear(self, states: torch.Tensor, count: int = 1) -> torch.Tensor:
        """Returns `states` (tokens, in features) times the next `count` matrices, transposed, concatenated."""
        chunks = (chunk for _ in range(count) for chunk in next_tensor_chunks(self._chunks))
        return torch.cat([states @ chunk.rows(torch.float32).T for chunk in chunks], dim=-1)

    def vector(self) -> torch.Tensor:
        return torch.cat([chunk.rows(torch.float32) for chunk in next_tensor_chunks(self._chunks)])


class _StreamedLayer:
    """Every decoder layer in turn, as `torch_forward` calls it: each method uses the next weights of the stream."""

    def __init__(self, weights: _WeightStream, epsilon: float) -> None:
        self._weights = weights
        self._epsilon = epsilon

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, hidden.shape[-1:], self._weights.vector(), self._epsilon)

    def input_layernorm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden)

    def qkv_proj(self, states: torch.Tensor) -> torch.Tensor:
        return self._weights.linear(states, 3)

    def o_proj(self, attended: torch.Tensor) -> torch.Tensor:
        return self._weights.linear(attended)

    def post_attention_layernorm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden)

    def gate_up_proj(self, states: torch.Tensor) -> torch.Tensor:
        return self._weights.linear(states, 2)

    def down_proj(self, product: torch.Tensor) -> torch.Tensor:
        return self._weights.linear(product)


class _CausalAttention:
    """Attention of one sequence whose tokens all run at once, without a cache."""

    def __init__(self, num_heads: int, head_size: int, num_tokens: int) -> None:
        self._num_heads = num_heads
        config = LlamaConfig(hidden_size=num_heads * head_size, num_attention_heads=num_heads)
        cos, sin = LlamaRotaryEmbedding(config)(torch.empty(0), torch.arange(num_tokens)[None])
        self._cos, self._sin = cos[0, :, None], sin[0, :, None]  # (tokens, 1, head size)

    def __call__(self, layer: int, heads: torch.Tensor) -> torch.Tensor:
        num_kv_heads = (heads.shape[1] - self._num_heads) // 2
        query, key, value = torch.split_with_sizes(heads, [self._num_heads, num_kv_heads, num_kv_heads], dim=1)
        query, key = apply_rotary(query, self._cos, self._sin), apply_rotary(key, self._cos, self._sin)
        query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
        attended = scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=num_kv_heads != self._num_heads
        )
        return attended[0].transpose(0, 1)


def _embed(embedding: MergedTensor, token_ids: list[int]) -> torch.Tensor:
    """Returns (tokens, hidden size). Reads only the rows of these tokens."""
    rows = []
    for token_id in token_ids:
        buffers = [torch.empty(row_bytes(term), dtype=torch.uint8) for term in embedding.terms]
        rows.append(embedding.merge_rows(*embedding.read(token_id, token_id + 1, buffers), torch.float32))
    return torch.cat(rows)
