"""Small random checkpoints in the true layout of LLaMA, LLaVA-13b-delta-v0 and CLIP, written to disk."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch

Save = Callable[[dict[str, torch.Tensor], Path], None]


@dataclass(frozen=True)
class Shape:
    """The sizes of a random model. `hidden` is a multiple of `heads`, and `image_size` of `patch_size`."""

    text_vocab: int = 400
    hidden: int = 32
    intermediate: int = 48
    layers: int = 2
    heads: int = 2
    context: int = 256
    vision_hidden: int = 24
    vision_layers: int = 3
    image_size: int = 32
    patch_size: int = 16


CORPUS = (Path(__file__).parent / "corpus.txt").read_text("utf-8")


def train_tokenizer(path: Path, vocab: int) -> None:
    """Writes a SentencePiece model with LLaMA's settings."""
    (path.parent / "corpus").write_text(CORPUS, "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(path.parent / "corpus"), model_prefix=str(path.with_suffix("")), vocab_size=vocab, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (path.parent / "corpus").unlink()


def write_parts(directory: Path, shape: Shape = Shape(), seed: int = 0) -> Path:
    """Writes base/, delta/ and vision/ with random weights. Base and delta have different shards."""
    random = torch.Generator().manual_seed(seed)
    for part in ("base", "delta", "vision"):
        (directory / part).mkdir(parents=True)
    train_tokenizer(directory / "base" / "tokenizer.model", shape.text_vocab)
    (directory / "delta" / "tokenizer.model").write_bytes((directory / "base" / "tokenizer.model").read_bytes())
    vocab = sentencepiece.SentencePieceProcessor(model_file=str(directory / "base" / "tokenizer.model")).vocab_size()
    base = llama_tensors(shape, vocab, random, scale=0.2)
    delta = llama_tensors(shape, vocab + 3, random, scale=0.05, norm=0.0)
    delta["model.mm_projector.weight"] = _normal((shape.hidden, shape.vision_hidden), random, 0.2)
    delta["model.mm_projector.bias"] = _normal((shape.hidden,), random, 0.2)
    save_shards(base, directory / "base", 2)
    save_shards(delta, directory / "delta", 3)
    torch.save(clip_tensors(shape, random), directory / "vision" / "pytorch_model.bin")
    _write_json(directory / "base" / "config.json", _llama_config(shape, vocab))
    _write_json(directory / "delta" / "config.json", _delta_config(shape, vocab))
    added = {"<im_end>": vocab + 2, "<im_patch>": vocab, "<im_start>": vocab + 1, "[PAD]": vocab + 3}
    _write_json(directory / "delta" / "added_tokens.json", added)
    _write_json(
        directory / "delta" / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    )
    _write_json(directory / "vision" / "config.json", _clip_config(shape))
    return directory


def llama_tensors(
    shape: Shape, vocab: int, random: torch.Generator, scale: float, norm: float = 1.0
) -> dict[str, torch.Tensor]:
    hidden, intermediate = shape.hidden, shape.intermediate
    tensors = {"model.embed_tokens.weight": _normal((vocab, hidden), random, scale)}
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}self_attn.{name}.weight"] = _normal((hidden, hidden), random, scale)
        tensors[f"{prefix}self_attn.rotary_emb.inv_freq"] = torch.zeros(hidden // shape.heads // 2)
        for name, size in (
            ("gate_proj", (intermediate, hidden)),
            ("up_proj", (intermediate, hidden)),
            ("down_proj", (hidden, intermediate)),
        ):
            tensors[f"{prefix}mlp.{name}.weight"] = _normal(size, random, scale)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = _normal((hidden,), random, scale) + norm
    tensors["model.norm.weight"] = _normal((hidden,), random, scale) + norm
    tensors["lm_head.weight"] = _normal((vocab, hidden), random, scale)
    return tensors


def clip_tensors(shape: Shape, random: torch.Generator) -> dict[str, torch.Tensor]:
    width, patches = shape.vision_hidden, (shape.image_size // shape.patch_size) ** 2
    prefix = "vision_model."
    tensors = {
        f"{prefix}embeddings.class_embedding": _normal((width,), random, 0.2),
        f"{prefix}embeddings.patch_embedding.weight": _normal(
            (width, 3, shape.patch_size, shape.patch_size), random, 0.05
        ),
        f"{prefix}embeddings.position_embedding.weight": _normal((patches + 1, width), random, 0.2),
        f"{prefix}embeddings.position_ids": torch.arange(patches + 1)[None],
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        tensors |= _layer_norm(f"{prefix}{name}", width)
    for i in range(shape.vision_layers):
        layer = f"{prefix}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= _linear(f"{layer}self_attn.{name}", width, width, random)
        tensors |= _linear(f"{layer}mlp.fc1", 2 * width, width, random)
        tensors |= _linear(f"{layer}mlp.fc2", width, 2 * width, random)
        tensors |= _layer_norm(f"{layer}layer_norm1", width) | _layer_norm(f"{layer}layer_norm2", width)
    return tensors


def save_shards(
    tensors: dict[str, torch.Tensor], directory: Path, count: int, stem: str = "pytorch_model", suffix: str = "bin",
    save: Save = torch.save,
) -> None:  # fmt: skip
    """Writes `count` shards and their index, in Hugging Face's naming."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(count):
        shard_names = names[i * len(names) // count : (i + 1) * len(names) // count]
        file = f"{stem}-{i + 1:05}-of-{count:05}.{suffix}"
        save({name: tensors[name].clone() for name in shard_names}, directory / file)
        weight_map |= dict.fromkeys(shard_names, file)
    _write_json(directory / f"{stem}.{suffix}.index.json", {"metadata": {}, "weight_map": weight_map})


def save_as_meta(tensors: dict[str, torch.Tensor], directory: Path, shape: Shape, ranks: int) -> None:
    """Writes a LLaMA as Meta released it: a file with one storage for each model-parallel rank, and params.json."""
    state_dicts: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for name, value in tensors.items():
        if "inv_freq" in name:
            continue
        meta_name, dim = _meta_name(name)
        if meta_name.endswith(("wq.weight", "wk.weight")):  # Meta rotates neighbouring rows together
            halves = value.view(shape.heads, 2, shape.hidden // shape.heads // 2, shape.hidden)
            value = halves.transpose(1, 2).reshape(value.shape)
        for rank, state_dict in enumerate(state_dicts):
            state_dict[meta_name] = value if dim is None else value.chunk(ranks, dim)[rank].contiguous()
    for rank, state_dict in enumerate(state_dicts):
        storage = torch.cat([value.flatten() for value in state_dict.values()])
        end, shared = 0, {}
        for name, value in state_dict.items():
            start, end = end, end + value.numel()
            shared[name] = storage[start:end].view(value.shape)
        torch.save(shared | {"rope.freqs": torch.ones(4)}, directory / f"consolidated.{rank:02}.pth")
    params = {"dim": shape.hidden, "n_heads": shape.heads, "n_layers": shape.layers, "norm_eps": 1e-6}
    _write_json(directory / "params.json", params | {"multiple_of": 256, "vocab_size": -1})


def _meta_name(name: str) -> tuple[str, int | None]:
    """Returns Meta's name of a tensor and the dimension that the ranks split, or None if every rank has it whole."""
    top_level = {
        "model.embed_tokens.weight": ("tok_embeddings.weight", 1), "lm_head.weight": ("output.weight", 0),
        "model.norm.weight": ("norm.weight", None),
    }  # fmt: skip
    if name in top_level:
        return top_level[name]
    layer, part = re.fullmatch(r"model\.(layers\.\d+)\.(.*)\.weight", name).groups()  # type: ignore[union-attr]
    meta_name, dim = {
        "self_attn.q_proj": ("attention.wq", 0), "self_attn.k_proj": ("attention.wk", 0),
        "self_attn.v_proj": ("attention.wv", 0), "self_attn.o_proj": ("attention.wo", 1),
        "mlp.gate_proj": ("feed_forward.w1", 0), "mlp.down_proj": ("feed_forward.w2", 1),
        "mlp.up_proj": ("feed_forward.w3", 0), "input_layernorm": ("attention_norm", None),
        "post_attention_layernorm": ("ffn_norm", None),
    }[part]  # fmt: skip
    return f"{layer}.{meta_name}.weight", dim


def _llama_config(shape: Shape, vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_sequence_length": shape.context, "torch_dtype": "float16",
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1,
    }  # fmt: skip


def _delta_config(shape: Shape, vocab: int) -> dict[str, Any]:
    return _llama_config(shape, vocab + 3) | {
        "mm_vision_tower": "openai/clip-vit-large-patch14", "mm_hidden_size": shape.vision_hidden,
        "mm_vision_select_layer": -2, "mm_use_im_start_end": True, "use_mm_proj": True, "pad_token_id": 0,
    }  # fmt: skip


def _clip_config(shape: Shape) -> dict[str, Any]:
    vision = {
        "model_type": "clip_vision_model", "hidden_size": shape.vision_hidden, "num_attention_heads": 2,
        "intermediate_size": 2 * shape.vision_hidden, "num_hidden_layers": shape.vision_layers,
        "image_size": shape.image_size, "patch_size": shape.patch_size, "projection_dim": shape.vision_hidden,
    }  # fmt: skip
    return {"model_type": "clip", "vision_config": vision, "text_config": {}, "projection_dim": shape.vision_hidden}


def _linear(name: str, out_features: int, in_features: int, random: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": _normal((out_features, in_features), random, 0.2),
        f"{name}.bias": _normal((out_features,), random, 0.1),
    }


def _layer_norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(width).half(), f"{name}.bias": torch.zeros(width).half()}


def _normal(size: tuple[int, ...], random: torch.Generator, scale: float) -> torch.Tensor:
    return (torch.randn(size, generator=random) * scale).half()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), "utf-8")
