"""Pictures to rows of the language model's input, remembered by content."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from transformers import LlavaForConditionalGeneration

from ..engine.prompt import PromptImage
from ..engine.stats import Stats


class ImageEncoder:
    """Vision tower and projector, with the features of the last `capacity` images used.

    A step encodes the images whose first token it computes, so that encoding costs a small part of what the same
    tokens cost in the language model, and stalls decoding sequences no longer than a prefill chunk does.
    """

    def __init__(self, model: LlavaForConditionalGeneration, capacity: int, stats: Stats) -> None:
        self._tower = model.model.vision_tower
        self._projector = model.model.multi_modal_projector
        layer = model.config.vision_feature_layer
        states = len(self._tower.encoder.layers) + 1  # the embeddings, and what each layer makes of them
        self._states = [number % states for number in ([layer] if isinstance(layer, int) else layer)]
        self._keeps_cls = model.config.vision_feature_select_strategy == "full"
        self._capacity = capacity
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._stats = stats

    def encode(self, images: Iterable[PromptImage]) -> dict[bytes, torch.Tensor]:
        """The features (positions, hidden size) of each image by digest; what is not remembered runs in one batch."""
        wanted = {image.digest: image for image in images}
        missing = [image for digest, image in wanted.items() if digest not in self._features]
        self._stats.mm_cache_queries += len(wanted)
        self._stats.mm_cache_hits += len(wanted) - len(missing)
        if missing:
            features = self.compute(torch.stack([image.pixels for image in missing]))
            # Cloned, so that one image's features do not keep the whole batch's alive.
            self._features.update((image.digest, row.clone()) for image, row in zip(missing, features, strict=True))
        for digest in wanted:
            self._features.move_to_end(digest)
        found = {digest: self._features[digest] for digest in wanted}
        while len(self._features) > self._capacity:
            self._features.popitem(last=False)
        return found

    def compute(self, pixels: torch.Tensor) -> torch.Tensor:
        """(images, 3, height, width) -> (images, positions, hidden size), as LLaVA v0 did (LLaVA@ff9b89f llava.py)."""
        if self._tower.device.type == "cuda":
            pixels = pixels.pin_memory()  # from which the copy does not wait for the device
        pixels = pixels.to(self._tower.device, non_blocking=True).to(self._tower.dtype)
        states = self._hidden_states(pixels)
        chosen = [states[number] if self._keeps_cls else states[number][:, 1:] for number in self._states]
        features: torch.Tensor = self._projector(torch.cat(chosen, dim=-1))
        return features

    def _hidden_states(self, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
        """Those that are read, by number; the layers above them do not run."""
        hidden = self._tower.pre_layrnorm(self._tower.embeddings(pixels))
        states = {0: hidden} if 0 in self._states else {}
        for number, layer in enumerate(self._tower.encoder.layers[: max(self._states)], start=1):
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output  # a tuple before transformers 5.2
            if number in self._states:
                states[number] = hidden
        return states
