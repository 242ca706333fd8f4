"""New memory full of NaN, so that memory that a kernel does not write cannot look like a result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def poisoned() -> Iterator[None]:
    """Within this context, `new_empty` and `empty_like` return tensors of NaN, if their dtype has NaN."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poisoned_new_empty(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return _fill_with_nan(new_empty(tensor, *args, **options))

    def poisoned_empty_like(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        return _fill_with_nan(empty_like(tensor, **options))

    with (
        patch.object(torch.Tensor, "new_empty", poisoned_new_empty),
        patch.object(torch, "empty_like", poisoned_empty_like),
    ):
        yield


def _fill_with_nan(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor
