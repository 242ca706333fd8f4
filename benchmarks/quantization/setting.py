"""The settings that are compared, as LLAVA_QUANTIZATION, LLAVA_DTYPE and, unless `auto`, LLAVA_KV_CACHE_DTYPE.

`int8-gpu` is the arithmetic of `int8` on a GPU, computed on a CPU by torch's operators. `int8-gpu-weights` is the same
without its rounding of many rows of input, which shows what that rounding costs.
"""

import sys
from typing import Literal

import torch
from packed_model import pack
from torch import nn

from llava_serving.model import int8_linear
from llava_serving.model.cpu_kernels.cpu_linear import CpuLinear
from llava_serving.model.int8_linear import Int8Linear
from llava_serving.model.nf4 import NF4Linear
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import MergedFolder, PartsFolder
from llava_serving.weights.packing import int8_on_gpu

# The most rows of input that are not rounded.
INT8_GPU = {"int8-gpu": int8_linear.MAX_EXACT_ROWS, "int8-gpu-weights": sys.maxsize}

SETTINGS = (
    "none/float32", "none/float32/int8", "none/bfloat16", "none/bfloat16/int8", "int8/float32", "int8/bfloat16",
    "int8/bfloat16/int8", "int4/float32", "int4/bfloat16", "int4/bfloat16/int8", "nf4/float32", "int8-gpu/float32",
    "int8-gpu-weights/float32",
)  # fmt: skip


def load(folder: MergedFolder | PartsFolder, setting: str) -> LoadedModel:
    quantization, dtype, *_ = setting.split("/")
    if quantization not in INT8_GPU:
        return load_model(folder, "cpu", dtype, quantization=quantization)
    int8_linear.MAX_EXACT_ROWS = INT8_GPU[quantization]
    loaded = load_model(folder, "cpu", dtype)
    pack(loaded.model, int8_on_gpu(torch.device("cpu"), loaded.model.dtype))
    return loaded


def kv_cache_dtype(setting: str) -> Literal["auto", "int8"]:
    return "int8" if setting.count("/") == 2 else "auto"


def linear_bytes(model: nn.Module) -> int:
    """Returns the bytes of the weights of all linear layers, packed or not. Call it before a runner fuses them.

    The layers of one fused weight share its memory, which counts once.
    """
    packed = {module.packed for module in model.modules() if isinstance(module, CpuLinear)}
    others = [module for module in model.modules() if isinstance(module, (nn.Linear, NF4Linear, Int8Linear))]
    return sum(weight.num_bytes for weight in packed) + sum(
        value.nbytes for module in others for name, value in module.state_dict().items() if name != "bias"
    )
