"""Compiles the Triton kernels at LLaVA-13b's sizes for several GPUs: python -m compile_kernels FOLDER

It writes a .cubin and a .ptx per kernel, and a .shared with the bytes of shared memory that a launch asks for. No GPU
is needed. test_kernels_compile.py runs it in a process of its own.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llava_serving.model.kernels import (
    activation,
    decode_attention,
    integer_product,
    linear,
    norm,
    rotary,
    row_quantization,
)

CAPABILITIES = (75, 80, 90)
HIDDEN, INTERMEDIATE, HEADS, HEAD_SIZE = 5120, 13824, 40, 128
POINTERS = {
    "positions": "*i32", "block_tables": "*i32", "slots": "*i64", "scales": "*fp32", "row_scales": "*fp32",
    "product": "*i32",
}  # fmt: skip
NUMBERS = {
    "scale": "fp32", "epsilon": "fp32", "N": "i32", "M": "i32", "row_stride": "i32", "table_stride": "i32",
    "head_slots": "i32",
}  # fmt: skip
FLOAT_BUFFERS = dict.fromkeys(("split_outputs", "split_stats"), "*fp32")
INT8_OUTPUT, INT8_WEIGHT = {"output": "*i8"}, {"weight": "*i8"}
# An int8 cache, and one without scales.
CACHES: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
    ({"INT8": True}, {"keys": "*i8", "values": "*i8", "key_scales": "*fp32", "value_scales": "*fp32"}),
    ({"INT8": False, "key_scales": None, "value_scales": None}, {}),
)


class Variant(NamedTuple):
    """A kernel with its constants. `pointers` are the types of parameters that are not those of POINTERS or float16."""

    kernel: Any
    constants: dict[str, Any]
    pointers: Mapping[str, str] = MappingProxyType({})
    num_warps: int = 4
    num_stages: int | None = None


def variants(capability: int) -> Iterator[Variant]:
    pdl = {"USE_PDL": capability >= 90}
    heads = {"NUM_HEADS": HEADS, "NUM_KV_HEADS": HEADS, "HEAD_SIZE": HEAD_SIZE, "HALF_BLOCK": HEAD_SIZE // 2} | pdl
    for cache, pointers in CACHES:
        for splits in (1, 2, 8):
            decode = heads | cache | {"BLOCK_SIZE": 16, "TILE": decode_attention.TILE, "SPLITS": splits}
            yield Variant(decode_attention._decode, decode, pointers | (FLOAT_BUFFERS if splits > 1 else {}))
        rotate = heads | cache | {"HEADS_PER_PROGRAM": rotary.HEADS_PER_PROGRAM}
        yield Variant(rotary._rotate_and_cache, rotate, pointers)
    join = pdl | {"HEAD_SIZE": HEAD_SIZE, "BLOCK": HEAD_SIZE, "SPLITS": 8}
    yield Variant(decode_attention._join_splits, join, FLOAT_BUFFERS)
    for quantize in (False, True):
        constants = pdl | {"ROW_SIZE": HIDDEN, "BLOCK": 8192, "ADD_UPDATE": True, "QUANTIZE": quantize}
        yield Variant(norm._add_rms_norm, constants, INT8_OUTPUT if quantize else {}, num_warps=8)
    yield Variant(activation._silu_product, pdl | {"SIZE": INTERMEDIATE, "BLOCK": activation.BLOCK})
    rows = pdl | {"ROW_SIZE": INTERMEDIATE, "BLOCK": 16384}
    yield Variant(row_quantization._quantize_rows, rows, INT8_OUTPUT, num_warps=8)
    rescale = pdl | {"SIZE": INTERMEDIATE, "BLOCK": integer_product.BLOCK, "APPLY_SWIGLU": True, "HAS_BIAS": False}
    yield Variant(integer_product._rescale, rescale)
    for is_int8 in (False, True):
        yield from linear_variants(capability, is_int8, pdl)


def linear_variants(capability: int, is_int8: bool, pdl: dict[str, Any]) -> Iterator[Variant]:
    pointers, many_features = (INT8_WEIGHT, 2) if is_int8 else ({}, 1)
    for in_features, features, apply_norm, swiglu, add in (
        (HIDDEN, many_features, True, False, False), (HIDDEN, many_features, True, True, False),
        (HIDDEN, 2, False, False, True), (INTERMEDIATE, 2, False, False, True),
    ):  # fmt: skip
        flags = pdl | {"APPLY_SWIGLU": swiglu, "ADD_TO_OUTPUT": add, "HAS_BIAS": False, "HAS_SCALE": is_int8}
        chunks = {"FEATURES": features, "CHUNK": linear.CHUNK, "EVEN_K": in_features % linear.CHUNK == 0}
        yield Variant(linear._one_row, flags | chunks | {"K": in_features, "APPLY_NORM": apply_norm}, pointers)
        for tile_m in () if capability < 80 else (16, 64) if is_int8 else (16,):
            if is_int8:
                tile_k, stages = linear.int8_tile_k_and_stages(capability >= 90, 2, tile_m, swiglu)
            else:
                tile_k, swiglu_stages, stages = (256, 3, 4) if capability >= 90 else (128, 2, 4)
                stages = swiglu_stages if swiglu else stages
            tiles = {"TILE_M": tile_m, "TILE_N": linear.TILE_N, "TILE_K": tile_k}
            constants = flags | tiles | {"K": in_features, "EVEN_K": in_features % tile_k == 0, "PRECISION": "tf32"}
            yield Variant(linear._few_rows, constants, pointers, num_stages=stages)


def compile_variant(variant: Variant, capability: int) -> Any:
    signature = {}
    for name in variant.kernel.arg_names:
        pointer = variant.pointers.get(name, POINTERS.get(name, "*fp16"))
        signature[name] = "constexpr" if name in variant.constants else NUMBERS.get(name, pointer)
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, (name, kind) in enumerate(signature.items())
        if kind[0] == "*" or name in ("head_slots", "N")
    }
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=variant.constants, attrs=aligned)
    options = {"num_warps": variant.num_warps}
    if variant.num_stages is not None:
        options["num_stages"] = variant.num_stages
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main(folder: Path) -> None:
    for capability in CAPABILITIES:
        for index, variant in enumerate(variants(capability)):
            compiled = compile_variant(variant, capability)
            name = f"{variant.kernel.__name__}.{capability}.{index}"
            (folder / f"{name}.cubin").write_bytes(compiled.asm["cubin"])
            (folder / f"{name}.ptx").write_text(compiled.asm["ptx"])
            (folder / f"{name}.shared").write_text(str(compiled.metadata.shared))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
