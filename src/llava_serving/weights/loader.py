"""Loads a model directory onto a device: merged while loading, or merged already."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from ..errors import StartupError
from ..inputs.clip_preprocessor import ClipPreprocessor, load_preprocessor
from ..inputs.templates import TEMPLATES, V0, Template
from ..inputs.tokenizer import (
    ADDED_TOKEN_FILES,
    IMAGE_END,
    IMAGE_PATCH,
    IMAGE_START,
    ImageTokens,
    Tokenizer,
    added_tokens,
    load_sentencepiece,
)
from ..model.nf4 import PackedLinear
from .delta import MergedTensor
from .device import choose_devices, choose_dtype
from .merged_folder import described, stored
from .model_dir import MergedCheckpoint, ModelParts
from .parts import TEMPLATE_KEY, choose_template, open_parts
from .placement import empty_model, read_onto

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A LLaVA that is ready to run, with what turns requests into its inputs."""

    model: LlavaForConditionalGeneration
    tokenizer: Tokenizer
    preprocessor: ClipPreprocessor
    template: Template

    @property
    def context_length(self) -> int:
        """Tokens of prompt, images and answer together."""
        length: int = self.model.config.text_config.max_position_embeddings
        return length

    @property
    def parameters(self) -> int:
        """How many, packed ones included."""
        packed = sum(module.num_weights for module in self.model.modules() if isinstance(module, PackedLinear))
        stored: int = sum(parameter.numel() for parameter in self.model.parameters())
        return packed + stored

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, added tokens included."""
        size: int = self.model.config.text_config.vocab_size
        return size


def load_model(
    found: MergedCheckpoint | ModelParts, device: str, dtype: str, template: str = "auto", quantization: str = "none"
) -> LoadedModel:
    """Loads onto `device` in `dtype`, all as in Settings ("auto" included). Raises StartupError."""
    devices = choose_devices(device)
    number = choose_dtype(dtype, devices[0])
    packed = quantization != "none"
    if isinstance(found, ModelParts):
        loaded, how = _load_trio(found, devices, number, template, packed), "base and delta merged while loading"
    else:
        loaded, how = _load_merged(found.directory, devices, number, template, packed), "merged already"
    loaded.model.eval().requires_grad_(False)
    # Both are the service's own business: the files' ids are wrong (v0) or their defaults unwanted.
    loaded.model.generation_config = GenerationConfig()
    places = ", ".join(map(str, devices))
    kind = f"{number}, layers in {quantization}" if packed else str(number)
    logger.info("%s, %s: %.1f M parameters on %s, %s", found.directory, how, loaded.parameters / 1e6, places, kind)
    return loaded


def _load_trio(
    trio: ModelParts, devices: Sequence[torch.device], dtype: torch.dtype, template: str, packed: bool
) -> LoadedModel:
    parts = open_parts(trio.base, trio.delta, trio.vision)
    conversation = choose_template(template, parts.added)
    config = parts.architecture.config()
    with _timed("read and merged", parts.merged_tensors):
        model = read_onto(empty_model(config), parts.merged_tensors, devices, dtype, packed)
    return LoadedModel(
        model,
        Tokenizer(parts.text, _image_tokens(trio.delta, config, parts.added)),
        load_preprocessor(trio.vision, parts.architecture.image_size),
        conversation,
    )


def _load_merged(
    directory: Path, devices: Sequence[torch.device], dtype: torch.dtype, template: str, packed: bool
) -> LoadedModel:
    tokens = load_sentencepiece(directory), added_tokens(directory)
    empty = described(directory)
    config = empty.config
    merged_tensors = stored(directory, empty)
    tokenizer = Tokenizer(tokens[0], _image_tokens(directory, config, tokens[1]))
    preprocessor = load_preprocessor(directory, config.vision_config.image_size)
    with _timed("read", merged_tensors):
        model = read_onto(empty, merged_tensors, devices, dtype, packed)
    named = getattr(config, TEMPLATE_KEY, V0.name) if template == "auto" else template
    return LoadedModel(model, tokenizer, preprocessor, TEMPLATES[named])


@contextmanager
def _timed(what: str, merged_tensors: Mapping[str, MergedTensor]) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds, size = time.monotonic() - started, sum(total.num_bytes for total in merged_tensors.values()) / 1e9
    logger.info("%s %.2f GB in %.1f s, %.2f GB/s", what, size, seconds, size / seconds)


def _image_tokens(directory: Path, config: LlavaConfig, added: dict[str, int]) -> ImageTokens:
    """The ids of an image, held against the config and the embedding: they differ from checkpoint to checkpoint."""
    patch = config.image_token_index
    if patch not in added.values() or added.get(IMAGE_PATCH, patch) != patch:
        raise StartupError(
            f"config.json says that the image token is {patch}, and among the added tokens of {directory} "
            f"({', '.join(ADDED_TOKEN_FILES)}) it is not: they are {added or 'none'}"
        )
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    count = patches + (config.vision_feature_select_strategy == "full")  # CLS is kept
    image = ImageTokens(patch, count, added.get(IMAGE_START), added.get(IMAGE_END))
    rows = config.text_config.vocab_size
    beyond = [token for token in image.ids if token >= rows]
    if beyond:
        raise StartupError(
            f"the added token {beyond[0]} of {directory} has no row in the embedding, which has {rows}: its "
            "tokenizer files are another checkpoint's"
        )
    return image
