"""Loads a model directory onto a device: merged while loading, or merged already."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import dispatch_model, init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import nn
from transformers import AutoConfig, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from ..errors import StartupError
from ..preprocess import ClipPreprocessor, load_preprocessor
from ..prompt import TEMPLATES, V0, Template
from ..tokenizer import (
    ADDED_TOKEN_FILES,
    IMAGE_END,
    IMAGE_PATCH,
    IMAGE_START,
    ImageTokens,
    Tokenizer,
    added_tokens,
    load_sentencepiece,
)
from .device import choose_devices, choose_dtype, device_map, device_of
from .model_dir import DeltaTrio, MergedCheckpoint
from .nf4 import PackedLinear, pack_empty, packed_by_transformers, take_over
from .reading import Piece, pieces
from .trio import TEMPLATE_KEY, choose_template, open_parts

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
    found: MergedCheckpoint | DeltaTrio, device: str, dtype: str, template: str = "auto", quantization: str = "none"
) -> LoadedModel:
    """Loads onto `device` in `dtype`, all as in Settings ("auto" included). Raises StartupError."""
    devices = choose_devices(device)
    number = choose_dtype(dtype, devices[0])
    packed = quantization != "none"
    if isinstance(found, DeltaTrio):
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
    trio: DeltaTrio, devices: Sequence[torch.device], dtype: torch.dtype, template: str, packed: bool
) -> LoadedModel:
    parts = open_parts(trio.base, trio.delta, trio.vision)
    conversation = choose_template(template, parts.added)
    config = parts.architecture.config()
    model = _empty(config)
    places = device_map(lambda: model, devices, dtype)
    if packed:
        pack_empty(model.model.language_model.layers, devices[0])
    started = time.monotonic()
    for piece in pieces(parts.sums.items(), pinned=devices[0].type == "cuda"):
        _place(piece, model, dtype, device_of(piece.name, places))
    seconds, size = time.monotonic() - started, sum(total.num_bytes for total in parts.sums.values()) / 1e9
    logger.info("read and merged %.2f GB in %.1f s, %.2f GB/s", size, seconds, size / seconds)
    return LoadedModel(
        dispatch_model(model, places) if len(devices) > 1 else model.to(devices[0]),
        Tokenizer(parts.text, _image_tokens(trio.delta, config, parts.added)),
        load_preprocessor(trio.vision, parts.architecture.image_size),
        conversation,
    )


def _place(piece: Piece, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    module = model.get_submodule(piece.name.rpartition(".")[0])
    if isinstance(module, PackedLinear):
        module.fill(piece.start, piece.rows(dtype, device))
        return
    if piece.start == 0:
        empty = torch.empty(piece.sum.first.shape, dtype=dtype, device=device)
        set_module_tensor_to_device(model, piece.name, device, empty, dtype)
    model.get_parameter(piece.name).data[piece.start : piece.stop] = piece.rows(dtype, device)


def _empty(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """The model without its parameters' memory; its buffers are there."""
    with init_empty_weights(include_buffers=False):
        return LlavaForConditionalGeneration(config)


def _load_merged(
    directory: Path, devices: Sequence[torch.device], dtype: torch.dtype, template: str, packed: bool
) -> LoadedModel:
    text = load_sentencepiece(directory)
    added = added_tokens(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        _check_is_llama(config, directory)
        model, report = LlavaForConditionalGeneration.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            quantization_config=packed_by_transformers(dtype) if packed else None,
            device_map=device_map(partial(_empty, config), devices, dtype),
            local_files_only=True,
            output_loading_info=True,
            weights_only=True,
        )
    except StartupError:
        raise
    except Exception as error:  # of a dozen unrelated types, most without the file's name
        raise StartupError(
            f"{directory} cannot be loaded as LlavaForConditionalGeneration ({type(error).__name__}): its config.json "
            "or weights are missing, damaged or of another model"
        ) from error
    # transformers fills what is missing with random numbers and says so in a warning.
    broken = [*report["missing_keys"], *report["mismatched_keys"]]
    if broken:
        raise StartupError(f"{directory} lacks or misshapes {len(broken)} tensors of the model, {broken[0]} among them")
    if packed:
        take_over(model.model.language_model.layers)
    return LoadedModel(
        model,
        Tokenizer(text, _image_tokens(directory, config, added)),
        load_preprocessor(directory, config.vision_config.image_size),
        TEMPLATES[getattr(config, TEMPLATE_KEY, V0.name) if template == "auto" else template],
    )


def _check_is_llama(config: LlavaConfig, directory: Path) -> None:
    kind = config.text_config.model_type
    if kind != "llama":
        raise StartupError(f"the language model of {directory} is of type {kind!r}; the engine runs LLaMA's layers")


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
