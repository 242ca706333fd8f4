"""The weight of a linear layer in the layout of linear.c, in one of three number formats."""

from enum import Enum

import torch
from torch.nn.functional import pad

BLOCK, GROUP, ZERO_BYTE = 32, 64, 128  # output features of a block, inputs with the same multiplier, the byte of 0
LARGEST_BYTE = 127
# Multiples of a group's step can exceed the largest weight by half a step. Steps are at most 17, so bytes stay in range
# (the protective range of QServe, Lin et al. 2024, arXiv:2405.04532, section 4.1).
LARGEST_PROTECTED_BYTE = 119
LARGEST_NIBBLE, LARGEST_STEP = 15, 17


class NumberFormat(Enum):
    """The numbers of linear.c. `int8` has a scale per output feature. In `int4`, groups of 64 inputs have a step."""

    INT8 = 0
    INT4 = 1
    BFLOAT16 = 2

    @property
    def features_per_lane(self) -> int:
        """How many inputs 32 bits of an input row hold."""
        return 2 if self is NumberFormat.BFLOAT16 else 4


class PackedWeight:
    """A weight (out features, in features), in blocks of 32 output features, padded with zeros.

    `lanes` is (blocks, lanes, 32, features per lane): uint8, or bfloat16. In INT4 two lanes share their bytes, so it is
    (blocks, lanes / 2, 32, 4). `scale` (blocks * 32,) is float32. `multiplier` and `offset` (blocks, groups, 32), of
    INT4 only, are uint8.
    """

    def __init__(self, out_features: int, in_features: int, number_format: NumberFormat) -> None:
        self.format = number_format
        self.out_features, self.in_features = out_features, in_features
        blocks, per_lane = -(-out_features // BLOCK), number_format.features_per_lane
        multiple = per_lane if number_format is NumberFormat.BFLOAT16 else GROUP
        self.padded_features = -(-in_features // multiple) * multiple
        self.num_lanes = self.padded_features // per_lane
        self.scale = torch.zeros(blocks * BLOCK)
        self.multiplier = self.offset = torch.empty(0, dtype=torch.uint8)
        if number_format is NumberFormat.BFLOAT16:
            self.lanes = torch.zeros(blocks, self.num_lanes, BLOCK, per_lane, dtype=torch.bfloat16)
        elif number_format is NumberFormat.INT8:
            self.lanes = torch.full((blocks, self.num_lanes, BLOCK, per_lane), ZERO_BYTE, dtype=torch.uint8)
        else:
            self.lanes = torch.zeros(blocks, self.num_lanes // 2, BLOCK, per_lane, dtype=torch.uint8)
            groups = self.padded_features // GROUP
            self.multiplier, self.offset = (torch.zeros(blocks, groups, BLOCK, dtype=torch.uint8) for _ in range(2))

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.lanes, self.scale, self.multiplier, self.offset))

    def fill(self, start: int, rows: torch.Tensor) -> None:
        """Packs `rows` (rows, in features) from output feature `start` on."""
        if self.padded_features != self.in_features:
            rows = pad(rows, (0, self.padded_features - self.in_features))
        if self.format is NumberFormat.BFLOAT16:
            self._store(self.lanes, start, rows.to(torch.bfloat16))
        elif self.format is NumberFormat.INT8:
            scale, scaled = _scaled(rows, LARGEST_BYTE)
            self.scale[start : start + len(rows)] = scale
            self._store(self.lanes, start, scaled.round_().add_(ZERO_BYTE).to(torch.uint8))
        else:
            self._fill_int4(start, *_scaled(rows, LARGEST_PROTECTED_BYTE))

    def _fill_int4(self, start: int, scale: torch.Tensor, scaled: torch.Tensor) -> None:
        groups = scaled.view(len(scaled), -1, GROUP)
        lowest, highest = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
        span = highest - lowest
        step = (span / LARGEST_NIBBLE).round_().clamp_(1, LARGEST_STEP)
        # Fifteen steps that were rounded down do not reach both ends. So both move towards zero, in proportion.
        zero = (lowest * (LARGEST_NIBBLE * step / span).clamp_(max=1) / -step).round_()
        nibbles = groups.div_(step[..., None]).add_(zero[..., None]).round_().clamp_(0, LARGEST_NIBBLE)
        pairs = nibbles.to(torch.uint8).view(len(scaled), -1, 2, 4)
        self.scale[start : start + len(scaled)] = scale
        self._store(self.lanes, start, pairs[:, :, 0] | pairs[:, :, 1] << 4)
        self._store(self.multiplier, start, step.to(torch.uint8))
        self._store(self.offset, start, (zero * step).to(torch.uint8))

    def _store(self, memory: torch.Tensor, start: int, rows: torch.Tensor) -> None:
        """Writes `rows`, one per output feature, to `memory` (blocks, lanes or groups, 32, ...)."""
        rows = rows.view(len(rows), memory.shape[1], *memory.shape[3:])
        stop = start + len(rows)
        first_whole, last_whole = -(-start // BLOCK) * BLOCK, stop // BLOCK * BLOCK
        if first_whole >= last_whole:
            return self._store_some(memory, start, rows)
        self._store_some(memory, start, rows[: first_whole - start])
        whole = rows[first_whole - start : last_whole - start].view(-1, BLOCK, *rows.shape[1:])
        to = memory[first_whole // BLOCK : last_whole // BLOCK]
        if rows.dim() == 3:  # a lane is one number for this copy, which is then three times faster
            whole, to = whole.view(torch.int32), to.view(torch.int32)
        to.copy_(whole.transpose(1, 2))
        self._store_some(memory, last_whole, rows[last_whole - start :])

    def _store_some(self, memory: torch.Tensor, start: int, rows: torch.Tensor) -> None:
        features = torch.arange(start, start + len(rows))
        memory[features // BLOCK, :, features % BLOCK] = rows

    def unpacked(self) -> torch.Tensor:
        """Returns the weight (out features, in features) that the packed numbers stand for, in float32."""
        if self.format is NumberFormat.BFLOAT16:
            return self._rows(self.lanes).float()
        if self.format is NumberFormat.INT8:
            return (self._rows(self.lanes).float() - ZERO_BYTE) * self.scale[: self.out_features, None]
        nibbles = torch.stack((self.lanes & LARGEST_NIBBLE, self.lanes >> 4), 2).flatten(1, 2)
        rows = self._rows(nibbles).float()
        step, offset = (
            tensor.transpose(1, 2).flatten(0, 1)[: self.out_features].repeat_interleave(GROUP, 1)
            for tensor in (self.multiplier, self.offset)
        )
        step, offset = step[:, : self.in_features].float(), offset[:, : self.in_features].float()
        return (rows * step - offset) * self.scale[: self.out_features, None]

    def _rows(self, lanes: torch.Tensor) -> torch.Tensor:
        return lanes.transpose(1, 2).flatten(2).flatten(0, 1)[: self.out_features, : self.in_features]


def packed_bytes(out_features: int, in_features: int, number_format: NumberFormat) -> int:
    """Returns the bytes of a packed weight, without its memory."""
    with torch.device("meta"):
        return PackedWeight(out_features, in_features, number_format).num_bytes


def _scaled(rows: torch.Tensor, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scale of each row, and the rows divided by it, so that their largest absolute value is `largest`."""
    lowest, highest = rows.amin(1).float(), rows.amax(1).float()  # two passes, but no copy of all absolute values
    scale = torch.maximum(-lowest, highest) / largest
    return scale, rows.to(torch.float32, copy=True).div_(scale[:, None].clamp(min=torch.finfo(torch.float32).tiny))
