"""Radix selection: finds where a weighted ranking must be cut, without sorting it."""

import torch

RADIX_PASSES = 4  # fewer passes need larger tables, which do not fit the processor's cache


def rank_keys(scores: torch.Tensor) -> torch.Tensor:
    """Returns integers (rows, columns) that ascend as float32 `scores` descend, and for equal scores as columns ascend.

    The upper 32 bits are those of the negated score. As integers, the bits of floats of one sign are ordered like the
    floats. The lower bits are the column.
    """
    bits = (0.0 - scores).view(torch.int32)  # 0.0 - 0.0 and 0.0 - -0.0 have the same bits
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits).long()
    num_columns = scores.shape[-1]
    columns = torch.arange(num_columns, device=scores.device)
    return ordered.bitwise_left_shift_(_column_bits(num_columns)).add_(columns)


def key_columns(keys: torch.Tensor, num_columns: int) -> torch.Tensor:
    """Returns the columns of keys that `rank_keys` made of `num_columns` columns."""
    return keys & ((1 << _column_bits(num_columns)) - 1)


def _column_bits(num_columns: int) -> int:
    return (num_columns - 1).bit_length()


def cutoff_keys(keys: torch.Tensor, weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns the first key (rows, 1) at which the weights, summed by ascending key, reach `target` (rows, 1).

    Each pass finds some bits of the cutoff, beginning with the highest, from the sums of the weights whose keys share
    these bits. Keys below the possible range count in the lowest bucket, keys above it in the highest. If `target`
    exceeds the sum of all weights, or if weights come from NaN, the result is any key or a value beyond all keys.
    """
    num_bits = 32 + _column_bits(keys.shape[-1])
    bits_per_pass = -(-num_bits // RADIX_PASSES)
    lowest = torch.full_like(target, -(1 << num_bits - 1))
    sums = torch.empty(len(keys), 1 << bits_per_pass, dtype=torch.int64, device=keys.device)
    for shift in range(bits_per_pass * (RADIX_PASSES - 1), -1, -bits_per_pass):
        buckets = (keys - lowest).bitwise_right_shift_(shift).clamp_(0, (1 << bits_per_pass) - 1)
        torch.cumsum(sums.zero_().scatter_add_(1, buckets, weights), -1, out=sums)
        lowest = lowest.add(torch.searchsorted(sums, target), alpha=1 << shift)
    return lowest
