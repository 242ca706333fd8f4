"""Runs the engine's batches."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlavaForConditionalGeneration

from ..engine.completion import SampledToken
from ..engine.scheduler import Batch, ScheduledChunk
from .attention import Attend, AttentionPlan, TokenRange
from .image_encoder import ImageEncoder
from .lm_head import LMHead
from .paged_attention import PagedAttention
from .pipeline_stage import PipelineStage
from .sampling.sampled import start_reading
from .sampling.sampler import Sampler
from .staging_buffer import StagingBuffer
from .static_decode import StaticDecode

StagedArrays = Mapping[str, torch.Tensor]
Arrays = dict[str, npt.NDArray[np.generic]]
Collect = Callable[[], dict[int, SampledToken]]
PENDING = -1  # stands for a token id that only the device knows


class ModelRunner:
    """A LLaVA in pipeline stages, with its sampler.

    Each sequence has a row, its `batch_index`, in the device's buffer of last tokens. If the host does not know a token
    yet, the next step reads it from there. With `overlaps`, `launch` returns before the device is done.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        stages: Sequence[PipelineStage],
        image_encoder: ImageEncoder,
        lm_head: LMHead,
        sampler: Sampler,
        staging: StagingBuffer,
        max_num_seqs: int,
        overlaps: bool = False,
    ) -> None:
        self.overlaps = overlaps
        self.stages = stages
        self._embed_tokens = model.model.language_model.embed_tokens
        self._device = self._embed_tokens.weight.device
        self._image_encoder = image_encoder
        self._lm_head = lm_head
        self._sampler = sampler
        self._staging = staging
        self._last_tokens = torch.zeros(max_num_seqs, dtype=torch.long, device=self._device)
        self._static_decode: StaticDecode | None = None

    def run(self, batch: Batch) -> dict[int, SampledToken]:
        """Returns the next token, by `seq_id`, of each sequence that the batch samples from."""
        return self.launch(batch)()

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Collect:
        """Starts a step. The result is a function that waits for the device and returns what `run` returns."""
        self._clear(batch.new_blocks)
        chunks = sorted(batch.scheduled, key=lambda chunk: (chunk.num_tokens > 1, chunk.end))
        seqs = [chunk.seq for chunk in chunks if chunk.samples]
        plan = self._sampler.plan(seqs)
        rows: Arrays = {"last_token_rows": _int64([seq.batch_index for seq in seqs])} if self.overlaps else {}
        logits, staged = self._logits(chunks, {**rows, **plan.arrays})
        if not seqs:
            return dict
        sampled = self._sampler(logits, plan, _on_device(logits.device, staged))
        if self.overlaps:
            last_tokens = sampled.tokens.to(self._device).clamp(min=0)
            self._last_tokens.index_copy_(0, staged["last_token_rows"], last_tokens)
        seq_ids = [seq.seq_id for seq in seqs]
        read = start_reading(sampled, plan.num_alternatives)
        return lambda: dict(zip(seq_ids, read(), strict=True))

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        """Runs a step of one sequence without the sampler: returns the logits (tokens, vocabulary) of all its tokens.

        They are valid until the next step.
        """
        self._clear(batch.new_blocks)
        return self._logits(batch.scheduled, {}, of_all_tokens=True)[0]

    @torch.inference_mode()
    def probe(self) -> None:
        """Runs one token through the model, without writing to a sequence's blocks. Raises if the device fails."""
        torch.cuda.empty_cache()  # of the step that failed; does nothing without CUDA
        null_block = self.stages[0].cache.null_block
        plans = self._attention_plans([TokenRange(-1, 0, 1, [null_block])])
        zero = np.zeros(1, np.int64)
        staged = self._staging.stage({"ids": zero, "batch_indices": zero, **plans[0].arrays})
        hidden = self._run_stages(self._embed(staged), self._bind(plans, staged))
        self._clear([null_block])
        float(hidden.sum())  # waits for the device

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, torch.OutOfMemoryError)

    def enable_static_decode(self, max_num_seqs: int) -> None:
        """Pads decode steps to a few batch sizes from now on. On a GPU this captures one graph per size."""
        assert len(self.stages) == 1, "a captured step stays on one device"
        static_decode = StaticDecode(self._paged_attention(), self._static_logits, max_num_seqs)
        if self._device.type == "cuda":
            static_decode.capture(self._staging.stage)
        self._static_decode = static_decode

    def _paged_attention(self) -> PagedAttention:
        attention = self.stages[0].attention
        assert isinstance(attention, PagedAttention)
        return attention

    def _static_logits(self, staged: StagedArrays) -> torch.Tensor:
        attend = self._paged_attention().bind_decode(staged)
        return self._lm_head(self._run_stages(self._embed(staged), [attend]))

    def _logits(
        self, chunks: list[ScheduledChunk], sampling_arrays: Arrays, of_all_tokens: bool = False
    ) -> tuple[torch.Tensor, StagedArrays]:
        """Returns the logits of the chunks that are sampled from, and all staged arrays, those of sampling included."""
        ranges = [TokenRange(chunk.seq.seq_id, chunk.start, chunk.end, chunk.seq.block_table) for chunk in chunks]
        ids = [token for chunk in chunks for token in _token_ids(chunk)]
        if self._static_decode is not None and all(chunk.num_tokens == 1 and chunk.samples for chunk in chunks):
            batch_indices = [chunk.seq.batch_index for chunk in chunks]
            arrays = self._static_decode.arrays(ranges, ids, batch_indices)
            staged = self._staging.stage(arrays | sampling_arrays)
            return self._static_decode.run(staged)[: len(chunks)], staged
        plans = self._attention_plans(ranges)
        ends = accumulate(chunk.num_tokens for chunk in chunks)
        logit_rows = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.samples]
        if of_all_tokens:
            logit_rows = list(range(len(ids)))
        step = {"ids": _int64(ids), "logit_rows": _int64(logit_rows)}
        if self.overlaps:
            step["batch_indices"] = _int64([chunk.seq.batch_index for chunk in chunks for _ in range(chunk.num_tokens)])
        staged = self._staging.stage({**step, **plans[0].arrays, **sampling_arrays})
        hidden = self._run_stages(self._insert_images(self._embed(staged), chunks), self._bind(plans, staged))
        last = hidden.index_select(0, staged["logit_rows"].to(hidden.device))
        return self._lm_head(last) if logit_rows else last, staged

    def _attention_plans(self, ranges: list[TokenRange]) -> list[AttentionPlan]:
        """Returns one plan per stage. Their arrays are equal, so only those of the first are staged."""
        return [stage.attention.plan(ranges) for stage in self.stages]

    def _bind(self, plans: list[AttentionPlan], staged: StagedArrays) -> list[Attend]:
        stages = zip(plans, self.stages, strict=True)
        return [
            plan.bind(_on_device(stage.device, {name: staged[name] for name in plan.arrays})) for plan, stage in stages
        ]

    def _run_stages(self, hidden: torch.Tensor, attends: Sequence[Attend]) -> torch.Tensor:
        for stage, attend in zip(self.stages, attends, strict=True):
            hidden = stage(hidden, attend)
        return hidden

    def _clear(self, blocks: list[int]) -> None:
        for stage in self.stages:
            if stage.attention.needs_cleared_blocks:
                stage.cache.clear(blocks)

    def _embed(self, staged: StagedArrays) -> torch.Tensor:
        """Returns the embeddings (tokens, hidden size) of the staged ids."""
        ids = staged["ids"]
        if self.overlaps:
            last_tokens = self._last_tokens.index_select(0, staged["batch_indices"])
            ids = torch.where(ids == PENDING, last_tokens, ids)
        hidden: torch.Tensor = self._embed_tokens(ids)
        return hidden

    def _insert_images(self, hidden: torch.Tensor, chunks: list[ScheduledChunk]) -> torch.Tensor:
        """Returns `hidden`, with the rows of image tokens replaced in place by the images' features."""
        placements = []  # (image, its first and end position in this step, the row of the first)
        row = 0
        for chunk in chunks:
            for image in chunk.seq.images_between(chunk.start, chunk.end):
                first = max(image.start, chunk.start)
                end = min(image.start + image.length, chunk.end)
                placements.append((image, first, end, row + first - chunk.start))
            row += chunk.num_tokens
        if placements:
            features = self._image_encoder.encode(image for image, *_ in placements)
            for image, first, end, start in placements:
                rows = features[image.digest][first - image.start : end - image.start]
                hidden[start : start + end - first] = rows
        return hidden


def _int64(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _token_ids(chunk: ScheduledChunk) -> list[int]:
    """Returns the chunk's token ids, with PENDING for the one that the host does not know yet."""
    known = chunk.seq.token_ids[chunk.start : chunk.end]
    return known + [PENDING] * (chunk.num_tokens - len(known))


def _on_device(device: torch.device, staged: StagedArrays) -> StagedArrays:
    if all(tensor.device == device for tensor in staged.values()):
        return staged
    return {name: tensor.to(device, non_blocking=True) for name, tensor in staged.items()}
