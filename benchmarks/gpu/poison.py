"""New memory full of NaN, so that what a kernel does not write cannot pass for a result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def poisoned() -> Iterator[None]:
    """Tensors that `new_empty` and `empty_like` make within are NaN, where their numbers can be."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poisoned_new_empty(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return _filled(new_empty(tensor, *args, **options))

    def poisoned_empty_like(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        return _filled(empty_like(tensor, **options))

    with (
        patch.object(torch.Tensor, "new_empty", poisoned_new_empty),
        patch.object(torch, "empty_like", poisoned_empty_like),
    ):
        yield


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor
