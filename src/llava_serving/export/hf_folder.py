"""What stands beside the weights of a merged folder, so that transformers and vLLM load it and say what v0 says."""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..inputs.clip_preprocessor import ClipPreprocessor
from ..inputs.templates import Template
from ..inputs.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START
from ..weights.parts import TEMPLATE_KEY, OpenedParts
from .fast_tokenizer import fast_tokenizer
from .model_card import card

# What transformers 5 names its tokenizer class; earlier releases know it by the other name, and 5 by both.
NEW_CLASS, KNOWN_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"

CHAT_TEMPLATE = """
{%- for message in messages -%}
    {%- if loop.first -%}
        {{- bos_token -}}
        {%- if message['role'] != 'system' -%}{{- SYSTEM + GREETING -}}{%- endif -%}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}{{- USER -}}{%- endif -%}
    {%- if message['role'] == 'assistant' -%}{{- ASSISTANT -}}{%- endif -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- set said = namespace(before='') -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{- said.before + part['text'] -}}
                {%- set said.before = '\\n' -%}
            {%- endif -%}
        {%- endfor -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] != 'text' -%}{{- '\\n' + IMAGE -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if message['role'] == 'system' -%}{{- GREETING -}}{%- endif -%}
    {%- if message['role'] == 'assistant' -%}{{- END -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- OPEN -}}{%- endif -%}
"""


def write_beside(
    parts: OpenedParts,
    preprocessor: ClipPreprocessor,
    dtype: torch.dtype,
    template: Template,
    tokenizer_model: Path,
    to: Path,
) -> None:
    """Configs, tokenizer, processor and a README.md in the folder `to`."""
    config = _config(parts.architecture.config(), dtype)
    setattr(config, TEMPLATE_KEY, template.name)
    config.save_pretrained(to)
    _generation_config(config, parts.text.vocab_size()).save_pretrained(to)
    (to / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    # Without 13b-v0's [PAD], which has no row in the embedding.
    added = {token: i for token, i in parts.added.items() if i < config.text_config.vocab_size}
    (to / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n", "utf-8")
    _processor(parts, config, added, preprocessor, template).save_pretrained(to)
    named = to / "tokenizer_config.json"
    named.write_text(named.read_text("utf-8").replace(NEW_CLASS, KNOWN_CLASS), "utf-8")
    (to / "README.md").write_text(card(config, added, dtype, template), "utf-8")


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
    parts: OpenedParts, config: LlavaConfig, added: dict[str, int], preprocessor: ClipPreprocessor, template: Template
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
        chat_template=chat_template(template, IMAGE_START in added),
    )  # fmt: skip


def chat_template(template: Template, marked: bool) -> str:
    """The conversation in Jinja; `marked` says that images stand between their two markers.

    vLLM only sees that a message may be a list of parts where a loop over them stands in the open.
    """
    words = {
        "SYSTEM": template.system, "GREETING": template.greeting, "USER": template.user_prefix,
        "ASSISTANT": template.assistant_prefix, "END": "".join(end.text for end in template.assistant_suffix),
        "OPEN": template.generation_prompt,
        "IMAGE": f"{IMAGE_START}{IMAGE_PATCH}{IMAGE_END}" if marked else IMAGE_PATCH,
    }  # fmt: skip
    return "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in words.items()) + CHAT_TEMPLATE
