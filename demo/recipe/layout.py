"""Writes base, delta and vision tower in the layouts of the original checkpoints.

The originals are the LLaMA of spring 2023, liuhaotian/LLaVA-13b-delta-v0, and CLIP of the Hugging Face hub. File names,
sharding, dtypes and even the wrong special ids are those of the originals, so that one loader reads both.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from base import CONTEXT, llama_config
from llava import ADDED_TOKENS
from torch import Tensor
from training_images import MEAN, SIZE, STD
from vision import LAYERS, PATCH, WIDTH, build_tower

DEMO = Path(__file__).resolve().parents[1]
ROPE_BASE = 10_000.0
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def write_parts(work: Path, demo: Path) -> None:
    """Writes base/, delta/ and vision/ from the state dicts in the work folder."""
    base = torch.load(work / "base.pt")
    trained = torch.load(work / "llava.pt")
    for part in ("base", "delta", "vision"):
        shutil.rmtree(demo / part, ignore_errors=True)
        (demo / part).mkdir(parents=True)
    stored_base = _spring_2023({name: _half(value) for name, value in base.items()})
    _write_base(stored_base, demo / "base")
    _write_delta(_delta(stored_base, trained), demo / "delta")
    _write_vision(torch.load(work / "vision.pt"), demo / "vision")
    for part in ("base", "delta"):
        shutil.copyfile(work / "tokenizer.model", demo / part / "tokenizer.model")


def _delta(base: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `trained` minus `base` in the order of the base, and the added rows and the projector unchanged."""
    delta = {}
    for name, base_value in base.items():
        if name.endswith("inv_freq"):
            delta[name] = torch.zeros_like(base_value)  # the difference of two equal tensors
            continue
        value = trained[f"llama.{name}"].clone()
        value[: len(base_value)] -= base_value.float()  # the stored base, so that the sum is rounded once
        delta[name] = _half(value)
    head = delta.pop("lm_head.weight")
    for part in ("weight", "bias"):
        delta[f"model.mm_projector.{part}"] = _half(trained[f"projector.{part}"])
    return delta | {"lm_head.weight": head}


def _spring_2023(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the rotary frequencies that transformers stored in every layer in spring 2023."""
    config = llama_config(len(tensors[VOCABULARY[0]]))
    size = config.hidden_size // config.num_attention_heads
    frequencies = 1.0 / ROPE_BASE ** (torch.arange(0, size, 2).float() / size)
    stored = {}
    for name, value in tensors.items():
        stored[name] = value
        if name.endswith("self_attn.o_proj.weight"):
            stored[name.replace("o_proj.weight", "rotary_emb.inv_freq")] = frequencies.clone()
    return stored


def _write_base(tensors: dict[str, Tensor], folder: Path) -> None:
    _save_shards(tensors, folder, 2)
    # The first converter wrote these wrong ids. The ids of SentencePiece are 1 and 2.
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    _write_json(folder / "config.json", _llama_config(len(tensors[VOCABULARY[0]])) | ids | _version("4.27.0.dev0"))
    _write_json(folder / "generation_config.json", {"_from_model_config": True} | ids | _version("4.27.0.dev0"))
    _write_json(folder / "special_tokens_map.json", {})
    _write_json(folder / "tokenizer_config.json", _tokenizer_config("", "", ""))


def _write_delta(tensors: dict[str, Tensor], folder: Path) -> None:
    _save_shards(tensors, folder, 3)
    rows = len(tensors[VOCABULARY[0]])
    text = rows - ADDED_TOKENS
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    multimodal = {
        "mm_hidden_size": WIDTH, "mm_use_im_start_end": True, "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14", "tune_mm_mlp_adapter": False, "use_mm_proj": True,
    }  # fmt: skip
    config = _llama_config(rows) | ids | multimodal | _version("4.28.0.dev0")
    _write_json(folder / "config.json", dict(sorted(config.items())))
    _write_json(folder / "generation_config.json", {"_from_model_config": True} | ids | _version("4.28.0.dev0"))
    # As in the original, [PAD] has an id but no row.
    added = {"<im_end>": text + 2, "<im_patch>": text, "<im_start>": text + 1, "[PAD]": text + 3}
    _write_json(folder / "added_tokens.json", added)
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config("</s>", "</s>", "<unk>"))


def _write_vision(state: dict[str, Tensor], folder: Path) -> None:
    tensors = {f"vision_model.{name}": _half(value) for name, value in state.items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange((SIZE // PATCH) ** 2 + 1)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    config = build_tower().config
    fields = {
        "architectures": ["CLIPVisionModel"], "attention_dropout": 0.0, "dropout": 0.0,
        "hidden_act": config.hidden_act, "hidden_size": WIDTH, "image_size": SIZE, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps, "model_type": "clip_vision_model",
        "num_attention_heads": config.num_attention_heads, "num_channels": 3, "num_hidden_layers": LAYERS,
        "patch_size": PATCH, "projection_dim": WIDTH, "torch_dtype": "float16",
    }  # fmt: skip
    _write_json(folder / "config.json", fields | _version("4.28.0.dev0"))
    square = {"height": SIZE, "width": SIZE}
    preprocessor = {
        "crop_size": square, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
        "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor", "image_std": STD, "resample": 3, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIZE},
    }  # fmt: skip
    _write_json(folder / "preprocessor_config.json", preprocessor)


def _llama_config(rows: int) -> dict[str, Any]:
    config = llama_config(rows)
    return {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": config.hidden_size,
        "initializer_range": 0.02, "intermediate_size": config.intermediate_size, "max_sequence_length": CONTEXT,
        "model_type": "llama", "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers, "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True, "vocab_size": rows,
    }  # fmt: skip


def _tokenizer_config(bos: str, eos: str, unk: str) -> dict[str, Any]:
    return {
        "bos_token": bos, "eos_token": eos, "model_max_length": CONTEXT, "tokenizer_class": "LlamaTokenizer",
        "unk_token": unk,
    }  # fmt: skip


def _version(transformers: str) -> dict[str, str]:
    return {"transformers_version": transformers}


def _save_shards(tensors: dict[str, Tensor], folder: Path, count: int) -> None:
    """Writes `count` files of about the same size, and their index."""
    total = sum(value.nbytes for value in tensors.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(count)]
    written = 0
    for name, value in tensors.items():
        shards[min(count - 1, written * count // total)][name] = value
        written += value.nbytes
    files = {}
    for i, shard in enumerate(shards):
        file = f"pytorch_model-{i + 1:05}-of-{count:05}.bin"
        torch.save(shard, folder / file)
        files |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    _write_json(folder / "pytorch_model.bin.index.json", index)


def _half(value: Tensor) -> Tensor:
    """Returns a float16 copy with its own storage, because torch.save writes complete storages."""
    return value.detach().to(torch.float16).clone().contiguous()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
