"""Writes the files beside the weights of a merged folder, so that transformers and vLLM give the answers of v0."""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..inputs.clip_preprocessor import ClipPreprocessor
from ..inputs.templates import Template
from ..inputs.tokenizer import IMAGE_PATCH, IMAGE_START
from ..weights.parts import OpenedParts
from ..weights.template_choice import TEMPLATE_KEY
from .chat_template import chat_template
from .fast_tokenizer import fast_tokenizer
from .model_card import model_card

# transformers 5 writes the first name of its tokenizer class. Earlier releases know only the second, and 5 knows both.
NEW_TOKENIZER_CLASS, OLD_TOKENIZER_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"


def write_configs_and_tokenizer(
    parts: OpenedParts,
    preprocessor: ClipPreprocessor,
    dtype: torch.dtype,
    template: Template,
    tokenizer_model: Path,
    folder: Path,
) -> None:
    """Writes the configs, tokenizer, processor and README.md into `folder`."""
    config = _complete_config(parts.architecture.config(), dtype)
    setattr(config, TEMPLATE_KEY, template.name)
    config.save_pretrained(folder)
    _generation_config(config, parts.sentencepiece.vocab_size()).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    # Leaves out 13b-v0's [PAD], which has no row in the embedding.
    added_tokens = {token: i for token, i in parts.added_tokens.items() if i < config.text_config.vocab_size}
    (folder / "added_tokens.json").write_text(json.dumps(added_tokens, indent=2) + "\n", "utf-8")
    _processor(parts, config, added_tokens, preprocessor, template).save_pretrained(folder)
    tokenizer_config = folder / "tokenizer_config.json"
    content = tokenizer_config.read_text("utf-8").replace(NEW_TOKENIZER_CLASS, OLD_TOKENIZER_CLASS)
    tokenizer_config.write_text(content, "utf-8")
    (folder / "README.md").write_text(model_card(config, added_tokens, dtype, template), "utf-8")


def _complete_config(config: LlavaConfig, dtype: torch.dtype) -> LlavaConfig:
    """Adds the class name and the dtype, which transformers adds when it saves a model."""
    config.architectures = ["LlavaForConditionalGeneration"]
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype
    return config


def _generation_config(config: LlavaConfig, text_vocab_size: int) -> GenerationConfig:
    """Returns LLaMA's own bos, eos and pad ids, where the delta's file has 0, 1 and 0.

    Suppresses the added tokens: they are only inputs.
    """
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id,
        suppress_tokens=list(range(text_vocab_size, text.vocab_size)),
    )  # fmt: skip


def _processor(
    parts: OpenedParts,
    config: LlavaConfig,
    added_tokens: dict[str, int],
    preprocessor: ClipPreprocessor,
    template: Template,
) -> LlavaProcessor:
    size = preprocessor.size
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size},
            image_mean=list(preprocessor.mean), image_std=list(preprocessor.std),
        ),
        tokenizer=fast_tokenizer(parts.sentencepiece, added_tokens, config.text_config.max_position_embeddings),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token=IMAGE_PATCH,
        num_additional_image_tokens=1,  # the CLS token, which the strategy then drops
        chat_template=chat_template(template, has_image_markers=IMAGE_START in added_tokens),
    )  # fmt: skip
