"""The GPU memory of LLaVA-13b's weights and of a step, and the KV cache that fits beside them. No GPU is needed.

The package's own code runs on the meta device. A simulation of torch's allocator receives what it allocates.
"""

from functools import partial

import pytest
import torch
from simulated_allocator import MIB, SimulatedAllocator
from small_llava import small_llava
from torch.nn.functional import linear, silu
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_serving.engine.config import EngineConfig
from llava_serving.errors import StartupError
from llava_serving.model.decoder import Decoder, torch_forward
from llava_serving.model.kv_cache import BLOCK_SIZE, bytes_per_block
from llava_serving.model.kv_cache_sizing import available_bytes, blocks_that_fit
from llava_serving.service.device_defaults import device_defaults
from llava_serving.weights.device_memory import model_bytes
from llava_serving.weights.placement import allocate, empty_model

GB, META = 10**9, torch.device("meta")
A10_24, A100_40, H100_80 = 23028 * MIB, 40536 * MIB, 81559 * MIB  # total memory as nvidia-smi reports it
OTHERS = 600 * MIB  # CUDA's context and libraries
PROJECTION_ROWS = (5120, 5120, 5120, 13824, 13824)  # of q, k, v, gate and up
# Of LLaVA-13b and CLIP: all in float16, or the layers of LLaMA in int8.
WEIGHT_BYTES = {"none": 26_700_000_000, "int8": 14_000_000_000}


def empty_llava_13b() -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=32003, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
        num_key_value_heads=40, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, projector_hidden_act="linear", vision_feature_layer=-2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return empty_model(config)


def load(allocator: SimulatedAllocator, quantization: str = "none") -> LlavaForConditionalGeneration:
    """Allocates the model as a start does, from parts or from a merged folder."""
    model = empty_llava_13b()
    with allocator.recording():
        allocate(model, {"": META}, torch.float16, quantization)
    return model


def decoder(model: LlavaForConditionalGeneration) -> Decoder:
    return Decoder(model.model.language_model.layers, 128, torch_forward)


def profile_run(model: LlavaForConditionalGeneration, allocator: SimulatedAllocator, config: EngineConfig) -> None:
    """Runs the layers for a prefill of as many tokens as a step has, and allocates what the sampler does."""
    with allocator.recording(), torch.inference_mode():
        hidden = torch.empty(config.max_num_batched_tokens, 5120, dtype=torch.float16, device=META)
        decoder(model)(hidden, lambda layer, heads: heads[:, :40].clone())
        logits = linear(hidden[: config.max_num_seqs], model.lm_head.weight)
        [logits.double() for _ in range(6)]


def kv_cache_tokens(
    total_bytes: int, capability: tuple[int, int], quantization: str = "none", dtype: torch.dtype = torch.float16
) -> int:
    allocator = SimulatedAllocator(total_bytes, OTHERS)
    model = load(allocator, quantization)
    defaults = device_defaults(total_bytes / 2**30, capability)
    config = EngineConfig(defaults.max_num_seqs, defaults.max_num_batched_tokens)
    run = partial(profile_run, model, allocator, config)
    available = available_bytes(allocator, config.gpu_memory_utilization, run)
    image_cache = config.image_cache_size * 256 * 5120 * 2
    llama = model.config.text_config
    return BLOCK_SIZE * blocks_that_fit(available - image_cache, bytes_per_block(llama, 40, dtype), llama, config)


def test_13b_has_12_000_tokens_of_kv_cache_on_40_gb() -> None:
    assert kv_cache_tokens(A100_40, (8, 0)) >= 12_000


def test_13b_has_58_000_tokens_of_kv_cache_on_80_gb() -> None:
    """A real H100 had 58,528 (benchmarks/README.md)."""
    assert 58_000 <= kv_cache_tokens(H100_80, (9, 0)) < 61_000


def test_13b_in_int8_has_6_000_tokens_of_kv_cache_on_24_gb_and_26_000_on_40_gb() -> None:
    assert 6_000 <= kv_cache_tokens(A10_24, (8, 6), "int8") < 8_000
    assert 26_000 <= kv_cache_tokens(A100_40, (8, 0), "int8") < 29_000


def test_an_int8_cache_has_nearly_twice_the_tokens() -> None:
    """A number takes 8 bits instead of 16, and each 128 numbers have a scale of 32 bits."""
    for total_bytes, capability in ((A100_40, (8, 0)), (H100_80, (9, 0))):
        in_float16 = kv_cache_tokens(total_bytes, capability)
        in_int8 = kv_cache_tokens(total_bytes, capability, dtype=torch.int8)
        assert in_int8 == pytest.approx(in_float16 * 256 / 132, abs=BLOCK_SIZE)


def test_13b_in_int8_does_not_fit_on_16_gb() -> None:
    with pytest.raises(StartupError, match="room for 0 tokens"):
        kv_cache_tokens(15360 * MIB, (7, 5), "int8")


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_loading_reserves_the_size_of_the_weights_and_at_most_2_percent_more(quantization: str) -> None:
    allocator = SimulatedAllocator(H100_80)
    model = load(allocator, quantization)
    size = model_bytes(model, torch.float16, "none") + sum(
        buffer.nbytes for name, buffer in model.named_buffers() if "layers" in name and buffer.device == META
    )
    assert size == pytest.approx(WEIGHT_BYTES[quantization], rel=0.01)
    assert size <= allocator.peak_reserved() <= 1.02 * size


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_decoder_uses_the_fused_weights_without_a_copy(quantization: str) -> None:
    allocator = SimulatedAllocator(H100_80)
    model = load(allocator, quantization)
    reserved = allocator.reserved()
    with allocator.recording():
        layers = decoder(model)._layers
    assert allocator.peak_reserved() == reserved
    layer, qkv = model.model.language_model.layers[7], layers[7].qkv_proj.weight
    assert qkv is not None
    assert qkv.shape == (3 * 5120, 5120)
    assert layer.self_attn.k_proj.weight.untyped_storage()._cdata == qkv.untyped_storage()._cdata


def test_fusing_loaded_weights_would_reserve_most_of_the_layers_twice() -> None:
    """An earlier version of the service fused loaded weights. The simulation shows the difference."""
    allocator, layers = SimulatedAllocator(H100_80), []
    with allocator.recording():
        for _ in range(40):
            layers.append([torch.empty(rows, 5120, dtype=torch.float16, device=META) for rows in PROJECTION_ROWS])
        for index, weights in enumerate(layers):
            layers[index] = [torch.cat(weights[:3]), torch.cat(weights[3:])]
            del weights
    fused_bytes = 40 * sum(PROJECTION_ROWS) * 5120 * 2
    assert allocator.reserved() > fused_bytes + 15 * GB


def test_the_simulated_allocator_splits_blocks_merges_blocks_and_empties_its_cache() -> None:
    allocator = SimulatedAllocator(100 * MIB)
    first, second = allocator.allocate(3 * MIB), allocator.allocate(4 * MIB)
    assert allocator.reserved() == 20 * MIB
    allocator.release(first)
    allocator.release(second)
    assert [block.size for block in allocator.segments[0]] == [20 * MIB]
    allocator.allocate(50 * MIB)
    with pytest.raises(torch.OutOfMemoryError):
        allocator.allocate(60 * MIB)
    allocator.empty_cache()
    assert allocator.reserved() == 50 * MIB


@pytest.mark.parametrize("available", [0.0, -5.0, 1e6])
def test_a_kv_cache_below_one_context_is_refused(available: float) -> None:
    llama = small_llava().config.text_config
    with pytest.raises(StartupError, match="LLAVA_GPU_MEMORY_UTILIZATION"):
        blocks_that_fit(available, 1_000_000, llama, EngineConfig())


def test_a_decoder_layer_computes_swiglu_and_adds_it_to_the_residual() -> None:
    """The simulation runs the same decoder as the service. This checks one layer of it."""
    layer = small_llava().model.language_model.layers[0]
    states = torch.randn(3, 64)
    output = Decoder([layer], 32, torch_forward)(states.clone(), lambda _, heads: torch.zeros(3, 2, 32))
    normed = layer.post_attention_layernorm(states)
    expected = states + layer.mlp.down_proj(silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed))
    assert torch.allclose(output, expected, atol=1e-5)
