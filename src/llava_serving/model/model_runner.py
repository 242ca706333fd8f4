"""Runs a batch: the only place where the model computes."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from transformers import LlavaForConditionalGeneration

from ..engine.scheduler import Batch, Scheduled
from ..engine.sequence import SampledToken
from .attention import Rows
from .sampler import Sampler
from .stage import Stage
from .vision import ImageEncoder


class ModelRunner:
    """A LLaVA in stages, and its sampler."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        stages: Sequence[Stage],
        images: ImageEncoder,
        sampler: Sampler,
    ) -> None:
        language_model = model.model.language_model
        self._embed = language_model.embed_tokens
        self._device = self._embed.weight.device
        self._stages = stages
        self._norm = language_model.norm
        self._lm_head = model.lm_head
        self._images = images
        self._sampler = sampler

    @torch.inference_mode()
    def run(self, batch: Batch) -> dict[int, SampledToken]:
        """The next token of each sequence, by `seq_id`, whose last known token is in the batch."""
        for stage in self._stages:
            stage.cache.clear(batch.new_blocks)
        entries = sorted(batch.scheduled, key=lambda entry: (entry.num_tokens > 1, entry.end))
        rows = [Rows(e.seq.seq_id, e.start, e.end, e.seq.block_table) for e in entries]
        positions = torch.tensor([position for e in entries for position in range(e.start, e.end)])
        hidden = self._decode(self._embedded(entries), positions, rows)
        ends = list(accumulate(entry.num_tokens for entry in entries))
        last = [end - 1 for end, entry in zip(ends, entries, strict=True) if entry.samples]
        if not last:
            return {}
        seqs = [entry.seq for entry in entries if entry.samples]
        states = self._norm(hidden[last].to(self._norm.weight.device))
        logits = self._lm_head(states.to(self._lm_head.weight.device))
        return {seq.seq_id: token for seq, token in zip(seqs, self._sampler(logits, seqs), strict=True)}

    @torch.inference_mode()
    def probe(self) -> None:
        """One token through the model, touching nobody's blocks. Raises what a sick device raises."""
        table = [self._stages[0].cache.null_block]
        zero = torch.zeros(1, dtype=torch.long, device=self._device)
        hidden = self._decode(self._embed(zero), zero, [Rows(-1, 0, 1, table)])
        for stage in self._stages:
            stage.cache.clear(table)
        float(hidden.sum())  # waits for the device

    def _decode(self, hidden: torch.Tensor, positions: torch.Tensor, rows: list[Rows]) -> torch.Tensor:
        for stage in self._stages:
            hidden = stage(hidden, positions, rows)
        return hidden

    def _embedded(self, entries: list[Scheduled]) -> torch.Tensor:
        """(tokens, hidden size): the tokens' embeddings, with the images' features in their places."""
        ids = [token for entry in entries for token in entry.seq.token_ids[entry.start : entry.end]]
        hidden: torch.Tensor = self._embed(torch.tensor(ids, device=self._device))
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
