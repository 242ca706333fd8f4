"""What one large activation costs: rows are scaled to 8 bits by their largest value, so all others get fewer steps.

Inputs and weights are Gaussian. One activation of each row is `factor` times the standard deviation of the others. Its
own contribution is exact to 8 bits, and hides the error in the error of the whole product. So the error is also given
relative to what the other activations contribute.
"""

import argparse
from typing import Any

import torch
from torch import nn

from llava_serving.model.cpu_kernels.cpu_linear import CpuLinear
from llava_serving.model.cpu_kernels.packed_weight import NumberFormat

ROWS, IN_FEATURES, OUT_FEATURES = 64, 2048, 5632
FACTORS = (1, 10, 100)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    weight, states = torch.randn(OUT_FEATURES, IN_FEATURES), torch.randn(ROWS, IN_FEATURES)
    results: dict[str, Any] = {"rows": ROWS, "in_features": IN_FEATURES, "out_features": OUT_FEATURES}
    for number_format in (NumberFormat.INT8, NumberFormat.INT4):
        (linear,) = CpuLinear.empty_fused([nn.Linear(IN_FEATURES, OUT_FEATURES, False, "meta")], number_format)
        linear.fill(0, weight)
        results[number_format.name.lower()] = {
            str(factor): _errors(linear, weight, states, factor) for factor in FACTORS
        }
    return results


def _errors(linear: CpuLinear, weight: torch.Tensor, states: torch.Tensor, factor: int) -> dict[str, float]:
    """Returns relative errors: of the product, and of it against the product of the other activations."""
    states = states.clone()
    states[:, 0] = factor
    expected = states.double() @ weight.double().T
    others = states[:, 1:].double() @ weight[:, 1:].double().T
    exact_input = states.double() @ linear.packed.unpacked().double().T
    error = linear(states).double() - expected
    return {
        "of_product": round(float(error.norm() / expected.norm()), 5),
        "of_other_activations": round(float(error.norm() / others.norm()), 5),
        "of_other_activations_by_input": round(float((linear(states) - exact_input).norm() / others.norm()), 5),
    }
