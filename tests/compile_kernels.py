"""Compiles the Triton kernels at LLaVA-13b's sizes for several GPUs: python -m compile_kernels FOLDER

It writes a .cubin and a .ptx per kernel. No GPU is needed. test_kernels_compile.py runs it in a process of its own.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llava_serving.model.kernels import activation, decode_attention, linear, norm, rotary

CAPABILITIES = (75, 80, 90)
HIDDEN, INTERMEDIATE, HEADS, HEAD_SIZE = 5120, 13824, 40, 128
INTEGER_POINTERS = {"positions": "*i32", "block_tables": "*i32", "slots": "*i64"}
NUMBERS = {
    "scale": "fp32", "epsilon": "fp32", "N": "i32", "M": "i32", "row_stride": "i32", "table_stride": "i32",
    "head_slots": "i32",
}  # fmt: skip
FLOAT_BUFFERS = dict.fromkeys(("split_outputs", "split_stats"), "*fp32")
# An int8 cache, and one without scales.
CACHES: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
    ({"INT8": True}, {"keys": "*i8", "values": "*i8", "key_scales": "*fp32", "value_scales": "*fp32"}),
    ({"INT8": False, "key_scales": None, "value_scales": None}, {}),
)


class Variant(NamedTuple):
    """A kernel with its constants. `pointers` are the types of the parameters that do not point to float16."""

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
    yield Variant(norm._add_rms_norm, pdl | {"ROW_SIZE": HIDDEN, "BLOCK": 8192, "ADD_UPDATE": True}, num_warps=8)
    yield Variant(activation._silu_product, pdl | {"SIZE": INTERMEDIATE, "BLOCK": activation.BLOCK})
    for in_features, features, apply_norm, swiglu, add in (
        (HIDDEN, 1, True, False, False), (HIDDEN, 1, True, True, False), (HIDDEN, 2, False, False, True),
        (INTERMEDIATE, 2, False, False, True),
    ):  # fmt: skip
        flags = pdl | {"APPLY_SWIGLU": swiglu, "ADD_TO_OUTPUT": add, "HAS_BIAS": False}
        chunks = {"FEATURES": features, "CHUNK": linear.CHUNK, "EVEN_K": in_features % linear.CHUNK == 0}
        yield Variant(linear._one_row, flags | chunks | {"K": in_features, "APPLY_NORM": apply_norm})
        if capability >= 80:
            tile_k, swiglu_stages, stages = (256, 3, 4) if capability >= 90 else (128, 2, 4)
            tiles = {"TILE_M": linear.MAX_ROWS, "TILE_N": linear.TILE_N, "TILE_K": tile_k}
            constants = flags | tiles | {"K": in_features, "EVEN_K": in_features % tile_k == 0, "PRECISION": "tf32"}
            yield Variant(linear._few_rows, constants, num_stages=swiglu_stages if swiglu else stages)


def compile_variant(variant: Variant, capability: int) -> Any:
    signature = {}
    for name in variant.kernel.arg_names:
        pointer = (INTEGER_POINTERS | dict(variant.pointers)).get(name, "*fp16")
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
