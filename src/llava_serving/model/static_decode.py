"""Decode steps of a few fixed sizes: padded to a bucket, and on a GPU captured as CUDA graphs and replayed."""

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from .attention import Span
from .paged_attention import PagedAttention

logger = logging.getLogger(__name__)
Arrays = Mapping[str, npt.NDArray[np.generic]]
Forward = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Small batches lose most to padding: every size to 2, then steps of 4, of 8 from 16 on."""
    sizes = [1, 2, *range(4, 16, 4), *range(16, max_num_seqs + 8, 8)]
    return sorted({min(size, max_num_seqs) for size in sizes})


class StaticDecode:
    """One token for each row of a bucket.

    What a step depends on lies at fixed addresses of the staging buffer. Padding rows have position -1: they write to
    no sequence's blocks, and nobody reads their logits.
    """

    def __init__(self, attention: PagedAttention, forward: Forward, max_num_seqs: int) -> None:
        """`forward` takes a step's staged arrays to logits (rows, vocabulary)."""
        self._attention = attention
        self._forward = forward
        self._sizes = bucket_sizes(max_num_seqs)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def arrays(self, spans: list[Span], ids: list[int], batch_indices: list[int]) -> dict[str, npt.NDArray[np.generic]]:
        """What is staged for a step of these rows, in the order that fixes its addresses."""
        rows = next(size for size in self._sizes if size >= len(spans))
        padding = rows - len(spans)
        return {
            "ids": np.array(ids + [0] * padding, dtype=np.int64),
            "batch_indices": np.array(batch_indices + [0] * padding, dtype=np.int64),
            **self._attention.decode_arrays(spans, rows),
        }

    def run(self, staged: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (rows of the bucket, vocabulary); valid until the next step."""
        captured = self._graphs.get(len(staged["ids"]))
        if captured is None:
            return self._forward(staged)
        graph, logits = captured
        graph.replay()
        return logits

    @torch.inference_mode()
    def capture(self, put: Callable[[Arrays], Mapping[str, torch.Tensor]]) -> None:
        """Captures every bucket, the largest first, so that the others fit into its memory. `put` stages arrays."""
        started, before = time.monotonic(), torch.cuda.mem_get_info()[0]
        pool = None
        for size in reversed(self._sizes):
            staged = put(self.arrays([Span(-1, -1, -1, [])] * size, [0] * size, [0] * size))
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
            time.monotonic() - started, (before - torch.cuda.mem_get_info()[0]) / 2**20,
        )  # fmt: skip
