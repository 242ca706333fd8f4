"""Some rows of a matrix. No copy is made if these are all rows."""

import torch


def select_rows(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Returns the rows with the indices `rows`, which are distinct and ascend."""
    return tensor if len(rows) == len(tensor) else tensor.index_select(0, rows)


def replace_rows(tensor: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns `tensor` with the rows `rows`, which are distinct and ascend, replaced by `values`."""
    return values if len(rows) == len(tensor) else tensor.index_copy(0, rows, values)
