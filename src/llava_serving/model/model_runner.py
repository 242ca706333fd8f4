"""Runs a batch: the only place where the model computes."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlavaForConditionalGeneration

from ..engine.completion import SampledToken
from ..engine.scheduler import Batch, Scheduled
from .attention import Attend, Plan, Span
from .lm_head import LMHead
from .paged_attention import PagedAttention
from .sampler import Sampled, Sampler, SamplingPlan, sampled_tokens
from .pipeline_stage import Stage
from .staging_buffer import Staging
from .static_decode import StaticDecode
from .image_encoder import ImageEncoder

Staged = Mapping[str, torch.Tensor]
Arrays = dict[str, npt.NDArray[np.generic]]
Collect = Callable[[], dict[int, SampledToken]]
PENDING = -1  # in the place of an id that only the device knows


class ModelRunner:
    """A LLaVA in stages, and its sampler.

    Each sequence has a row, its `batch_index`, in the device's buffer of last tokens. Where the host does not know a
    token yet, the next step takes it from there. With `overlaps`, `launch` returns before the device is done.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        stages: Sequence[Stage],
        images: ImageEncoder,
        head: LMHead,
        sampler: Sampler,
        staging: Staging,
        max_num_seqs: int,
        overlaps: bool = False,
    ) -> None:
        self.overlaps = overlaps
        self._embed_tokens = model.model.language_model.embed_tokens
        self._device = self._embed_tokens.weight.device
        self._stages = stages
        self._images = images
        self._head = head
        self._sampler = sampler
        self._staging = staging
        self._last_tokens = torch.zeros(max_num_seqs, dtype=torch.long, device=self._device)
        self._static: StaticDecode | None = None

    def run(self, batch: Batch) -> dict[int, SampledToken]:
        """The next token of each sequence, by `seq_id`, whose last known token is in the batch."""
        return self.launch(batch)()

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Collect:
        """Starts a step. What comes back waits for the device, and returns what `run` does."""
        self._clear(batch.new_blocks)
        entries = sorted(batch.scheduled, key=lambda entry: (entry.num_tokens > 1, entry.end))
        sampled = [entry.seq for entry in entries if entry.samples]
        sampling = self._sampler.plan(sampled)
        rows: Arrays = {"sampled_rows": _int64([seq.batch_index for seq in sampled])} if self.overlaps else {}
        logits, staged = self._logits(entries, {**rows, **sampling.arrays})
        if not sampled:
            return dict
        tokens = self._sampler(logits, sampling, _on(logits.device, staged))
        if self.overlaps:
            known = tokens.tokens.to(self._device).clamp(min=0)
            self._last_tokens.index_copy_(0, staged["sampled_rows"], known)
        return _copied([seq.seq_id for seq in sampled], tokens, sampling)

    @torch.inference_mode()
    def probe(self) -> None:
        """One token through the model, touching nobody's blocks. Raises what a sick device raises."""
        null = self._stages[0].cache.null_block
        plans = self._plans([Span(-1, 0, 1, [null])])
        zero = np.zeros(1, np.int64)
        staged = self._staging.put({"ids": zero, "batch_indices": zero, **plans[0].arrays})
        hidden = self._decode(self._embedded(staged), self._bound(plans, staged))
        self._clear([null])
        float(hidden.sum())  # waits for the device

    def make_static(self, max_num_seqs: int) -> None:
        """Decode steps are padded to a few sizes from now on; on a GPU they are captured here."""
        attention = self._stages[0].attention
        assert len(self._stages) == 1, "a captured step stays on one device"
        assert isinstance(attention, PagedAttention)
        static = StaticDecode(attention, self._static_logits, max_num_seqs)
        if self._device.type == "cuda":
            static.capture(self._staging.put)
        self._static = static

    def _static_logits(self, staged: Staged) -> torch.Tensor:
        attention = self._stages[0].attention
        assert isinstance(attention, PagedAttention)
        return self._head(self._decode(self._embedded(staged), [attention.bound_decode(staged)]))

    def _logits(self, entries: list[Scheduled], sampling: Arrays) -> tuple[torch.Tensor, Staged]:
        """Logits of the entries that are sampled from, and all that was staged: `sampling` goes with the rest."""
        spans = [Span(e.seq.seq_id, e.start, e.end, e.seq.block_table) for e in entries]
        ids = [token for entry in entries for token in _ids(entry)]
        if self._static is not None and all(e.num_tokens == 1 and e.samples for e in entries):
            rows = [entry.seq.batch_index for entry in entries]
            staged = self._staging.put(self._static.arrays(spans, ids, rows) | sampling)
            return self._static.run(staged)[: len(entries)], staged
        plans = self._plans(spans)
        last = [end - 1 for end, e in zip(accumulate(e.num_tokens for e in entries), entries, strict=True) if e.samples]
        step = {"ids": _int64(ids), "last": _int64(last)}
        if self.overlaps:
            step["batch_indices"] = _int64([e.seq.batch_index for e in entries for _ in range(e.num_tokens)])
        staged = self._staging.put({**step, **plans[0].arrays, **sampling})
        hidden = self._decode(self._with_images(self._embedded(staged), entries), self._bound(plans, staged))
        chosen = hidden.index_select(0, staged["last"].to(hidden.device))
        return self._head(chosen) if last else chosen, staged

    def _plans(self, spans: list[Span]) -> list[Plan]:
        """One for each stage; all say the same, so that the arrays of the first serve the others."""
        return [stage.attention.plan(spans) for stage in self._stages]

    def _bound(self, plans: list[Plan], staged: Staged) -> list[Attend]:
        stages = zip(plans, self._stages, strict=True)
        return [plan.bind(_on(stage.device, {n: staged[n] for n in plan.arrays})) for plan, stage in stages]

    def _decode(self, hidden: torch.Tensor, attends: Sequence[Attend]) -> torch.Tensor:
        for stage, attend in zip(self._stages, attends, strict=True):
            hidden = stage(hidden, attend)
        return hidden

    def _clear(self, blocks: list[int]) -> None:
        for stage in self._stages:
            if stage.attention.needs_cleared_blocks:
                stage.cache.clear(blocks)

    def _embedded(self, staged: Staged) -> torch.Tensor:
        """(tokens, hidden size): the tokens' embeddings."""
        ids = staged["ids"]
        if self.overlaps:
            last = self._last_tokens.index_select(0, staged["batch_indices"])
            ids = torch.where(ids == PENDING, last, ids)
        hidden: torch.Tensor = self._embed_tokens(ids)
        return hidden

    def _with_images(self, hidden: torch.Tensor, entries: list[Scheduled]) -> torch.Tensor:
        """`hidden` with the images' features in their places."""
        placed = []  # (image, its first and last position in this step, the row of the first)
        row = 0
        for entry in entries:
            for image in entry.seq.images_between(entry.start, entry.end):
                first = max(image.start, entry.start)
                last = min(image.start + image.length, entry.end)
                placed.append((image, first, last, row + first - entry.start))
            row += entry.num_tokens
        if placed:
            features = self._images.encode(image for image, *_ in placed)
            for image, first, last, at in placed:
                part = features[image.digest][first - image.start : last - image.start]
                hidden[at : at + last - first] = part
        return hidden


def _int64(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _ids(entry: Scheduled) -> list[int]:
    """The entry's token ids, PENDING for the one that the host does not know yet."""
    known = entry.seq.token_ids[entry.start : entry.end]
    return known + [PENDING] * (entry.num_tokens - len(known))


def _on(device: torch.device, staged: Staged) -> Staged:
    if all(tensor.device == device for tensor in staged.values()):
        return staged
    return {name: tensor.to(device, non_blocking=True) for name, tensor in staged.items()}


def _copied(seq_ids: list[int], tokens: Sampled, sampling: SamplingPlan) -> Collect:
    """Starts the copy to the host; what comes back waits for it."""
    if tokens.tokens.device.type != "cuda":
        return lambda: dict(zip(seq_ids, sampled_tokens(tokens, sampling), strict=True))
    # torch takes pinned memory for such copies.
    host = [None if tensor is None else tensor.to("cpu", non_blocking=True) for tensor in tokens]
    copies = Sampled._make(host)
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(tokens.tokens.device))

    def collect() -> dict[int, SampledToken]:
        done.synchronize()
        return dict(zip(seq_ids, sampled_tokens(copies, sampling), strict=True))

    return collect
