"""What stands beside the weights of a merged folder, so that transformers and vLLM load it and say what v0 says."""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .. import prompt
from ..preprocess import ClipPreprocessor
from ..tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START
from ..weights.trio import Parts
from .card import card
from .tokenizer_json import fast_tokenizer

# What transformers 5 names its tokenizer class; earlier releases know it by the other name, and 5 by both.
NEW_CLASS, KNOWN_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"


def write_beside(
    parts: Parts, preprocessor: ClipPreprocessor, dtype: torch.dtype, tokenizer_model: Path, to: Path
) -> None:
    """Configs, tokenizer, processor and a README.md in the folder `to`."""
    config = _config(parts.architecture.config(), dtype)
    config.save_pretrained(to)
    _generation_config(config, parts.text.vocab_size()).save_pretrained(to)
    (to / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    # Without 13b-v0's [PAD], which has no row in the embedding.
    added = {token: i for token, i in parts.added.items() if i < config.text_config.vocab_size}
    (to / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n", "utf-8")
    _processor(parts, config, added, preprocessor).save_pretrained(to)
    named = to / "tokenizer_config.json"
    named.write_text(named.read_text("utf-8").replace(NEW_CLASS, KNOWN_CLASS), "utf-8")
    (to / "README.md").write_text(card(config, added, dtype), "utf-8")


def _config(config: LlavaConfig, dtype: torch.dtype) -> LlavaConfig:
    config.architectures = ["LlavaForConditionalGeneration"]
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype
    return config


def _generation_config(config: LlavaConfig, text_vocab_size: int) -> GenerationConfig:
    """LLaMA's own ids, where the delta's file has 0, 1 and 0; the added tokens are inputs and never answers."""
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id,
        suppress_tokens=list(range(text_vocab_size, text.vocab_size)),
    )  # fmt: skip


def _processor(
    parts: Parts, config: LlavaConfig, added: dict[str, int], preprocessor: ClipPreprocessor
) -> LlavaProcessor:
    size = preprocessor.size
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size},
            image_mean=list(preprocessor.mean), image_std=list(preprocessor.std),
        ),
        tokenizer=fast_tokenizer(parts.text, added, config.text_config.max_position_embeddings),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token=IMAGE_PATCH,
        num_additional_image_tokens=1,  # CLS, which the strategy then drops
        chat_template=chat_template(IMAGE_START in added),
    )  # fmt: skip


def chat_template(marked: bool) -> str:
    """The conversation of prompt.py in Jinja; `marked` says that images stand between their two markers."""
    image = f"{IMAGE_START}{IMAGE_PATCH}{IMAGE_END}" if marked else IMAGE_PATCH
    words = {"system": prompt.SYSTEM, "greeting": prompt.GREETING, "separator": prompt.SEPARATOR, "image": image}
    template = (
        "{%- macro said(content) -%}"
        "{%- if content is string -%}{{ content }}{%- else -%}"
        "{%- set texts = content | selectattr('type', 'equalto', 'text') | map(attribute='text') | list -%}"
        "{{ texts | join('\\n') }}"
        "{%- for part in content if part['type'] in ('image', 'image_url') -%}{{ '\\n' + IMAGE }}{%- endfor -%}"
        "{%- endif -%}"
        "{%- endmacro -%}"
        "{%- set system = messages[0]['role'] == 'system' -%}"
        "{{ bos_token + (said(messages[0]['content']) if system else SYSTEM) + GREETING }}"
        "{%- for message in (messages[1:] if system else messages) -%}"
        "{{ SEPARATOR + ('Human: ' if message['role'] == 'user' else 'Assistant: ') + said(message['content']) }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ OPEN_TURN }}{%- endif -%}"
    )
    for name, value in (*words.items(), ("open_turn", prompt.OPEN_TURN)):
        template = template.replace(name.upper(), json.dumps(value))
    return template
