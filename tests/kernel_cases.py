"""Triton's kernels against float64: run by test_kernels.py in Triton's interpreter, or on a GPU where there is one.

Each case draws its own inputs. Free blocks of the cache hold NaN, which must reach no result.
"""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from llava_serving.model.kernels.activation import silu_product
from llava_serving.model.kernels.decode_attention import decode_attention
from llava_serving.model.kernels.linear import linear
from llava_serving.model.kernels.norm import add_rms_norm
from llava_serving.model.kernels.rotary import rotate_and_cache

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
BLOCK_SIZE = 16
EPSILON = 1e-6


def check(name: str, got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises AssertionError unless `got` is `expected` to the precision of `dtype`; NaN never is."""
    error = float((got.cpu().double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
    assert error < TOLERANCE[dtype], f"{name} in {dtype}: off by {error:.1e}"


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin


class Cache:
    """Keys and values of some sequences in scattered blocks, everything else NaN."""

    def __init__(self, random: torch.Generator, lengths: list[int], num_kv_heads: int, size: int, dtype: torch.dtype):
        blocks = max(lengths, default=0) // BLOCK_SIZE + 1
        order = torch.randperm(len(lengths) * blocks + 3, generator=random)
        self.tables = order[: len(lengths) * blocks].view(len(lengths), blocks).int()
        shape = num_kv_heads, len(order) * BLOCK_SIZE, size
        self.keys, self.values = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
        for seq, length in enumerate(lengths):
            for position in range(length):
                for kept in (self.keys, self.values):
                    kept[:, self.slot(seq, position)] = torch.randn(num_kv_heads, size, generator=random).to(dtype)

    def slot(self, seq: int, position: int) -> int:
        return int(self.tables[seq, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE

    def context(self, kept: torch.Tensor, seq: int, length: int) -> torch.Tensor:
        return kept[:, [self.slot(seq, position) for position in range(length)]].double()


def decode_case(
    seed: int, positions: list[int], num_heads: int, num_kv_heads: int, size: int, splits: int, dtype: torch.dtype
) -> None:
    """Attention of one new token a sequence, and what is in the cache afterwards. Position -1 is a padding row."""
    random = torch.Generator().manual_seed(seed)
    cache = Cache(random, [max(0, position) for position in positions], num_kv_heads, size, dtype)
    heads = torch.randn(len(positions), num_heads + 2 * num_kv_heads, size, generator=random).to(dtype)
    angles = torch.rand(max(positions) + 2, size // 2, generator=random).repeat(1, 2) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    keys, values = cache.keys.clone().to(DEVICE), cache.values.clone().to(DEVICE)
    got = decode_attention(
        heads.to(DEVICE), cos.to(DEVICE), sin.to(DEVICE), torch.tensor(positions, dtype=torch.int32, device=DEVICE),
        cache.tables.to(DEVICE), keys, values, BLOCK_SIZE, splits,
    ).cpu()  # fmt: skip
    assert got.isfinite().all(), "padding rows too"
    expected_keys, expected_values = cache.keys.clone(), cache.values.clone()
    for seq, position in enumerate(positions):
        if position < 0:
            continue
        own = heads[seq].double()
        turned = rotated(own[:-num_kv_heads], cos[position].double(), sin[position].double())
        query, key, value = turned[:num_heads], turned[num_heads:], own[-num_kv_heads:]
        slot = cache.slot(seq, position)
        check("new key", keys.cpu()[:, slot], key, dtype)
        check("new value", values.cpu()[:, slot], value, dtype)
        expected_keys[:, slot], expected_values[:, slot] = keys.cpu()[:, slot], values.cpu()[:, slot]
        all_keys = torch.cat((cache.context(cache.keys, seq, position), key[:, None]), 1)
        all_values = torch.cat((cache.context(cache.values, seq, position), value[:, None]), 1)
        group = num_heads // num_kv_heads
        scores = torch.einsum("hd,hnd->hn", query, all_keys.repeat_interleave(group, 0)) * size**-0.5
        attended = torch.einsum("hn,hnd->hd", scores.softmax(-1), all_values.repeat_interleave(group, 0))
        check("attention", got[seq], attended, dtype)
    assert torch.equal(keys.cpu().nan_to_num(7), expected_keys.nan_to_num(7)), "one slot a sequence is written"
    assert torch.equal(values.cpu().nan_to_num(7), expected_values.nan_to_num(7))


def rotary_case(seed: int, tokens: int, num_heads: int, num_kv_heads: int, size: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(seed)
    heads = torch.randn(tokens, num_heads + 2 * num_kv_heads, size, generator=random).to(dtype)
    positions = torch.randint(0, 50, (tokens,), generator=random)
    slots = torch.randperm(6 * BLOCK_SIZE, generator=random)[:tokens]
    angles = torch.rand(50, size // 2, generator=random).repeat(1, 2) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    got = heads.clone().to(DEVICE)
    keys, values = (torch.full((num_kv_heads, 6 * BLOCK_SIZE, size), torch.nan, dtype=dtype) for _ in range(2))
    keys, values = keys.to(DEVICE), values.to(DEVICE)
    rotate_and_cache(got, cos.to(DEVICE), sin.to(DEVICE), positions.to(DEVICE), slots.to(DEVICE), keys, values)
    turning = heads[:, :-num_kv_heads].double()
    turned = rotated(turning, cos[positions].double()[:, None], sin[positions].double()[:, None])
    check("rotated", got[:, :-num_kv_heads], turned, dtype)
    assert torch.equal(got.cpu()[:, -num_kv_heads:], heads[:, -num_kv_heads:]), "values are not rotated"
    check("cached keys", keys.cpu()[:, slots].transpose(0, 1), turned[:, num_heads:], dtype)
    check("cached values", values.cpu()[:, slots].transpose(0, 1), heads[:, -num_kv_heads:], dtype)
    assert int(keys.isnan().any(-1).any(0).sum()) == 6 * BLOCK_SIZE - tokens, "other slots stay as they were"


def row_cases(seed: int, rows: int, width: int, dtype: torch.dtype) -> None:
    """Norms with an addition and without, and SwiGLU's product."""
    random = torch.Generator().manual_seed(seed)
    residual, update = (torch.randn(rows, width, generator=random).to(dtype) for _ in range(2))
    weight = torch.rand(width, generator=random).to(dtype)
    total = (residual + update).double()
    scale = (total.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt()
    on_device = residual.clone().to(DEVICE)
    normed = add_rms_norm(on_device, update.to(DEVICE), weight.to(DEVICE), EPSILON)
    check("norm of a sum", normed, total * scale * weight.double(), dtype)
    check("sum", on_device, total, dtype)
    again = add_rms_norm(on_device, None, weight.to(DEVICE), EPSILON)
    assert torch.equal(again, normed), "the norm of a residual is that of the sum it holds"
    gate_up = torch.randn(rows, 2 * width, generator=random).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    check("product", silu_product(gate_up.to(DEVICE)), gate * gate.sigmoid() * up, dtype)


def linear_case(seed: int, rows: int, size: int, width: int, flags: str, dtype: torch.dtype) -> None:
    """`flags` are of n (norm), g (gates), a (add to) and b (bias)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    out = 2 * size if "g" in flags else size
    x, weight, bias, norm = normal(rows, width), normal(out, width) / width**0.5, normal(out), normal(width).abs()
    add_to = normal(rows, size)
    states = x.double()
    if "n" in flags:
        states = states * (states.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt() * norm.double()
    expected = states @ weight.double().t() + (bias.double() if "b" in flags else 0)
    if "g" in flags:
        gate, up = expected.chunk(2, -1)
        expected = gate * gate.sigmoid() * up
    expected = expected + (add_to.double() if "a" in flags else 0)
    target = add_to.clone().to(DEVICE) if "a" in flags else None
    got = linear(
        x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE) if "b" in flags else None,
        norm.to(DEVICE) if "n" in flags else None, EPSILON, "g" in flags, target,
    )  # fmt: skip
    assert target is None or got is target
    check(f"linear {rows}x{width} to {size}, {flags or 'plain'}", got, expected, dtype)


def all_cases(seed: int) -> int:
    """Runs every kind of case; how many there were."""
    done = 0
    for dtype in TOLERANCE:
        for positions, heads, splits in (
            ([0, 21, -1, 40], (3, 3, 32), 1), ([33, 5], (4, 2, 24), 2), ([70], (6, 1, 64), 8),
            ([15, 16, 17], (2, 2, 100), 4),
        ):  # fmt: skip
            decode_case(seed, positions, *heads, splits, dtype)
        for tokens, heads in ((1, (2, 2, 16)), (9, (6, 2, 24)), (5, (3, 1, 100))):
            rotary_case(seed, tokens, *heads, dtype)
        for rows, width in ((1, 40), (3, 1024), (2, 2050)):
            row_cases(seed, rows, width, dtype)
        for rows, size, width in ((1, 37, 70), (1, 12, 2048), (2, 33, 130), (7, 70, 256), (16, 64, 128)):
            # Triton's interpreter takes a bfloat16 product of matrices for one of integers.
            if rows > 1 and dtype == torch.bfloat16 and DEVICE == "cpu":
                continue
            for flags in ("", "n", "ng", "a", "gb", "nab", "ngab"):
                linear_case(seed, rows, size, width, flags, dtype)
                done += 1
        done += 10
    return done


if __name__ == "__main__":
    print(f"{all_cases(int(sys.argv[1]))} cases hold")
