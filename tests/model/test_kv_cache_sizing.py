"""How much of a GPU the weights and a step take, and what is left for keys and values: LLaVA-13b without a GPU.

The real code runs on the meta device, and what it allocates goes to a simulation of torch's allocator.
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
from llava_serving.model.kv_cache_sizing import num_blocks, room_on_gpu
from llava_serving.service.device_defaults import DeviceDefaults, device_defaults, engine_config
from llava_serving.settings import Settings
from llava_serving.weights.card import Card, check_card, check_dtype
from llava_serving.weights.placement import allocate, empty_model

GB, META = 10**9, torch.device("meta")
A100_40, H100_80 = 40536 * MIB, 81559 * MIB  # as nvidia-smi has them
OTHERS = 600 * MIB  # CUDA's context and libraries
PROJECTIONS = (5120, 5120, 5120, 13824, 13824)  # rows of q, k, v, gate and up
WEIGHTS = 26_700_000_000  # of LLaVA-13b and CLIP in float16


def llava_13b() -> LlavaForConditionalGeneration:
    """Empty."""
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


def load(allocator: SimulatedAllocator) -> LlavaForConditionalGeneration:
    """As a start does, from parts or from a merged folder: memory first, then rows into it."""
    model = llava_13b()
    with allocator.recording():
        allocate(model, {"": META}, torch.float16, packed=False)
    return model


def decoder(model: LlavaForConditionalGeneration) -> Decoder:
    return Decoder(model.model.language_model.layers, 128, torch_forward)


def largest_step(model: LlavaForConditionalGeneration, allocator: SimulatedAllocator, config: EngineConfig) -> None:
    """The layers of a prefill of as many tokens as a step has, and the sampler's rows of numbers."""
    with allocator.recording(), torch.inference_mode():
        hidden = torch.empty(config.max_num_batched_tokens, 5120, dtype=torch.float16, device=META)
        decoder(model)(hidden, lambda layer, heads: heads[:, :40].clone())
        logits = linear(hidden[: config.max_num_seqs], model.lm_head.weight)
        [logits.double() for _ in range(6)]


def tokens_of_cache(total: int, capability: tuple[int, int]) -> int:
    allocator = SimulatedAllocator(total, OTHERS)
    model = load(allocator)
    defaults = device_defaults(total / 2**30, capability)
    config = EngineConfig(defaults.max_num_seqs, defaults.max_num_batched_tokens)
    room = room_on_gpu(allocator, config.gpu_memory_utilization, partial(largest_step, model, allocator, config))
    images = config.image_cache_size * 256 * 5120 * 2
    llama = model.config.text_config
    return BLOCK_SIZE * num_blocks(room - images, bytes_per_block(llama, 40, torch.float16), llama, config)


def test_13b_has_12_000_tokens_of_cache_on_40_gb() -> None:
    assert tokens_of_cache(A100_40, (8, 0)) >= 12_000


def test_13b_has_58_000_tokens_of_cache_on_80_gb() -> None:
    """An H100 itself gave 58,528 (benchmarks/README.md)."""
    assert 58_000 <= tokens_of_cache(H100_80, (9, 0)) < 61_000


def test_loading_reserves_the_model_and_no_more() -> None:
    allocator = SimulatedAllocator(H100_80)
    model = load(allocator)
    size = sum(parameter.numel() * 2 for parameter in model.parameters())
    assert size == pytest.approx(WEIGHTS, rel=0.01)
    assert size <= allocator.peak_reserved() <= 1.01 * size


def test_a_decoder_takes_the_weights_where_they_lie() -> None:
    allocator = SimulatedAllocator(H100_80)
    model = load(allocator)
    before = allocator.reserved()
    with allocator.recording():
        made = decoder(model)
    assert allocator.peak_reserved() == before
    layer, qkv = model.model.language_model.layers[7], made._layers[7].qkv.weight
    assert qkv is not None
    assert qkv.shape == (3 * 5120, 5120)
    assert layer.self_attn.k_proj.weight.untyped_storage()._cdata == qkv.untyped_storage()._cdata


def test_joining_afterwards_would_reserve_most_of_the_layers_twice() -> None:
    """What the service once did: the simulation tells the difference."""
    allocator, layers = SimulatedAllocator(H100_80), []
    with allocator.recording():
        for _ in range(40):
            layers.append([torch.empty(rows, 5120, dtype=torch.float16, device=META) for rows in PROJECTIONS])
        for number, parts in enumerate(layers):
            layers[number] = [torch.cat(parts[:3]), torch.cat(parts[3:])]
            del parts
    joined = 40 * sum(PROJECTIONS) * 5120 * 2
    assert allocator.reserved() > joined + 15 * GB


def test_an_allocator_splits_joins_and_gives_back() -> None:
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


@pytest.mark.parametrize("room", [0.0, -5.0, 1e6])
def test_less_than_one_context_is_refused(room: float) -> None:
    llama = small_llava().config.text_config
    with pytest.raises(StartupError, match="LLAVA_GPU_MEMORY_UTILIZATION"):
        num_blocks(room, 1_000_000, llama, EngineConfig())


@pytest.mark.parametrize(
    ("memory_gib", "capability", "expected"),
    [
        (15.0, (7, 5), DeviceDefaults(16, 512)),  # T4
        (39.6, (8, 0), DeviceDefaults(64, 1024)),  # A100 with 40 GB
        (79.6, (9, 0), DeviceDefaults(64, 2048)),  # H100
    ],
)
def test_defaults_follow_the_device(memory_gib: float, capability: tuple[int, int], expected: DeviceDefaults) -> None:
    assert device_defaults(memory_gib, capability) == expected


def test_what_is_set_goes_before_the_defaults() -> None:
    cpu = torch.device("cpu")
    config = engine_config(Settings(), cpu)
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (16, 512)
    assert (config.static_decode, config.overlap) == (False, False)
    assert engine_config(Settings(max_num_seqs=700), cpu).max_num_batched_tokens == 700
    assert engine_config(Settings(max_num_batched_tokens=7), cpu).max_num_seqs == 7


CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CARDS = {
    "Tesla V100": ((7, 0), CUDA_13, r"install torch==2\.13\.0\+cu126"),
    "Tesla T4": ((7, 5), CUDA_13, None),
    "NVIDIA A100": ((8, 0), CUDA_13, None),
    "NVIDIA L4": ((8, 9), CUDA_13, None),  # code for 8.6 runs on it
    "NVIDIA H100": ((9, 0), CUDA_13, None),
    "a card to come": ((13, 0), CUDA_13, None),  # compiled by the driver
    "a card too new": ((13, 0), CUDA_13[:-1], "install a newer torch"),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_torch_has_no_code_for_is_refused_with_the_way_out(name: str) -> None:
    capability, built_for, way_out = CARDS[name]
    card = Card(name, capability)
    if way_out is None:
        check_card(card, built_for, "2.13.0+cu130")
        return
    with pytest.raises(StartupError, match=f"no code for the {name}.*{way_out}"):
        check_card(card, built_for, "2.13.0+cu130")


def test_bfloat16_is_refused_where_it_would_be_emulated() -> None:
    with pytest.raises(StartupError, match="set LLAVA_DTYPE=float16"):
        check_dtype(Card("Tesla T4", (7, 5)), torch.bfloat16)
    check_dtype(Card("Tesla T4", (7, 5)), torch.float16)
    check_dtype(Card("NVIDIA A100", (8, 0)), torch.bfloat16)


def test_swiglu_is_what_the_decoder_computes() -> None:
    """The decoder that the simulation runs is the one that answers: a check on one layer."""
    model = small_llava()
    layer = model.model.language_model.layers[0]
    states = torch.randn(3, 64)
    made = Decoder([layer], 32, torch_forward)
    found = made(states.clone(), lambda _, heads: torch.zeros(3, 2, 32))
    normed = layer.post_attention_layernorm(states)
    expected = states + layer.mlp.down_proj(silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed))
    assert torch.allclose(found, expected, atol=1e-5)
