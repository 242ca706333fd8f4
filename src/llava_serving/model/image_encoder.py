"""Vision tower and projector: pictures to rows of the language model's input, cached by content."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from ..engine.prompt import PromptImage
from ..engine.stats import Stats


def keeps_cls(config: LlavaConfig) -> bool:
    """Returns whether the feature of CLIP's CLS token precedes those of the patches."""
    return bool(config.vision_feature_select_strategy == "full")


class ImageEncoder:
    """Vision tower and projector, with a cache of the features of the `capacity` images used last.

    A step encodes those images of its tokens that are not cached. Encoding an image costs a small part of what its
    tokens cost in the language model, so it delays decoding sequences no longer than a prefill chunk does.
    """

    def __init__(self, model: LlavaForConditionalGeneration, capacity: int, stats: Stats) -> None:
        self._tower = model.model.vision_tower
        self._projector = model.model.multi_modal_projector
        selected = model.config.vision_feature_layer
        num_states = len(self._tower.encoder.layers) + 1  # the embeddings, and the output of each layer
        self._selected = [index % num_states for index in ([selected] if isinstance(selected, int) else selected)]
        self._keeps_cls = keeps_cls(model.config)
        self._capacity = capacity
        self._cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._stats = stats

    def encode(self, images: Iterable[PromptImage]) -> dict[bytes, torch.Tensor]:
        """Returns the features (positions, hidden size) of each image by digest. All cache misses run in one batch."""
        requested = {image.digest: image for image in images}
        missing = [image for digest, image in requested.items() if digest not in self._cache]
        self._stats.mm_cache_queries += len(requested)
        self._stats.mm_cache_hits += len(requested) - len(missing)
        if missing:
            encoded = self.compute(torch.stack([image.pixels for image in missing]))
            # Cloned, so that one image's features do not hold the memory of the whole batch.
            self._cache.update((image.digest, row.clone()) for image, row in zip(missing, encoded, strict=True))
        for digest in requested:
            self._cache.move_to_end(digest)
        features = {digest: self._cache[digest] for digest in requested}
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return features

    def compute(self, pixels: torch.Tensor) -> torch.Tensor:
        """Maps (images, 3, height, width) to (images, positions, hidden size), as LLaVA v0 did (LLaVA@ff9b89f
        llava.py)."""
        if self._tower.device.type == "cuda":
            pixels = pixels.pin_memory()  # a copy from pinned memory does not wait for the device
        pixels = pixels.to(self._tower.device, non_blocking=True).to(self._tower.dtype)
        states = self._hidden_states(pixels)
        selected = [states[index] if self._keeps_cls else states[index][:, 1:] for index in self._selected]
        features: torch.Tensor = self._projector(torch.cat(selected, dim=-1))
        return features

    def _hidden_states(self, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
        """Returns the selected hidden states by index. The layers above the last of them do not run."""
        hidden = self._tower.pre_layrnorm(self._tower.embeddings(pixels))
        states = {0: hidden} if 0 in self._selected else {}
        for index, layer in enumerate(self._tower.encoder.layers[: max(self._selected)], start=1):
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output  # a tuple before transformers 5.2
            if index in self._selected:
                states[index] = hidden
        return states
