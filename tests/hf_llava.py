"""A small random LLaVA 1.5 in transformers' layout, with the files of llava-hf/llava-1.5-7b-hf in small."""

import json
from pathlib import Path
from typing import Any

import torch
from checkpoints import train_tokenizer
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_serving.export.fast_tokenizer import fast_tokenizer

# The template of llava-hf/llava-1.5-7b-hf: images first, and no system text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PREPROCESSOR = {
    "crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}  # fmt: skip
PROCESSOR = {
    "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14, "processor_class": "LlavaProcessor",
    "vision_feature_select_strategy": "default",
}  # fmt: skip


def write_llava_1_5(
    directory: Path, new_files: bool, has_vision_model_prefix: bool = True, metaspace: bool = False,
    has_template: bool = True,
) -> Path:  # fmt: skip
    """Writes the folder: 336 pixels, 576 image tokens, an MLP with GELU, `<image>` and `<pad>` as added tokens.

    `new_files`: the processor's files as transformers 5 writes them (processor_config.json with the image processor
    inside, chat_template.jinja), else as of 2024 (preprocessor_config.json, chat_template.json). `metaspace`: the
    tokenizer.json of newer conversions, in which the text after an image goes on without a space of its own.
    """
    directory.mkdir(parents=True)
    train_tokenizer(directory / "tokenizer.model", 400)
    sentencepiece = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    size = sentencepiece.vocab_size()
    added = {"<image>": size, "<pad>": size + 1}
    _write_weights(directory, size, has_vision_model_prefix)
    fast_tokenizer(sentencepiece, added, 2048).save_pretrained(directory)
    if metaspace:
        _use_metaspace(directory / "tokenizer.json")
    _write_json(directory / "added_tokens.json", added)
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(added))
    if new_files:
        _write_json(directory / "processor_config.json", PROCESSOR | {"image_processor": PREPROCESSOR})
    else:
        _write_json(directory / "processor_config.json", PROCESSOR)
        _write_json(directory / "preprocessor_config.json", PREPROCESSOR)
    if has_template and new_files:
        (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    elif has_template:
        _write_json(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return directory


def _use_metaspace(path: Path) -> None:
    content = json.loads(path.read_text("utf-8")) | {"normalizer": None}
    content["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False
    }  # fmt: skip
    _write_json(path, content)


def _write_weights(directory: Path, size: int, has_vision_model_prefix: bool) -> None:
    config = LlavaConfig(
        text_config={
            "model_type": "llama", "vocab_size": size + 64, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        },
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 2, "image_size": 336, "patch_size": 14, "projection_dim": 24,
        },
        image_token_index=size, projector_hidden_act="gelu", vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=576,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(directory)
    prefix = "vision_tower.vision_model." if has_vision_model_prefix else "vision_tower."
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("model.language_model.", "language_model.model.", 1)
        name = name.replace("model.vision_tower.", prefix, 1).replace("model.multi_modal", "multi_modal", 1)
        state["language_model.lm_head.weight" if name == "lm_head.weight" else name] = value.half().contiguous()
    save_file(state, directory / "model.safetensors", {"format": "pt"})


def _tokenizer_config(added: dict[str, int]) -> dict[str, Any]:
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>"} | {token_id: token for token, token_id in added.items()}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "added_tokens_decoder": {str(i): {"content": token} | flags for i, token in tokens.items()},
        "clean_up_tokenization_spaces": False, "legacy": False, "pad_token": "<pad>", "padding_side": "left",
        "processor_class": "LlavaProcessor", "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), "utf-8")
