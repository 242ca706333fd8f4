"""The language model's loss on a text, computed while the weights are read from disk.

No matrix is held whole: each chunk of rows is multiplied as it is read, and then dropped. A 13B model needs no more
memory than a small one, and the time of one read. accelerate's disk offload would hold a layer at a time (1.3 GB in
float32 for 13B), and it cannot read a delta.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..model.decoder import torch_forward
from ..model.rotary import apply_rotary
from .chunk_reader import next_tensor_chunks, read_chunks
from .delta import MergedTensor
from .rope_settings import rope_parameters
from .sentence_loss import next_token_loss
from .storage.lazy_tensor import row_bytes
from .tensor_names import EMBEDDING, FINAL_NORM, LM_HEAD

# The keys of a config that the cosines and sines depend on, beside those of RoPE.
SIZES = ("hidden_size", "num_attention_heads", "head_dim", "max_position_embeddings")
# A layer's tensors in the order in which `torch_forward` uses them.
LAYER_TENSORS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def forward_tensor_names(config: Mapping[str, Any]) -> list[str]:
    """Returns LLaMA's tensors, except the embedding, in the order in which a forward pass uses them."""
    layers = range(config["num_hidden_layers"])
    return [*(f"model.layers.{layer}.{name}" for layer in layers for name in _layer_names(config)), FINAL_NORM, LM_HEAD]


def _layer_names(config: Mapping[str, Any]) -> Iterator[str]:
    biased = [part for part, key in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")) if config.get(key)]
    for name in LAYER_TENSORS:
        yield f"{name}.weight"
        if name.split(".")[0] in biased:
            yield f"{name}.bias"


@torch.inference_mode()
def layerwise_loss(tensors: Mapping[str, MergedTensor], config: Mapping[str, Any], token_ids: list[int]) -> float:
    """Returns the mean next-token cross-entropy of `token_ids`, in nats.

    `tensors` have LLaMA's names; `config` is a LLaMA's config.json (arXiv:2302.13971).
    Raises StartupError if a file cannot be read.
    """
    names = forward_tensor_names(config)
    weights = _WeightStream({name: tensors[name] for name in names})
    biased = {name.removesuffix(".bias").rpartition(".")[2] for name in names if name.endswith(".bias")}
    layer = _StreamedLayer(weights, config.get("rms_norm_eps", 1e-6), biased)
    attend = _CausalAttention(config, len(token_ids))
    layers = [layer] * config["num_hidden_layers"]
    hidden = torch_forward(layers, _embed(tensors[EMBEDDING], token_ids), attend.head_size, attend)
    logits = weights.linear(layer.norm(hidden))
    return next_token_loss(logits, torch.tensor(token_ids))


class _WeightStream:
    """Reads the weights in order. Each call uses the next ones."""

    def __init__(self, tensors: Mapping[str, MergedTensor]) -> None:
        self._chunks = read_chunks(tensors.items())

    def linear(self, states: torch.Tensor, has_bias: bool = False) -> torch.Tensor:
        """Returns `states` (tokens, in features) times the next matrix, transposed, plus its bias."""
        chunks = next_tensor_chunks(self._chunks)
        product = torch.cat([states @ chunk.rows(torch.float32).T for chunk in chunks], dim=-1)
        return product + self.vector() if has_bias else product

    def vector(self) -> torch.Tensor:
        return torch.cat([chunk.rows(torch.float32) for chunk in next_tensor_chunks(self._chunks)])


class _StreamedLayer:
    """Every decoder layer in turn, as `torch_forward` calls it: each method uses the next weights of the stream."""

    def __init__(self, weights: _WeightStream, epsilon: float, biased: set[str]) -> None:
        """`biased` has the names of the projections with a bias."""
        self._weights = weights
        self._epsilon = epsilon
        self._biased = biased

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, hidden.shape[-1:], self._weights.vector(), self._epsilon)

    def input_layernorm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden)

    def qkv_proj(self, states: torch.Tensor) -> torch.Tensor:
        return self._linear(states, "q_proj", "k_proj", "v_proj")

    def o_proj(self, attended: torch.Tensor) -> torch.Tensor:
        return self._linear(attended, "o_proj")

    def post_attention_layernorm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden)

    def gate_up_proj(self, states: torch.Tensor) -> torch.Tensor:
        return self._linear(states, "gate_proj", "up_proj")

    def down_proj(self, product: torch.Tensor) -> torch.Tensor:
        return self._linear(product, "down_proj")

    def _linear(self, states: torch.Tensor, *names: str) -> torch.Tensor:
        return torch.cat([self._weights.linear(states, name in self._biased) for name in names], dim=-1)


class _CausalAttention:
    """Attention of one sequence whose tokens all run at once, without a cache."""

    def __init__(self, config: Mapping[str, Any], num_tokens: int) -> None:
        self._num_heads: int = config["num_attention_heads"]
        sizes = {key: config[key] for key in SIZES if config.get(key)}
        llama = LlamaConfig(**sizes, rope_parameters=rope_parameters(config, "config.json"))
        self.head_size: int = llama.head_dim
        cos, sin = LlamaRotaryEmbedding(llama)(torch.empty(0), torch.arange(num_tokens)[None])
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
