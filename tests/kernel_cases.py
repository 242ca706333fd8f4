"""Compares Triton's kernels with float64: python -m kernel_cases SEED

They run on a GPU if there is one, otherwise in Triton's interpreter, which test_kernels.py uses. Each case has
random inputs. Free blocks of the cache hold NaN, which must not reach any result: of an int8 cache, their scales do.
"""

import os
import sys
from random import Random
from unittest.mock import patch

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from small_llava import small_llava

from llava_serving.model.backend import TOLERANCE
from llava_serving.model.decoder import DecoderLayer, torch_forward
from llava_serving.model.int8_linear import Int8Linear
from llava_serving.model.kernels.activation import silu_product
from llava_serving.model.kernels.decode_attention import decode_attention
from llava_serving.model.kernels.forward import TritonForward, int8_error, linear_error
from llava_serving.model.kernels.integer_product import integer_linear
from llava_serving.model.kernels.linear import MAX_INT8_ROWS, linear
from llava_serving.model.kernels.norm import add_rms_norm, add_rms_norm_quantized
from llava_serving.model.kernels.rotary import rotate_and_cache
from llava_serving.model.kernels.row_quantization import QuantizedRows, quantize_rows
from llava_serving.model.kv_cache import LayerCache
from llava_serving.weights.packing import int8_on_gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAX_ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
BLOCK_SIZE = 16
EPSILON = 1e-6


def check_close(name: str, actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises AssertionError unless `actual` equals `expected` to the precision of `dtype`. NaN never does."""
    error = float((actual.cpu().double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
    assert error < MAX_ERROR[dtype], f"{name} in {dtype}: off by a relative {error:.1e}"


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin


def rounded(states: torch.Tensor) -> torch.Tensor:
    """Returns what an int8 cache holds of (..., head size), in float64."""
    scale = states.double().abs().amax(-1, keepdim=True) / 127
    return (states.double() / scale).round() * scale


def numbers(cached: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Returns the numbers that a cache holds, in float64."""
    return cached.double() if scales is None else cached.double() * scales.double()[..., None]


class Cache:
    """Keys and values of some sequences in scattered blocks. All other slots hold NaN."""

    def __init__(
        self, random: torch.Generator, lengths: list[int], num_kv_heads: int, head_size: int, dtype: torch.dtype,
        int8: bool,
    ) -> None:  # fmt: skip
        blocks = max(lengths, default=0) // BLOCK_SIZE + 1
        order = torch.randperm(len(lengths) * blocks + 3, generator=random)
        self.block_tables = order[: len(lengths) * blocks].view(len(lengths), blocks).int()
        shape = num_kv_heads, len(order) * BLOCK_SIZE, head_size
        keys, values = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
        for seq, length in enumerate(lengths):
            for position in range(length):
                for cached in (keys, values):
                    states = torch.randn(num_kv_heads, head_size, generator=random).to(dtype)
                    cached[:, self.slot(seq, position)] = states
        self.layer = LayerCache(keys, values)
        if int8:
            self.layer = self.layer.quantized()

    def slot(self, seq: int, position: int) -> int:
        return int(self.block_tables[seq, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE

    def slots(self, seq: int, length: int) -> list[int]:
        return [self.slot(seq, position) for position in range(length)]


def empty_cache(num_kv_heads: int, slots: int, head_size: int, dtype: torch.dtype, int8: bool) -> LayerCache:
    """Returns a cache whose keys and values are all NaN."""
    keys, values = (torch.full((num_kv_heads, slots, head_size), torch.nan, dtype=dtype) for _ in range(2))
    return LayerCache(keys, values).quantized() if int8 else LayerCache(keys, values)


def on(device: str, cache: LayerCache) -> LayerCache:
    return LayerCache(*(states.clone().to(device) for states in cache if states is not None))


def decode_case(
    seed: int, positions: list[int], num_heads: int, num_kv_heads: int, head_size: int, splits: int,
    dtype: torch.dtype, int8: bool,
) -> None:  # fmt: skip
    """Checks the attention of one new token per sequence, and the cache afterwards. Position -1 is a padding row."""
    random = torch.Generator().manual_seed(seed)
    cache = Cache(random, [max(0, position) for position in positions], num_kv_heads, head_size, dtype, int8)
    heads = torch.randn(len(positions), num_heads + 2 * num_kv_heads, head_size, generator=random).to(dtype)
    angles = torch.rand(max(positions) + 2, head_size // 2, generator=random).repeat(1, 2) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    written = on(DEVICE, cache.layer)
    actual = decode_attention(
        heads.to(DEVICE), cos.to(DEVICE), sin.to(DEVICE), torch.tensor(positions, dtype=torch.int32, device=DEVICE),
        cache.block_tables.to(DEVICE), written, BLOCK_SIZE, splits,
    ).cpu()  # fmt: skip
    assert actual.isfinite().all(), "the padding rows are finite too"
    written = on("cpu", written)
    unwritten = written.clone()
    for seq, position in enumerate(positions):
        if position < 0:
            continue
        own = heads[seq].double()
        rotated = apply_rotary(own[:-num_kv_heads], cos[position].double(), sin[position].double())
        query, key, value = rotated[:num_heads], rotated[num_heads:], own[-num_kv_heads:]
        if int8:
            key, value = rounded(key), rounded(value)
        slots = cache.slots(seq, position + 1)
        all_keys = numbers(written.keys, written.key_scales)[:, slots]
        all_values = numbers(written.values, written.value_scales)[:, slots]
        check_close("new key", all_keys[:, -1], key, dtype)
        check_close("new value", all_values[:, -1], value, dtype)
        for after, before in zip(unwritten, cache.layer, strict=True):
            if after is not None and before is not None:
                after[:, slots[-1]] = before[:, slots[-1]]
        group = num_heads // num_kv_heads
        scores = torch.einsum("hd,hnd->hn", query, all_keys.repeat_interleave(group, 0)) * head_size**-0.5
        attended = torch.einsum("hn,hnd->hd", scores.softmax(-1), all_values.repeat_interleave(group, 0))
        check_close("attention", actual[seq], attended, dtype)
    for after, before in zip(unwritten, cache.layer, strict=True):
        if after is not None and before is not None:
            assert torch.equal(after.nan_to_num(7), before.nan_to_num(7)), "only one slot per sequence is written"


def rotary_case(
    seed: int, tokens: int, num_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype, int8: bool
) -> None:
    random = torch.Generator().manual_seed(seed)
    heads = torch.randn(tokens, num_heads + 2 * num_kv_heads, head_size, generator=random).to(dtype)
    positions = torch.randint(0, 50, (tokens,), generator=random)
    slots = torch.randperm(6 * BLOCK_SIZE, generator=random)[:tokens]
    angles = torch.rand(50, head_size // 2, generator=random).repeat(1, 2) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    actual = heads.clone().to(DEVICE)
    cache = on(DEVICE, empty_cache(num_kv_heads, 6 * BLOCK_SIZE, head_size, dtype, int8))
    rotate_and_cache(actual, cos.to(DEVICE), sin.to(DEVICE), positions.to(DEVICE), slots.to(DEVICE), cache)
    query_and_key = heads[:, :-num_kv_heads].double()
    rotated = apply_rotary(query_and_key, cos[positions].double()[:, None], sin[positions].double()[:, None])
    query, key, value = rotated[:, :num_heads], rotated[:, num_heads:], heads[:, -num_kv_heads:]
    if int8:
        key, value = rounded(key), rounded(value)
    else:
        assert torch.equal(actual.cpu()[:, -num_kv_heads:], value), "values are not rotated"
    check_close("queries", actual[:, :num_heads], query, dtype)
    check_close("keys", actual[:, num_heads:-num_kv_heads], key, dtype)
    check_close("values", actual[:, -num_kv_heads:], value, dtype)
    cache = on("cpu", cache)
    keys, values = numbers(cache.keys, cache.key_scales), numbers(cache.values, cache.value_scales)
    check_close("cached keys", keys[:, slots].transpose(0, 1), key, dtype)
    check_close("cached values", values[:, slots].transpose(0, 1), value, dtype)
    assert int(keys.isnan().any(-1).any(0).sum()) == 6 * BLOCK_SIZE - tokens, "no other slot is written"


def not_finite_cache_case(bad: float) -> None:
    """Checks that a key or a value that is not finite is not finite in an int8 cache either, for both kernels."""
    heads = torch.ones(2, 4, 16)
    heads[0, 2, 3] = heads[1, 3, 9] = bad  # a key and a value, of two query heads and one KV head
    zeros, position = torch.zeros(1, 16), torch.zeros(2, dtype=torch.int32)
    for decodes in (True, False):
        cache = on(DEVICE, empty_cache(1, 3 * BLOCK_SIZE, 16, torch.float32, int8=True))
        others = heads.clone().to(DEVICE), (zeros + 1).to(DEVICE), zeros.to(DEVICE), position.to(DEVICE)
        slots = torch.tensor([0, BLOCK_SIZE])
        if decodes:
            decode_attention(*others, (slots[:, None] // BLOCK_SIZE).int().to(DEVICE), cache, BLOCK_SIZE)
        else:
            rotate_and_cache(*others, slots.to(DEVICE), cache)
        keys, values = cache.gather(slots.to(DEVICE), torch.float32)
        assert not keys[0].isfinite().any(), "every number of the key has the scale"
        assert not values[1].isfinite().any()
        assert keys[1].isfinite().all()
        assert values[0].isfinite().all()


def norm_and_activation_cases(seed: int, rows: int, width: int, dtype: torch.dtype) -> None:
    """Checks RMSNorm with an addition and without, and the product of SwiGLU."""
    random = torch.Generator().manual_seed(seed)
    residual, update = (torch.randn(rows, width, generator=random).to(dtype) for _ in range(2))
    weight = torch.rand(width, generator=random).to(dtype)
    total = (residual + update).double()
    scale = (total.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt()
    on_device = residual.clone().to(DEVICE)
    normed = add_rms_norm(on_device, update.to(DEVICE), weight.to(DEVICE), EPSILON)
    check_close("norm of the sum", normed, total * scale * weight.double(), dtype)
    check_close("sum", on_device, total, dtype)
    again = add_rms_norm(on_device, None, weight.to(DEVICE), EPSILON)
    assert torch.equal(again, normed), "the residual holds the sum, so its norm is the same"
    gate_up = torch.randn(rows, 2 * width, generator=random).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    check_close("product", silu_product(gate_up.to(DEVICE)), gate * gate.sigmoid() * up, dtype)


def linear_case(seed: int, rows: int, out_features: int, in_features: int, flags: str, dtype: torch.dtype) -> None:
    """`flags` is any of n (norm), s (SwiGLU), a (add to a residual), b (bias) and 8 (int8 weights)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    weight_rows = 2 * out_features if "s" in flags else out_features
    x, weight = normal(rows, in_features), normal(weight_rows, in_features) / in_features**0.5
    exact_weight, scale = weight.double(), None
    if "8" in flags:
        weight, scale = random_int8(random, weight_rows, in_features)
        exact_weight = weight.double() * scale.double()[:, None]
    bias, norm = normal(weight_rows), normal(in_features).abs()
    add_to = normal(rows, out_features)
    states = x.double()
    if "n" in flags:
        states = states * (states.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt() * norm.double()
    expected = states @ exact_weight.t() + (bias.double() if "b" in flags else 0)
    if "s" in flags:
        expected = swiglu(expected)
    expected = expected + (add_to.double() if "a" in flags else 0)
    target = add_to.clone().to(DEVICE) if "a" in flags else None
    actual = linear(
        x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE) if "b" in flags else None,
        norm.to(DEVICE) if "n" in flags else None, EPSILON, "s" in flags, target,
        None if scale is None else scale.to(DEVICE),
    )  # fmt: skip
    assert target is None or actual is target
    check_close(f"linear {rows}x{in_features} to {out_features}, {flags or 'plain'}", actual, expected, dtype)


def random_int8(random: torch.Generator, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns int8 weights (rows, columns) and their scales (rows,), with which outputs are about 1."""
    values = torch.randint(-127, 128, (rows, columns), generator=random, dtype=torch.int8)
    return values, (torch.rand(rows, generator=random) + 0.5) / (73 * columns**0.5)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, -1)
    return gate * gate.sigmoid() * up


def check_rounded(name: str, rows: QuantizedRows, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises AssertionError unless `rows` are the nearest multiples of a 127th of each row's largest value."""
    values, scale = rows.values.cpu().double(), rows.scale.cpu().double()
    assert bool((values.abs().amax(1) == 127).all()), f"{name}: the largest value of each row becomes 127"
    distance = (values - expected.double() / scale[:, None]).abs().max()
    assert distance < 0.5 + 127 * MAX_ERROR[dtype], f"{name} in {dtype}: {distance} steps from the value"


def rounded_case(seed: int, rows: int, out_features: int, in_features: int, flags: str, dtype: torch.dtype) -> None:
    """Checks rows rounded to 8 bits with a norm and without, and their product. `flags` is s (SwiGLU) or b (bias)."""
    random = torch.Generator().manual_seed(seed)
    x, update = (torch.randn(rows, in_features, generator=random).to(dtype) for _ in range(2))
    norm = torch.rand(in_features, generator=random).to(dtype)
    quantized = quantize_rows(x.to(DEVICE))
    check_rounded("rows", quantized, x, dtype)
    residual = x.to(DEVICE, copy=True)
    normed = add_rms_norm_quantized(residual, update.to(DEVICE), norm.to(DEVICE), EPSILON)
    exact = add_rms_norm(x.to(DEVICE, copy=True), update.to(DEVICE), norm.to(DEVICE), EPSILON)
    check_rounded("normed rows", normed, exact.cpu(), dtype)
    check_close("sum", residual, x.double() + update.double(), dtype)
    weight_rows = 2 * out_features if "s" in flags else out_features
    weight, scale = random_int8(random, weight_rows, in_features)
    bias = torch.randn(weight_rows, generator=random).to(dtype) if "b" in flags else None
    on_device = None if bias is None else bias.to(DEVICE)
    actual = integer_linear(quantized, weight.to(DEVICE), scale.to(DEVICE), on_device, dtype, "s" in flags)
    states = quantized.values.cpu().double() * quantized.scale.cpu().double()[:, None]
    expected = states @ (weight.double() * scale.double()[:, None]).t() + (0 if bias is None else bias.double())
    expected = swiglu(expected) if "s" in flags else expected
    check_close(f"integers {rows}x{in_features} to {out_features}, {flags or 'plain'}", actual, expected, dtype)


def not_finite_case(dtype: torch.dtype) -> None:
    """Checks that a row with NaN or infinity is not finite after it was rounded, and that other rows are."""
    x = torch.ones(3, 40, dtype=dtype)
    x[0, 7], x[1, 3] = torch.nan, torch.inf
    weight, scale = torch.ones(8, 40, dtype=torch.int8, device=DEVICE), torch.ones(8, device=DEVICE)
    # torch._int_mm needs more than 16 rows on a GPU.
    result = integer_linear(quantize_rows(x.repeat(8, 1).to(DEVICE)), weight, scale, None, dtype)
    assert result.isfinite().all(1).tolist() == [False, False, True] * 8


def int8_layers() -> list[DecoderLayer]:
    """Returns the layers of a small LLaVA in 8 bits."""
    model = small_llava().to(DEVICE)
    originals = dict(model.model.language_model.layers.named_modules())
    int8_on_gpu(torch.device(DEVICE), torch.float32).replace(model)
    for name, module in model.model.language_model.layers.named_modules():
        if isinstance(module, Int8Linear):
            module.fill(0, originals[name].weight)
    return [DecoderLayer(layer) for layer in model.model.language_model.layers]


def forward_case(layers: list[DecoderLayer], rows: int, uses_tensor_cores: bool) -> None:
    """Checks that Triton's kernels compute layers with int8 weights as torch's operators do."""
    hidden = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)).to(DEVICE)

    def attend(_: int, heads: torch.Tensor) -> torch.Tensor:
        return heads[:, :2].contiguous()

    expected = torch_forward(layers, hidden.clone(), 32, attend)
    actual = TritonForward(uses_tensor_cores)(layers, hidden.clone(), 32, attend)
    error = float((actual - expected).norm() / expected.norm())
    # A rounded input that lies half way between two integers can differ by a whole step.
    assert error < (1e-5 if rows <= MAX_INT8_ROWS else 2e-3), f"layers of {rows} rows: off by a relative {error:.1e}"


def start_test_case() -> None:
    """Checks that the test at start accepts these kernels, and not one that leaves out the scales."""
    device, dtype = torch.device(DEVICE), torch.float32
    assert linear_error(device, dtype) <= TOLERANCE[dtype]
    assert int8_error(device, dtype) <= TOLERANCE[dtype]

    def without_scales(x: torch.Tensor, weight: torch.Tensor, swiglu: bool, scale: torch.Tensor) -> torch.Tensor:
        return linear(x, weight, swiglu=swiglu, scale=torch.ones_like(scale))

    with patch("llava_serving.model.kernels.forward.linear", without_scales):
        assert int8_error(device, dtype) > TOLERANCE[dtype]


def run_int8_cases(random: Random, dtype: torch.dtype) -> int:
    """Runs cases of random sizes, and returns how many there are."""
    num_cases = 0
    for largest in (1, 16, MAX_INT8_ROWS):
        for flags in ("8", "8ns", "8sb", "8nab"):
            rows = random.randint(largest // 4 + 1, largest) if largest > 1 else 1
            if rows == 1 or dtype != torch.bfloat16 or DEVICE == "cuda":  # as above
                linear_case(num_cases, rows, random.randint(1, 150), random.randint(1, 400), flags, dtype)
                num_cases += 1
    for flags in ("", "sb"):
        rows, out_features, in_features = random.randint(65, 70), 8 * random.randint(1, 140), 8 * random.randint(1, 50)
        rounded_case(num_cases, rows, out_features, in_features, flags, dtype)
        num_cases += 1
    not_finite_case(dtype)
    if dtype == torch.float32:
        start_test_case()
        layers = int8_layers()
        for rows, uses_tensor_cores in ((9, False), (9, True), (MAX_INT8_ROWS + 1, True)):
            forward_case(layers, rows, uses_tensor_cores)
            num_cases += 1
    return num_cases + 1


def run_all_cases(seed: int) -> int:
    """Runs every case, and returns how many there are."""
    num_cases, random = 0, Random(seed)
    for dtype in MAX_ERROR:
        for positions, heads, splits in (
            ([0, 21, -1, 40], (3, 3, 32), 1), ([33, 5], (4, 2, 24), 2), ([70], (6, 1, 64), 8),
            ([15, 16, 17], (2, 2, 100), 4),
        ):  # fmt: skip
            decode_case(seed, positions, *heads, splits, dtype, int8=False)
            decode_case(seed, positions, *heads, splits, dtype, int8=True)
        for tokens, heads in ((1, (2, 2, 16)), (9, (6, 2, 24)), (5, (3, 1, 100))):
            rotary_case(seed, tokens, *heads, dtype, int8=False)
            rotary_case(seed, tokens, *heads, dtype, int8=True)
        for rows, width in ((1, 40), (3, 1024), (2, 2050)):
            norm_and_activation_cases(seed, rows, width, dtype)
        for rows, out_features, in_features in ((1, 37, 70), (1, 12, 2048), (2, 33, 130), (7, 70, 256), (16, 64, 128)):
            # Triton's interpreter computes a matrix product of bfloat16 as one of integers.
            if rows > 1 and dtype == torch.bfloat16 and DEVICE == "cpu":
                continue
            for flags in ("", "n", "ns", "a", "sb", "nab", "nsab"):
                linear_case(seed, rows, out_features, in_features, flags, dtype)
                num_cases += 1
        num_cases += 17 + run_int8_cases(random, dtype)
    for bad in (float("nan"), float("inf"), -float("inf")):
        not_finite_cache_case(bad)
    return num_cases + 3


if __name__ == "__main__":
    print(f"{run_all_cases(int(sys.argv[1]))} cases pass")
