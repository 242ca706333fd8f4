"""Pictures to rows of the language model's input, remembered by content."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from transformers import LlavaForConditionalGeneration

from ..engine.sequence import Image
from ..engine.stats import Stats


class ImageEncoder:
    """Vision tower and projector, with the features of the last `capacity` images used."""

    def __init__(self, model: LlavaForConditionalGeneration, capacity: int, stats: Stats) -> None:
        self._tower = model.model.vision_tower
        self._projector = model.model.multi_modal_projector
        layer = model.config.vision_feature_layer
        self._layers = [layer] if isinstance(layer, int) else list(layer)
        self._keeps_cls = model.config.vision_feature_select_strategy == "full"
        self._capacity = capacity
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._stats = stats

    def encode(self, images: Iterable[Image]) -> dict[bytes, torch.Tensor]:
        """The features (positions, hidden size) of each image by digest; what is not remembered runs in one batch."""
        wanted = {image.digest: image for image in images}
        missing = [image for digest, image in wanted.items() if digest not in self._features]
        self._stats.mm_cache_queries += len(wanted)
        self._stats.mm_cache_hits += len(wanted) - len(missing)
        if missing:
            features = self._run(torch.stack([image.pixels for image in missing]))
            # Cloned, so that one image's features do not keep the whole batch's alive.
            self._features.update((image.digest, row.clone()) for image, row in zip(missing, features, strict=True))
        for digest in wanted:
            self._features.move_to_end(digest)
        found = {digest: self._features[digest] for digest in wanted}
        while len(self._features) > self._capacity:
            self._features.popitem(last=False)
        return found

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        """(images, 3, height, width) -> (images, positions, hidden size), as LLaVA v0 did (LLaVA@ff9b89f llava.py)."""
        pixels = pixels.to(self._tower.device, self._tower.dtype)
        states = self._tower(pixels, output_hidden_states=True).hidden_states
        chosen = [states[layer] if self._keeps_cls else states[layer][:, 1:] for layer in self._layers]
        features: torch.Tensor = self._projector(torch.cat(chosen, dim=-1))
        return features
