"""Loads a model folder onto its devices.

Opening a folder reads configs and headers. It gives an empty model and its tensors, which are still in their files.
Then placement.py allocates the model's memory and reads the tensors into it, and merges base and delta on the way.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaForConditionalGeneration

from ..inputs.clip_preprocessor import ClipPreprocessor, load_preprocessor
from ..inputs.prompt import ConversationTemplate
from ..inputs.tokenizer import IMAGE_PATCH, Spacing, Tokenizer, added_tokens, load_sentencepiece
from ..model.cpu_kernels.library import ROW_DTYPES, load_in_background
from ..model.image_encoder import keeps_cls
from ..model.packed_linear import PackedLinear
from .architecture import count_patches
from .delta import MergedTensor
from .device import choose_devices, choose_dtype
from .image_tokens import build_image_tokens, image_token_text
from .merged_checkpoint import empty_merged_model, merged_model_tensors
from .model_folder import MergedFolder, PartsFolder
from .out_of_memory import out_of_memory_refused
from .parts import open_parts
from .placement import empty_model, load_weights
from .storage.checkpoint import open_checkpoint
from .template_choice import choose_delta_template, choose_merged_template
from .token_spacing import read_spacing

logger = logging.getLogger(__name__)
WITHOUT_MEMORY = (
    "another program may have taken it since the model's size was compared with what was free; end that program, or "
    "take a device with more memory"
)


@dataclass(frozen=True)
class LoadedModel:
    """A LLaVA that is ready to run, and the objects that turn requests into its inputs."""

    model: LlavaForConditionalGeneration
    tokenizer: Tokenizer
    preprocessor: ClipPreprocessor
    template: ConversationTemplate

    @property
    def context_length(self) -> int:
        """The most tokens of prompt, images and answer together."""
        length: int = self.model.config.text_config.max_position_embeddings
        return length

    @property
    def num_parameters(self) -> int:
        """The number of parameters, packed ones included."""
        packed = sum(module.num_parameters for module in self.model.modules() if isinstance(module, PackedLinear))
        stored: int = sum(parameter.numel() for parameter in self.model.parameters())
        return packed + stored

    @property
    def vocab_size(self) -> int:
        """The number of rows of the embedding, added tokens included."""
        size: int = self.model.config.text_config.vocab_size
        return size


def load_model(
    folder: MergedFolder | PartsFolder, device: str, dtype: str, template: str = "auto", quantization: str = "none"
) -> LoadedModel:
    """Loads onto `device` in `dtype`, all as in Settings ("auto" included). Raises StartupError."""
    devices = choose_devices(device)
    torch_dtype = choose_dtype(dtype, devices[0], quantization)
    if devices[0].type == "cpu" and torch_dtype in ROW_DTYPES:
        load_in_background()
    names = ", ".join(map(str, devices))
    with out_of_memory_refused(f"the model was loaded onto {names}", WITHOUT_MEMORY):
        return _load(folder, devices, torch_dtype, template, quantization)


def _load(
    folder: MergedFolder | PartsFolder,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    template: str,
    quantization: str,
) -> LoadedModel:
    if isinstance(folder, PartsFolder):
        loaded, tensors = _open_parts(folder, template)
        steps, source = "read and merged", "base and delta merged while loading"
    else:
        loaded, tensors = _open_merged(folder.directory, template)
        steps, source = "read", "merged already"
    started = time.monotonic()
    load_weights(loaded.model, tensors, devices, dtype, quantization)
    _log_speed(steps, tensors, time.monotonic() - started)
    loaded.model.eval().requires_grad_(False)
    # The service sets what to generate itself: the ids in v0's files are wrong, and other defaults are unwanted.
    loaded.model.generation_config = GenerationConfig()
    _log_loaded(loaded, f"{folder.directory}, {source}", devices, dtype, quantization)
    return loaded


def _open_parts(parts: PartsFolder, template: str) -> tuple[LoadedModel, dict[str, MergedTensor]]:
    """Returns the model without memory, and the tensors to read into it."""
    opened = open_parts(parts.base, parts.delta, parts.vision)
    loaded = LoadedModel(
        empty_model(opened.architecture.config()),
        Tokenizer(opened.sentencepiece, opened.image_tokens),
        load_preprocessor(parts.vision, opened.architecture.image_size),
        choose_delta_template(template, opened.added_tokens),
    )
    return loaded, opened.merged_tensors


def _open_merged(directory: Path, template: str) -> tuple[LoadedModel, dict[str, MergedTensor]]:
    """Returns the model without memory, and the tensors to read into it."""
    sentencepiece, added = load_sentencepiece(directory), added_tokens(directory)
    model = empty_merged_model(directory)
    config, vision = model.config, model.config.vision_config
    tensors = merged_model_tensors(open_checkpoint(directory), model)
    num_features = count_patches(vision.image_size, vision.patch_size) + keeps_cls(config)
    vocab_size = config.text_config.vocab_size
    image_tokens = build_image_tokens(directory, added, config.image_token_index, num_features, vocab_size)
    image_token = image_token_text(added, config.image_token_index)
    spacing = Spacing.STRIPPED if image_token == IMAGE_PATCH else read_spacing(directory)
    tokenizer = Tokenizer(sentencepiece, image_tokens, spacing)
    loaded = LoadedModel(
        model,
        tokenizer,
        load_preprocessor(directory, vision.image_size),
        choose_merged_template(template, config, directory, tokenizer, image_token),
    )
    return loaded, tensors


def _log_speed(steps: str, tensors: Mapping[str, MergedTensor], seconds: float) -> None:
    size = sum(tensor.num_stored_bytes for tensor in tensors.values()) / 1e9
    logger.info("%s %.2f GB in %.1f s, %.2f GB/s", steps, size, seconds, size / seconds)


def _log_loaded(
    loaded: LoadedModel, source: str, devices: Sequence[torch.device], dtype: torch.dtype, quantization: str
) -> None:
    names = ", ".join(map(str, devices))
    numbers = str(dtype) if quantization == "none" else f"{dtype}, layers in {quantization}"
    logger.info("%s: %.1f M parameters on %s, %s", source, loaded.num_parameters / 1e6, names, numbers)
