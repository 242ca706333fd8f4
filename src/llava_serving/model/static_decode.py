"""Decode steps padded to a few batch sizes. On a GPU each size is captured as a CUDA graph and replayed."""

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from .attention import TokenRange
from .paged_attention import PagedAttention

logger = logging.getLogger(__name__)
Arrays = Mapping[str, npt.NDArray[np.generic]]
DecodeForward = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


def capture_sizes(max_num_seqs: int) -> list[int]:
    """Returns the batch sizes: 1, 2, then multiples of 4, and from 16 on of 8. Padding costs small batches most."""
    sizes = [1, 2, *range(4, 16, 4), *range(16, max_num_seqs + 8, 8)]
    return sorted({min(size, max_num_seqs) for size in sizes})


class StaticDecode:
    """Runs decode steps, one token per row, at one of a few batch sizes.

    All inputs of a step have fixed addresses in the staging buffer. Padding rows have position -1: they write to no
    sequence's blocks, and their logits are not used.
    """

    def __init__(self, attention: PagedAttention, forward: DecodeForward, max_num_seqs: int) -> None:
        """`forward` maps a step's staged arrays to logits (rows, vocabulary)."""
        self._attention = attention
        self._forward = forward
        self._sizes = capture_sizes(max_num_seqs)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def arrays(
        self, ranges: list[TokenRange], ids: list[int], batch_indices: list[int]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Returns the padded arrays of a step. Their order fixes their addresses in the staging buffer."""
        num_rows = next(size for size in self._sizes if size >= len(ranges))
        padding = num_rows - len(ranges)
        return {
            "ids": np.array(ids + [0] * padding, dtype=np.int64),
            "batch_indices": np.array(batch_indices + [0] * padding, dtype=np.int64),
            **self._attention.decode_arrays(ranges, num_rows),
        }

    def run(self, staged: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns logits (padded rows, vocabulary), which are valid until the next step."""
        captured = self._graphs.get(len(staged["ids"]))
        if captured is None:
            return self._forward(staged)
        graph, logits = captured
        graph.replay()
        return logits

    @torch.inference_mode()
    def capture(self, stage: Callable[[Arrays], Mapping[str, torch.Tensor]]) -> None:
        """Captures every size, the largest first, so that the others fit into its memory. `stage` stages arrays."""
        started, free_before = time.monotonic(), torch.cuda.mem_get_info()[0]
        pool = None
        for size in reversed(self._sizes):
            staged = stage(self.arrays([TokenRange(-1, -1, -1, [])] * size, [0] * size, [0] * size))
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._forward(staged)  # compiles kernels and makes workspaces, neither of which can be captured
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                logits = self._forward(staged)
            pool = graph.pool()
            self._graphs[size] = graph, logits
        torch.cuda.synchronize()
        logger.info(
            "captured decode steps of %s sequences in %.1f s and %.0f MiB", ", ".join(map(str, self._sizes)),
            time.monotonic() - started, (free_before - torch.cuda.mem_get_info()[0]) / 2**20,
        )  # fmt: skip
